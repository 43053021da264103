"""What several commands take, in one form and with one help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

DATA = Annotated[
    Path,
    typer.Argument(help="Folder with a sub-folder a class, or with train/ and val/; or a CSV."),
]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
MODEL_FILE = Annotated[Path, typer.Argument(help="A model.safetensors that training wrote.")]
NETWORK_SETTINGS = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="An option of the network.", metavar="KEY=VALUE"),
]
RECIPE_SETTINGS = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="Any other field of the recipe.", metavar="KEY=VALUE"),
]
WORKERS = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Threads that read pictures; by default one a core.", min=0, metavar="N"),
]


class Shown(str, Enum):  # noqa: UP042
    """How a result goes to standard output."""

    table = "table"
    json = "json"


SHOWN = Annotated[Shown, typer.Option("--format", help="A table, or JSON with everything.")]
