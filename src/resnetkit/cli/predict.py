"""``resnet predict``."""

from __future__ import annotations

from contextlib import ExitStack
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import DEVICE, MODEL_FILE, WORKERS


class RowFormat(str, Enum):  # noqa: UP042
    """The form of the rows that `predict` writes."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


def predict(
    model: MODEL_FILE,
    images: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Files, folders, globs, @list.txt, @- (paths from standard input) or - (one "
            "image from standard input).",
            metavar="IMAGE...",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes to list per image.", min=1, metavar="N")] = 5,
    threshold: Annotated[
        float,
        typer.Option(help="Answer `unknown` below this probability.", min=0, max=1),
    ] = 0.0,
    format: Annotated[
        Optional[RowFormat],  # noqa: UP045
        typer.Option(help="Default: a table on a terminal, JSON Lines in a pipe or file."),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for the rows (.jsonl or .csv).", metavar="FILE"),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the rows in --out FILE.")
    ] = False,
    save_images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for images with the class drawn on them.", metavar="DIR"),
    ] = None,
    embeddings: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="File for `features` (n, C) and `sources` (n,).", metavar="FILE.npz"),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="auto, eager, compile, openvino or onnx.", metavar="ENGINE")
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.", metavar="KIND")] = "auto",
    device: DEVICE = "auto",
    workers: WORKERS = None,
) -> None:
    """Classify photos: print their classes and probabilities."""
    from .sources import check_usage

    check_usage(model, images or [])
    from ..inference.predictor import Predictor
    from ..progress import say
    from .prediction_writer import PredictionWriter

    predictor = Predictor(model, device, engine=engine, precision=precision, note=say)
    with ExitStack() as stack:
        writer = stack.enter_context(
            PredictionWriter(
                predictor,
                format and format.value,
                out=out,
                resume=resume,
                image_folder=save_images,
                embeddings=embeddings,
            )
        )
        predictions = predictor.stream(
            writer.open_sources(images or []),
            top_k,
            workers=workers,
            threshold=threshold,
            features=embeddings is not None,
            keep_images=save_images is not None,
            first=writer.first,
            total=writer.total,
        )
        failed = writer.write(predictions)
    if failed:
        raise typer.Exit(3)
