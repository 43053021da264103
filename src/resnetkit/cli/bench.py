"""``resnet bench``."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

from .options import ANY_MODEL, DEVICE, OUTPUT_FORMAT, OutputFormat, refuse_for_exported


def bench(
    model: ANY_MODEL,
    engine: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Measure only this engine (repeatable).", metavar="ENGINE"),
    ] = None,
    batch_size: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Images per batch (repeatable).", min=1, metavar="N"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Duration of each measurement.", min=0.01, metavar="S")
    ] = 3.0,
    format: OUTPUT_FORMAT = OutputFormat.table,
    device: DEVICE = "auto",
) -> None:
    """Measure how fast a model predicts on this machine, by engine and batch size."""
    from ..export.artefact import is_artefact
    from ..progress import print_json, print_result, say

    measured: dict[str, Any]
    if is_artefact(model):
        from ..export.bench import exported_bench_table as table
        from ..export.bench import measure_exported

        refuse_for_exported(model, {"--engine": engine, "--device": device != "auto"})
        measured = measure_exported(model, batch_size or None, seconds)
    else:
        from ..inference.bench import bench_table as table
        from ..inference.bench import measure_model

        measured = measure_model(
            model, engine or None, batch_size or None, seconds, device=device, note=say
        )
    if format is OutputFormat.json:
        print_json(measured)
    else:
        print_result(table(measured))
