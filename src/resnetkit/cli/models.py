"""``resnet models``."""

from __future__ import annotations

from typing import Annotated, Optional

import typer


def models(
    pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="List only names that match this shell pattern, such as 'resnext*'."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="List published weights and their accuracies.")
    ] = False,
) -> None:
    """List the architectures with their parameters and multiply-adds."""
    from .tables import model_table, weights_table

    print(weights_table(pattern) if weights else model_table(pattern))
