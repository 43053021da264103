"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

DATA = Annotated[
    Path,
    typer.Argument(
        help="A folder with one sub-folder per class or with train/ and val/, or a CSV."
    ),
]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
IMAGE_SIZE = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Image size to use instead of the model's.", min=1, metavar="PX"),
]
MODEL_FILE = Annotated[Path, typer.Argument(help="A model.safetensors written by training.")]
NETWORK_SETTINGS = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="Set an option of the network.", metavar="KEY=VALUE"),
]
RECIPE_SETTINGS = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--set", help="Set any other field of the recipe.", metavar="KEY=VALUE"),
]
SPLIT = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="train, val, test or all. Default: test, else val, else all."),
]
WORKERS = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Threads that read images. Default: one per core.", min=0, metavar="N"),
]


class OutputFormat(str, Enum):  # noqa: UP042
    """The form of a result on standard output."""

    table = "table"
    json = "json"


OUTPUT_FORMAT = Annotated[
    OutputFormat, typer.Option("--format", help="A table, or JSON with all details.")
]
