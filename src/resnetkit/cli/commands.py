"""The commands and their flags. Each imports what it needs inside, so that --help is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from . import answers, care, evidence
from .options import DATA, DEVICE, NETWORK_SETTINGS, RECIPE_SETTINGS, WORKERS
from .study import study

app = typer.Typer(
    name="resnet",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="From a folder of photos to a trusted classifier, with the ResNet family.",
)

app.add_typer(study)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        print(f"resnetkit {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the digits and the run.")] = Path("demo"),
) -> None:
    """Train, evaluate and predict on handwritten digits; nothing to download."""
    from .demo import run_demo

    run_demo(out)


@app.command()
def train(
    data: DATA,
    recipe: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A built-in recipe, or a YAML file; by default finetune or fast."),
    ] = None,
    model: Annotated[Optional[str], typer.Option(help="See `resnet models`.")] = None,  # noqa: UP045
    weights: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="To begin with: auto (published ones, if they can be had), none, DEFAULT, "
            "another name, or a file."
        ),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Times through the photos.", metavar="N")
    ] = None,
    batch_size: Annotated[Optional[int], typer.Option(help="Photos a step.", metavar="N")] = None,  # noqa: UP045
    lr: Annotated[Optional[float], typer.Option(help="Greatest learning rate.")] = None,  # noqa: UP045
    image_size: Annotated[
        int | None, typer.Option(help="Side of what the network sees.", metavar="PX")
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="Of the input: 1 (grey), 3 (RGB), 4 (transparency too).", metavar="N"),
    ] = None,
    val_split: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="Share for validation, where no part is given.", metavar="SHARE"),
    ] = None,
    on_error: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="With photos that cannot be read: fail or skip.", metavar="WHAT"),
    ] = None,
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a better.", metavar="N")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same bits.", metavar="N")
    ] = None,
    seeds: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A run for each, as in 0-4; then their mean.", metavar="N-M"),
    ] = None,
    find_lr: Annotated[
        bool, typer.Option("--find-lr", help="Only try learning rates, and draw what they do.")
    ] = False,
    device: DEVICE = "auto",
    workers: WORKERS = None,
    out: Annotated[Optional[Path], typer.Option(help="Folder of the run.")] = None,  # noqa: UP045
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a run; DATA may be its folder.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write the history for TensorBoard too.")
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
    from ..progress import answer
    from ..training.loop import train as run_training
    from ..training.settings import parse_settings
    from .show import closing_lines

    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    given |= parse_settings(settings or [])
    given |= {"device": device, "workers": workers}
    kept: dict[str, Any] = {"out": out, "resume": resume, "tensorboard": tensorboard}
    if find_lr:
        if seeds is not None or resume or tensorboard:
            raise typer.BadParameter("--find-lr goes without --seeds, --resume and --tensorboard")
        from ..training.lr_finder import find_lr as run_finder
        from .show import show_learning_rates

        answer(show_learning_rates(run_finder(data, recipe, **given), out))
    elif seeds is not None:
        from ..training.seeds import parse_seeds, train_seeds
        from .show import seeds_table

        chosen = parse_seeds(seeds)
        answer(seeds_table(train_seeds(data, recipe, seeds=chosen, **kept, **given)))
    else:
        answer(closing_lines(run_training(data, recipe, **kept, **given)))


app.command()(evidence.evaluate)
app.command()(answers.predict)
app.command()(evidence.explain)
app.command()(evidence.report)


@app.command()
def models(
    pattern: Annotated[
        Optional[str],  # noqa: UP045
        typer.Argument(help="A shell pattern, such as 'resnext*'."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights", help="List published weights and their accuracies.")
    ] = False,
) -> None:
    """List the architectures with their parameters and multiply-adds."""
    from .show import model_table, weights_table

    print(weights_table(pattern) if weights else model_table(pattern))


@app.command()
def summary(
    model: Annotated[str, typer.Argument(help="A name that `resnet models` lists.")],
    image_size: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="By default 224, or 32 for the CIFAR nets.", min=1, metavar="PX"),
    ] = None,
    settings: NETWORK_SETTINGS = None,
) -> None:
    """Show the stages of a network: shapes, layers, parameters, multiply-adds."""
    from ..training.settings import parse_settings
    from .show import summary_table

    print(summary_table(model, image_size, parse_settings(settings or [])))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A .pth or .safetensors of anybody's ResNet.")],
    target: Annotated[Path, typer.Argument(help="The model file to write.")],
    classes: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Class names: JSON, YAML, CSV, text, the data folder, or `imagenet`."),
    ] = None,
    arch: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The architecture, where the file cannot tell."),
    ] = None,
    prefix: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which network, if the file has several: what its names begin with."),
    ] = None,
    head: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Which layer is the head, if several could be; or `none`."),
    ] = None,
    preprocessing: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="How images were prepared: YAML, or preprocessor_config.json."),
    ] = None,
    resize: Annotated[Optional[int], typer.Option(help="Shorter side.", metavar="PX")] = None,  # noqa: UP045
    crop: Annotated[Optional[int], typer.Option(help="Side of the centre.", metavar="PX")] = None,  # noqa: UP045
    mean: Annotated[Optional[str], typer.Option(help="As in 0.5,0.5,0.5 or 104,117,124.")] = None,  # noqa: UP045
    std: Annotated[Optional[str], typer.Option(help="As in 0.5,0.5,0.5 or 1,1,1.")] = None,  # noqa: UP045
    squash: Annotated[
        bool, typer.Option("--squash", help="Both sides were resized to --resize.")
    ] = False,
    interpolation: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="bilinear, bicubic or another of Pillow's.", metavar="NAME"),
    ] = None,
    decoder: Annotated[Optional[str], typer.Option(help="full, or scaled: faster.")] = None,  # noqa: UP045
    bgr: Annotated[
        bool, typer.Option("--bgr", help="The network takes blue first; --mean and --std too.")
    ] = False,
    settings: NETWORK_SETTINGS = None,
) -> None:
    """Turn other people's checkpoint into one model file."""
    from ..models.weights.convert import convert as run_conversion
    from ..models.weights.prepared import FIELDS, read_preprocessing
    from ..progress import answer, printable, say
    from ..storage import refuse_existing
    from ..training.settings import parse_settings

    refuse_existing(target)
    options = parse_settings(settings or [])
    prepared: dict[str, Any] = {} if preprocessing is None else read_preprocessing(preprocessing)
    flags = {"resize_size": resize, "crop_size": crop, "mean": mean, "std": std}
    flags |= {"interpolation": interpolation, "decoder": decoder}
    flags |= {"squash": squash or None, "bgr": bgr or None}
    prepared |= {key: value for key, value in flags.items() if value is not None}
    prepared |= {key: options.pop(key) for key in list(options) if key in FIELDS}
    found = run_conversion(
        source,
        target,
        architecture=arch,
        options=options,
        classes=classes,
        preprocessing=prepared,
        prefix=prefix,
        head=head,
    )
    for note in found.notes:
        say(f"Note: {printable(note)}")
    named = ", ".join(f"{key}={value}" for key, value in found.options.items())
    answer(f"{target}: {found.architecture} ({named})")


app.command()(answers.bench)
app.command()(care.check)
