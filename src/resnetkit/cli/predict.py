"""``resnet predict``."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from .options import ANY_MODEL, DEVICE, ROW_FORMAT, WORKERS, refuse_engine_options

if TYPE_CHECKING:
    from ..export.predictor import ExportedPredictor
    from ..inference.predictor import Predictor


def predict(
    model: ANY_MODEL,
    images: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(
            help="Files, folders, globs, s3://BUCKET/PREFIX, @list.txt, @- (paths from standard "
            "input) or - (one image from standard input).",
            metavar="IMAGE...",
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes to list per image.", min=1, metavar="N")] = 5,
    threshold: Annotated[
        float,
        typer.Option(help="Answer `unknown` below this probability.", min=0, max=1),
    ] = 0.0,
    coverage: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Add a set of classes that includes the true class with this probability, such as "
            "0.95.",
            metavar="P",
        ),
    ] = None,
    false_alarms: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Answer `unknown` for strange photos; at most this share of photos of known "
            "classes, such as 0.05, is called unknown.",
            metavar="SHARE",
        ),
    ] = None,
    format: ROW_FORMAT = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="File for the rows (.jsonl or .csv); with --on, a folder.", metavar="FILE"
        ),
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
        typer.Option(
            help="File for `features` (n, C), `sources` (n,) and `model`.", metavar="FILE.npz"
        ),
    ] = None,
    on: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Predict with Ray, on this machine (ray) or a cluster (ray://HOST:PORT), and "
            "write Parquet files to --out. The same command continues a run that was stopped.",
            metavar="RAY",
        ),
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
    if on is not None:
        from .predict_on import predict_on

        unusable = {"--format": format, "--resume": resume, "--save-images": save_images}
        failed = predict_on(
            on,
            model,
            images or [],
            out=out,
            unusable={**unusable, "--embeddings": embeddings},
            settings={
                "top_k": top_k,
                "threshold": threshold,
                "coverage": coverage,
                "false_alarms": false_alarms,
                "engine": engine,
                "precision": precision,
                "device": device,
                "workers": workers,
            },
        )
        raise typer.Exit(3 if failed else 0)
    from ..export.artefact import is_artefact
    from ..inference.rows import columns_for
    from ..progress import say
    from .prediction_writer import PredictionWriter

    predictor: Predictor | ExportedPredictor
    if is_artefact(model):
        from ..export.predictor import ExportedPredictor

        refuse_engine_options(model, engine=engine, precision=precision, device=device)
        predictor = ExportedPredictor(model, note=say)
    else:
        from ..inference.predictor import Predictor
        from ..models.weights.modelfile import check_has_classes

        predictor = Predictor(model, device, engine=engine, precision=precision, note=say)
        if embeddings is None or save_images is not None:
            check_has_classes(predictor.header, model)
    predictor.resolve_uncertainty(coverage, false_alarms)  # before any output is opened
    with ExitStack() as stack:
        writer = stack.enter_context(
            PredictionWriter(
                predictor,
                format and format.value,
                out=out,
                resume=resume,
                image_folder=save_images,
                embeddings=embeddings,
                columns=columns_for(coverage, false_alarms),
                threshold=threshold,
                false_alarms=false_alarms,
            )
        )
        predictions = predictor.stream(
            writer.open_sources(images or []),
            top_k,
            workers=workers,
            threshold=threshold,
            coverage=coverage,
            false_alarms=false_alarms,
            features=embeddings is not None,
            keep_images=save_images is not None,
            first=writer.first,
            total=writer.total,
        )
        failed = writer.write(predictions)
    if failed:
        raise typer.Exit(3)
