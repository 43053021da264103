"""The commands that show what a model file is worth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import DEVICE, MODEL_FILE, WORKERS

SPLIT = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="train, val, test or all; by default test, else val, else all."),
]
IMAGE_SIZE = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Another picture size than the model's own.", min=1, metavar="PX"),
]


def evaluate(
    model: MODEL_FILE,
    data: Annotated[Path, typer.Argument(help="Folder or manifest; classes match by name.")],
    split: SPLIT = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Fit a temperature on the validation split.")
    ] = False,
    crops: Annotated[
        int, typer.Option(help="1, or 10: corners and centre, mirrored too.", metavar="N")
    ] = 1,
    flip: Annotated[
        bool, typer.Option("--flip", help="Average with the mirrored picture.")
    ] = False,
    image_size: IMAGE_SIZE = None,
    device: DEVICE = "auto",
    workers: WORKERS = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for metrics, tables, figures and report.html."),
    ] = None,
) -> None:
    """Measure a model file on photos with known classes."""
    from contextlib import ExitStack

    from ..evaluation.evaluate import evaluate as run_evaluation
    from ..progress import Advance, answer, bar, printable, say
    from ..storage import refuse_used
    from .show import evaluation_table

    refuse_used(out)
    with ExitStack() as shown:

        def progress(batches: int) -> Advance:
            shown.close()  # the bar before it
            return shown.enter_context(bar("evaluating", batches))

        found = run_evaluation(
            model,
            data,
            split,
            image_size=image_size,
            crops=crops,
            flip=flip,
            calibrate=calibrate,
            device=device,
            workers=workers,
            progress=progress,
        )
    for note in found.notes:
        say(f"Note: {printable(note)}")
    answer(evaluation_table(found))
    if out is not None:
        from ..report.files import write_evaluation

        write_evaluation(found, out, model, device)


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_MODEL... [DATA]",
            help="One run or model file, or several to compare; a run knows its data.",
        ),
    ],
    split: SPLIT = None,
    device: DEVICE = "auto",
    workers: WORKERS = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The HTML file; by default report.html in the run, or comparison.html."),
    ] = None,
) -> None:
    """Write one HTML file that shows what a model can do, or compares several."""
    from ..progress import answer, printable, say
    from ..report.sources import write_report

    file, notes = write_report(sources, split, out, device, workers)
    for note in notes:
        say(f"Note: {printable(note)}")
    answer(str(file))


def explain(
    model: MODEL_FILE,
    images: Annotated[
        list[str], typer.Argument(help="Files, folders, globs, @list.txt, or - for one's bytes.")
    ],
    layer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Such as layer3 or layer4.1.conv2; by default the last stage."),
    ] = None,
    class_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--class", help="By default the one that the network answers."),
    ] = None,
    device: DEVICE = "auto",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("explained"),
) -> None:
    """Show where on photos the network found a class (Grad-CAM), as PNG files."""
    from ..evaluation.explain import explain as run_explanation
    from ..inference.images import Unreadable
    from ..progress import answer, printable, say
    from ..report.thumbnails import write_overlays
    from ..storage import refuse_used
    from .show import explanation_line
    from .sources import expand

    refuse_used(out)
    failed = 0

    def readable() -> Iterator[str | bytes]:
        nonlocal failed
        for image in expand(images, say):
            if isinstance(image, Unreadable):
                failed += 1
                answer(f"{printable(image.source)}  ERROR  {printable(image.error)}")
            else:
                yield image

    found = run_explanation(model, readable(), layer=layer, classes=class_name, device=device)
    for item, file in write_overlays(found, out):
        failed += item.error is not None
        answer(explanation_line(item, file))
    if failed:
        raise typer.Exit(3)
