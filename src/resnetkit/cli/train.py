"""``resnet train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import DATA, DEVICE, RECIPE_SETTINGS, WORKERS


def train(
    data: DATA,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A built-in recipe or a YAML file. Default: finetune or fast."),
    ] = None,
    model: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The architecture: a name from `resnet models`."),
    ] = None,
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Initial weights: auto (published ones, or those in the package), none, "
            "DEFAULT, another published name, or a file."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the training images.", metavar="N")
    ] = None,
    batch_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="Images per step.", metavar="N"),
    ] = None,
    lr: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Peak learning rate."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side of the network's input.", metavar="PX")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="Input channels: 1 (gray), 3 (RGB) or 4 (RGBA).", metavar="N"),
    ] = None,
    val_split: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(
            help="Share of the images for validation, if the data has no val split.",
            metavar="SHARE",
        ),
    ] = None,
    on_error: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="What to do with unreadable images: fail or skip.", metavar="ACTION"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after N epochs without improvement.", metavar="N")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives bit-identical results.", metavar="N")
    ] = None,
    seeds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Train once per seed, such as 0-4, and report the mean.", metavar="N-M"),
    ] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only try learning rates, and plot the loss.")
    ] = False,
    device: DEVICE = "auto",
    workers: WORKERS = None,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="The run folder. Default: runs/DATA-MODEL."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue a run. DATA may be the run folder.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the history for TensorBoard.")
    ] = False,
    settings: RECIPE_SETTINGS = None,
) -> None:
    """Train a network on a folder of photos."""
    flags = {
        "model": model,
        "weights": weights,
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "image_size": image_size,
        "channels": channels,
        "val_split": val_split,
        "on_error": on_error,
        "patience": patience,
        "seed": seed,
    }
    from ..progress import print_result
    from ..training.loop import train as run_training
    from ..training.settings import parse_settings
    from .tables import closing_lines

    fields: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    fields |= parse_settings(settings or [])
    fields |= {"device": device, "workers": workers}
    run_options: dict[str, Any] = {"out": out, "resume": resume, "tensorboard": tensorboard}
    if find_lr:
        if seeds is not None or resume or tensorboard:
            raise typer.BadParameter(
                "--find-lr cannot be combined with --seeds, --resume or --tensorboard"
            )
        from ..training.lr_finder import find_lr as run_lr_finder
        from .tables import plot_learning_rates

        print_result(plot_learning_rates(run_lr_finder(data, recipe, **fields), out))
    elif seeds is not None:
        from ..training.seeds import parse_seeds, train_seeds
        from .tables import seeds_table

        sweep = train_seeds(data, recipe, seeds=parse_seeds(seeds), **run_options, **fields)
        print_result(seeds_table(sweep))
    else:
        print_result(closing_lines(run_training(data, recipe, **run_options, **fields)))
