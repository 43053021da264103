"""``resnet export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import MODEL_FILE


def export(
    model: MODEL_FILE,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="onnx, openvino, torch (torch.export), or web (a web page).",
            metavar="TARGET",
        ),
    ] = "onnx",
    input: Annotated[
        str,
        typer.Option(
            help="image: of any size, resized inside the file. crop: already resized and cropped.",
            metavar="KIND",
        ),
    ] = "image",
    data: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="Photos with known classes: some become golden images, and the accuracies of the "
            "model and of the exported file are compared on them.",
            metavar="DATA",
        ),
    ] = None,
    golden: Annotated[
        str,
        typer.Option(
            help="photos: from --data, plus drawn ones. made: only drawn ones.", metavar="K"
        ),
    ] = "photos",
    int8: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="8-bit weights and activations, calibrated on the training images of DATA. "
            "Refused if the accuracy on its test or validation images is worse.",
            metavar="DATA",
        ),
    ] = None,
    license: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The license of the weights, to be stated in the file.", metavar="NAME"),
    ] = None,
    runtime: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="With --to web: the folder dist/ of the npm package onnxruntime-web.",
            metavar="DIR",
        ),
    ] = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="The file to write, or the folder of the page. Default: next to the model.",
            metavar="PATH",
        ),
    ] = None,
) -> None:
    """Export a model for other programs, with images for verifying it."""
    from ..errors import RecipeError
    from ..export.export import export as run_export
    from ..export.web import export_web
    from ..progress import print_result, say

    settings: dict[str, Any] = {
        "data": data,
        "golden": golden,
        "int8": int8,
        "license": license,
    }
    if to == "web":
        if input != "image":
            raise RecipeError("--to web takes images of any size. Remove --input")
        exported = export_web(model, out or model.with_name("web"), runtime=runtime, **settings)
    else:
        if runtime is not None:
            raise RecipeError("--runtime applies only to --to web. Remove it")
        exported = run_export(model, to, out, entrance=input, **settings)
    print_result(str(exported.report))
    for note in exported.notes:
        say(note)
    say(f"wrote {exported.path}")
