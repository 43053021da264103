"""``resnet verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import OUTPUT_FORMAT, OutputFormat


def verify(
    file: Annotated[Path, typer.Argument(help="A file from `resnet export`: .onnx, .xml or .pt2.")],
    format: OUTPUT_FORMAT = OutputFormat.table,
) -> None:
    """Check that an exported file reproduces its golden images' results on this machine."""
    from ..export.artefact import read_artefact
    from ..export.verify import verify as run_verification
    from ..progress import print_json, print_result, say

    report = run_verification(read_artefact(file))
    if format is OutputFormat.json:
        print_json(report.to_dict())
    else:
        print_result(str(report))
    failure = report.first_failure
    if failure is not None:
        say(f"{file} disagrees, starting at the stage {failure.stage!r}.")
        raise typer.Exit(1)
    say(f"{file} agrees with the model that it was exported from.")
