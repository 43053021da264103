"""The commands that answer: predict and bench. Imported with the command line, so nothing heavy."""

from __future__ import annotations

from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import DEVICE, MODEL_FILE, SHOWN, WORKERS, Shown

PRECISION = Annotated[str, typer.Option(help="auto, fp32 or bf16.", metavar="KIND")]


class Format(str, Enum):  # noqa: UP042
    table = "table"
    jsonl = "jsonl"
    csv = "csv"


def predict(
    model: MODEL_FILE,
    images: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Files, folders, globs, @list.txt, @-, or - (one picture).", metavar="PICTURES..."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes to name.", min=1, metavar="N")] = 5,
    threshold: Annotated[
        float,
        typer.Option(help="Below this probability the class is `unknown`.", min=0, max=1),
    ] = 0.0,
    format: Annotated[
        Optional[Format],  # noqa: UP045
        typer.Option(help="By default a table on a terminal, JSON Lines in a pipe or file."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for the rows (.jsonl or .csv).", metavar="FILE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the rows in --out FILE.")
    ] = False,
    save_images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for the pictures with the class drawn on.", metavar="DIR"),
    ] = None,
    embeddings: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for `features` (n, C) and `sources` (n,).", metavar="FILE.npz"),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager, compile, openvino or onnx.", metavar="ENGINE")
    ] = "auto",
    precision: PRECISION = "auto",
    device: DEVICE = "auto",
    workers: WORKERS = None,
) -> None:
    """Name what is on photos: the classes and their probabilities."""
    from .sources import check_usage

    check_usage(model, images or [])
    from ..inference.predictor import Predictor
    from ..progress import say
    from .writing import Sinks

    predictor = Predictor(model, device, engine, precision, note=say)
    with ExitStack() as stack:
        sinks = stack.enter_context(
            Sinks(predictor, format and format.value, out, resume, save_images, embeddings)
        )
        sources = sinks.sources(images or [])
        answers = predictor.stream(
            sources,
            top_k,
            workers=workers,
            threshold=threshold,
            features=embeddings is not None,
            keep_images=save_images is not None,
            first=sinks.first,
            total=sinks.total,
        )
        failed = sinks.write(answers)
    if failed:
        raise typer.Exit(3)


def bench(
    model: MODEL_FILE,
    engine: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(help="Only this one (may be repeated).", metavar="ENGINE"),
    ] = None,
    batch_size: Annotated[
        Optional[list[int]],  # noqa: UP045
        typer.Option(help="Pictures at once (may be repeated).", min=1, metavar="N"),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Time for each measurement.", min=0.01, metavar="S")
    ] = 3.0,
    format: SHOWN = Shown.table,
    device: DEVICE = "auto",
) -> None:
    """Measure how fast a model answers on this machine, by engine and batch size."""
    from ..inference.bench import bench_table, measure_model
    from ..progress import answer, answer_json, say

    found: dict[str, Any] = measure_model(
        model, engine or None, batch_size or None, seconds, device=device, note=say
    )
    if format is Shown.json:
        answer_json(found)
    else:
        answer(bench_table(found))
