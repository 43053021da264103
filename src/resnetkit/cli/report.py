"""``resnet report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import DEVICE, SPLIT, WORKERS


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN_OR_MODEL... [DATA]",
            help="One run folder or model file, or several to compare. Runs record their data, so "
            "they do not need DATA.",
        ),
    ],
    split: SPLIT = None,
    device: DEVICE = "auto",
    workers: WORKERS = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="The HTML file to write. Default: report.html in the run, or comparison.html."
        ),
    ] = None,
) -> None:
    """Write an HTML report on one model, or a comparison of several."""
    from ..progress import print_result, say
    from ..report.sources import write_report
    from ..text import printable

    file, notes = write_report(sources, split, out=out, device=device, workers=workers)
    for note in notes:
        say(f"Note: {printable(note)}")
    print_result(str(file))
