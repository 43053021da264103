"""``resnet explain``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Optional

import typer

from .options import DEVICE, MODEL_FILE


def explain(
    model: MODEL_FILE,
    images: Annotated[
        list[str],
        typer.Argument(
            help="Files, folders, globs, @list.txt or - (one image from standard input).",
            metavar="IMAGE...",
        ),
    ],
    layer: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="For example layer3 or layer4.1.conv2. Default: the last stage."),
    ] = None,
    class_name: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--class", help="The class to explain. Default: the predicted one."),
    ] = None,
    device: DEVICE = "auto",
    out: Annotated[Path, typer.Option(help="Write the PNG files to this folder.")] = Path(
        "explained"
    ),
) -> None:
    """Show where the network sees a class in photos (Grad-CAM), as PNG files."""
    from ..evaluation.explain import explain as run_explanation
    from ..inference.images import Unreadable
    from ..progress import print_result, say
    from ..report.thumbnails import write_overlays
    from ..storage import refuse_used
    from ..text import printable
    from .sources import expand_sources
    from .tables import explanation_line

    refuse_used(out)
    failed = 0

    def readable_images() -> Iterator[str | bytes]:
        nonlocal failed
        for image in expand_sources(images, say):
            if isinstance(image, Unreadable):
                failed += 1
                print_result(f"{printable(image.source)}  ERROR  {printable(image.error)}")
            else:
                yield image

    explanations = run_explanation(
        model, readable_images(), layer=layer, classes=class_name, device=device
    )
    for explanation, file in write_overlays(explanations, out):
        failed += explanation.error is not None
        print_result(explanation_line(explanation, file))
    if failed:
        raise typer.Exit(3)
