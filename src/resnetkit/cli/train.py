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
    folds: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            help="Cross-validate: train once per fold, predict each image with a network that was "
            "not trained on it, then train the final network on all images.",
            metavar="K",
        ),
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
    corrections: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="A suspects.csv with verdicts: keep, relabel or drop.", metavar="CSV"),
    ] = None,
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
    from ..processes import rank
    from ..progress import print_result
    from ..training.folds import is_cross_validation
    from ..training.loop import train as run_training
    from ..training.recipe import Recipe, load_recipe
    from ..training.settings import parse_settings
    from .tables import closing_lines

    fields: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    fields |= parse_settings(settings or [])
    unknown = {key: value for key, value in fields.items() if key not in Recipe.model_fields}
    if unknown:  # such as --set out=FOLDER, which would reach `train` as an option
        load_recipe("fast").with_settings(unknown)  # raises a RecipeError
    fields |= {"device": device, "workers": workers}
    run_options: dict[str, Any] = {"out": out, "resume": resume, "tensorboard": tensorboard}
    if folds is not None and seeds is not None:
        raise typer.BadParameter(
            "--folds cannot be combined with --seeds: to see how folds vary with the seed, run "
            "--folds once per --seed, each with its own --out"
        )
    is_folds = folds is not None or (resume and is_cross_validation(data))
    if is_folds and corrections is not None:
        raise typer.BadParameter(
            "--folds cannot be combined with --corrections: train with --corrections first, and "
            "cross-validate on the split.csv of that run, which has the corrected labels"
        )
    if find_lr:
        if folds is not None or seeds is not None or resume or tensorboard or corrections:
            raise typer.BadParameter(
                "--find-lr cannot be combined with --folds, --seeds, --resume, --tensorboard or "
                "--corrections"
            )
        from ..training.lr_finder import find_lr as run_lr_finder
        from .tables import plot_learning_rates

        print_result(plot_learning_rates(run_lr_finder(data, recipe, **fields), out))
    elif seeds is not None:
        from ..training.seeds import parse_seeds, train_seeds
        from .tables import seeds_table

        run_options |= {"seeds": parse_seeds(seeds), "corrections": corrections}
        sweep = train_seeds(data, recipe, **run_options, **fields)
        print_result(seeds_table(sweep))
    elif is_folds:
        from ..training.folds import train_folds
        from .tables import folds_table

        found = train_folds(data, recipe, folds=folds, **run_options, **fields)
        print_result(folds_table(found))
    else:
        run_options["corrections"] = corrections
        run = run_training(data, recipe, **run_options, **fields)
        if rank() == 0:  # other hosts may not have the run folder
            print_result(closing_lines(run))
