"""``resnet evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import DEVICE, IMAGE_SIZE, MODEL_FILE, SPLIT, WORKERS


def evaluate(
    model: MODEL_FILE,
    data: Annotated[
        Path, typer.Argument(help="A folder or CSV manifest. Classes are matched by name.")
    ],
    split: SPLIT = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature on the validation split.")
    ] = False,
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
    from contextlib import ExitStack

    from ..evaluation.evaluate import evaluate as run_evaluation
    from ..progress import Advance, bar, print_result, say
    from ..storage import refuse_used
    from ..text import printable
    from .tables import evaluation_table

    refuse_used(out)
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
    for note in result.notes:
        say(f"Note: {printable(note)}")
    print_result(evaluation_table(result))
    if out is not None:
        from ..report.files import write_evaluation

        write_evaluation(result, out, model_file=model, device=device)
