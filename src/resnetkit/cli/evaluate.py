"""``resnet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import ANY_MODEL, DEVICE, IMAGE_SIZE, SPLIT, WORKERS, refuse_for_exported


def evaluate(
    model: ANY_MODEL,
    data: Annotated[
        Path, typer.Argument(help="A folder, CSV manifest or shards. Classes are matched by name.")
    ],
    split: SPLIT = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature on the validation split.")
    ] = False,
    save_model: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="With --calibrate: write a copy of the model file with the calibration data for "
            "`predict --coverage` and `--false-alarms`.",
            metavar="FILE",
        ),
    ] = None,
    crops: Annotated[
        int,
        typer.Option(
            help="Views of each image: 1, or 10 (4 corners and center, plus mirrored).", metavar="N"
        ),
    ] = 1,
    flip: Annotated[bool, typer.Option("--flip", help="Average with the mirrored image.")] = False,
    image_size: IMAGE_SIZE = None,
    device: DEVICE = "auto",
    workers: WORKERS = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Write metrics, tables, figures and report.html to this folder."),
    ] = None,
) -> None:
    """Evaluate a model file on photos with known classes."""
    from ..export.artefact import is_artefact

    if is_artefact(model):
        options = {
            "--calibrate": calibrate,
            "--save-model": save_model,
            "--crops": crops > 1,
            "--flip": flip,
            "--image-size": image_size,
            "--out": out,
            "--device": device != "auto",
        }
        refuse_for_exported(model, options)
        _evaluate_exported(model, data, split, workers)
        return
    from contextlib import ExitStack

    from ..errors import RecipeError
    from ..evaluation.calibrate import add_calibration
    from ..evaluation.evaluate import evaluate as run_evaluation
    from ..models.weights.modelfile import refuse_exported_name
    from ..progress import Advance, bar, print_result, say
    from ..storage import refuse_existing, refuse_unwritable, refuse_used
    from ..text import printable
    from .tables import evaluation_table

    refuse_used(out)
    if save_model is not None:
        if not calibrate:
            raise RecipeError("--save-model needs --calibrate. Add --calibrate")
        if image_size is not None or crops > 1 or flip:
            raise RecipeError(
                "--save-model calibrates the model for `predict`, which shows it one view of each "
                "image at the model's size. Remove --image-size, --crops and --flip"
            )
        refuse_exported_name(save_model)
        refuse_existing(save_model)
        refuse_unwritable(save_model)
    with ExitStack() as stack:

        def start_bar(batches: int) -> Advance:
            stack.close()  # ends the previous bar
            return stack.enter_context(bar("evaluating", batches))

        result = run_evaluation(
            model,
            data,
            split,
            image_size=image_size,
            crops=crops,
            flip=flip,
            calibrate=calibrate,
            device=device,
            workers=workers,
            progress=start_bar,
        )
        if save_model is not None:
            add_calibration(
                model, data, save_model, device=device, workers=workers, progress=start_bar
            )
    for note in result.notes:
        say(f"Note: {printable(note)}")
    print_result(evaluation_table(result))
    if save_model is not None:
        say(f"wrote {save_model}")
    if out is not None:
        from ..report.files import write_evaluation

        write_evaluation(result, out, model_file=model, device=device)


def _evaluate_exported(file: Path, data: Path, split: str | None, workers: int | None) -> None:
    from contextlib import ExitStack

    from ..export.evaluate import evaluate_exported
    from ..progress import Advance, bar, print_result, say
    from ..text import printable
    from .tables import evaluation_table

    with ExitStack() as stack:

        def start_bar(images: int) -> Advance:
            return stack.enter_context(bar("evaluating", images))

        result = evaluate_exported(file, data, split, workers=workers, progress=start_bar)
    for note in result.notes:
        say(f"Note: {printable(note)}")
    print_result(evaluation_table(result))
