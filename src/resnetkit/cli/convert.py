"""``resnet convert``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import NETWORK_SETTINGS


def convert(
    source: Annotated[
        Path, typer.Argument(help="A ResNet checkpoint (.pth or .safetensors) from any source.")
    ],
    target: Annotated[Path, typer.Argument(help="The model file to write.")],
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Class names: JSON, YAML, CSV, text, the data folder, or `imagenet`."),
    ] = None,
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The architecture, if the file does not determine it."),
    ] = None,
    prefix: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Prefix of the tensor names to use, if the file holds several networks."),
    ] = None,
    head: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Name of the head, if several layers qualify; or `none`."),
    ] = None,
    preprocessing: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            help="How images were prepared, as YAML or JSON; default: a YAML file next to SOURCE."
        ),
    ] = None,
    resize: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Shorter side after resizing.", metavar="PX"),
    ] = None,
    crop: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Side of the center crop.", metavar="PX"),
    ] = None,
    mean: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="For example 0.5,0.5,0.5 or 104,117,124."),
    ] = None,
    std: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="For example 0.5,0.5,0.5 or 1,1,1."),
    ] = None,
    squash: Annotated[
        bool, typer.Option("--squash", help="Both sides were resized to --resize.")
    ] = False,
    interpolation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="bilinear, bicubic or another Pillow filter.", metavar="NAME"),
    ] = None,
    decoder: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="full, or scaled (faster)."),
    ] = None,
    bgr: Annotated[
        bool,
        typer.Option("--bgr", help="Channels are in BGR order, including in --mean and --std."),
    ] = False,
    settings: NETWORK_SETTINGS = None,
) -> None:
    """Convert a checkpoint from another project to a model file."""
    from ..models.weights.convert import convert as run_conversion
    from ..models.weights.prepared import FIELDS
    from ..progress import print_result, say
    from ..storage import refuse_existing
    from ..text import printable
    from ..training.settings import parse_settings

    refuse_existing(target)
    options = parse_settings(settings or [])
    flags: dict[str, Any] = {
        "resize_size": resize,
        "crop_size": crop,
        "mean": mean,
        "std": std,
        "interpolation": interpolation,
        "decoder": decoder,
        "squash": squash or None,
        "bgr": bgr or None,
    }
    prepared = {key: value for key, value in flags.items() if value is not None}
    prepared |= {key: options.pop(key) for key in list(options) if key in FIELDS}
    converted = run_conversion(
        source,
        target,
        architecture=arch,
        options=options,
        classes=classes,
        preprocessing=prepared,
        preprocessing_file=preprocessing,
        prefix=prefix,
        head=head,
    )
    for note in converted.notes:
        say(f"Note: {printable(note)}")
    settings_text = ", ".join(f"{key}={value}" for key, value in converted.options.items())
    print_result(f"{target}: {converted.architecture} ({settings_text})")
