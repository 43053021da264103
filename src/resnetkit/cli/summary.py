"""``resnet summary``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

from .options import NETWORK_SETTINGS


def summary(
    model: Annotated[str, typer.Argument(help="A name from `resnet models`.")],
    image_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Default: 224, or 32 for the CIFAR networks.", min=1, metavar="PX"),
    ] = None,
    settings: NETWORK_SETTINGS = None,
) -> None:
    """Show the stages of a network: shapes, layers, parameters, multiply-adds."""
    from ..training.settings import parse_settings
    from .tables import summary_table

    print(summary_table(model, image_size, parse_settings(settings or [])))
