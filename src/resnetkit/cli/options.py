"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Optional

import typer

DATA = Annotated[
    Path,
    typer.Argument(
        help="A folder with one sub-folder per class or with train/ and val/, a CSV, or shards; "
        "also at s3://BUCKET/PREFIX."
    ),
]
DEVICE = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
IMAGE_SIZE = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option(help="Image size to use instead of the model's.", min=1, metavar="PX"),
]
MODEL_FILE = Annotated[Path, typer.Argument(help="A model.safetensors written by training.")]
ANY_MODEL = Annotated[
    Path, typer.Argument(help="A model file, or a file from `resnet export` (.onnx, .xml or .pt2).")
]
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


def refuse_for_exported(path: Path, options: Mapping[str, object]) -> None:
    """Raise if an option that does not apply to exported files was given.

    Args:
        path: the exported file.
        options: the options that were given; false values mean that they were not.

    Raises:
        RecipeError: at least one such option was given.
    """
    from ..errors import RecipeError

    given = [name for name, value in options.items() if value]
    if given:
        them = "it" if len(given) == 1 else "them"
        raise RecipeError(
            f"{', '.join(given)} cannot be used with an exported file ({path}). Remove {them}, or "
            "use the model file"
        )


def refuse_engine_options(path: Path, **options: str) -> None:
    """Refuse engine options, such as ``device``, for exported files; see `refuse_for_exported`.

    Raises:
        RecipeError: an option is not ``auto``, and the file is exported.
    """
    refuse_for_exported(path, {f"--{name}": v for name, v in options.items() if v != "auto"})


class RowFormat(str, Enum):  # noqa: UP042
    """The format of rows on standard output."""

    table = "table"
    jsonl = "jsonl"
    csv = "csv"


ROW_FORMAT = Annotated[
    Optional[RowFormat],  # noqa: UP045
    typer.Option("--format", help="Default: a table on a terminal, JSON Lines in a pipe or file."),
]


class OutputFormat(str, Enum):  # noqa: UP042
    """The form of a result on standard output."""

    table = "table"
    json = "json"


OUTPUT_FORMAT = Annotated[
    OutputFormat, typer.Option("--format", help="A table, or JSON with all details.")
]
