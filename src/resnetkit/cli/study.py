"""``resnet study``: measure the paper's claims."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import (
    DEVICE,
    NETWORK_SETTINGS,
    OUTPUT_FORMAT,
    RECIPE_SETTINGS,
    WORKERS,
    OutputFormat,
)

study = typer.Typer(
    name="study",
    no_args_is_help=True,
    help="Measure the paper's claims on this machine: why residual networks work.",
)


def _print(tables: Sequence[object], *, content: object, format: OutputFormat) -> None:
    """Print tables, or ``content`` as one JSON document."""
    from ..progress import print_json, print_result

    if format is OutputFormat.json:
        print_json(content)
    else:
        print_result("\n\n".join(map(str, tables)))


@study.command()
def tables(
    format: OUTPUT_FORMAT = OutputFormat.table,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Also write tables.json and blocks.svg to this folder."),
    ] = None,
) -> None:
    """Compare the shapes, parameters and multiply-adds of networks with the paper's."""
    from ..storage import write_json, write_text
    from ..study.diagrams import draw, paper_blocks
    from ..study.tables import tables as derive_tables

    derived = derive_tables()
    content = [table.to_dict() for table in derived]
    if out is not None:
        write_json(out / "tables.json", content)
        write_text(out / "blocks.svg", draw(paper_blocks()))
    _print(derived, content=content, format=format)


@study.command()
def blocks(
    models: Annotated[
        list[str], typer.Argument(help="Names from `resnet models`.", metavar="MODEL...")
    ],
    out: Annotated[Path, typer.Option(help="The SVG file to write.")] = Path("blocks.svg"),
    settings: NETWORK_SETTINGS = None,
) -> None:
    """Draw the residual blocks of networks as one SVG file."""
    from ..progress import print_result
    from ..storage import write_text
    from ..study.diagrams import draw, named_blocks
    from ..training.settings import parse_settings

    options = parse_settings(settings or [])
    write_text(out, draw([block for name in models for block in named_blocks(name, options)]))
    print_result(str(out))


DATA = Annotated[
    str,
    typer.Option(
        help="digits, cifar10 (downloaded), the path of a CIFAR-10 archive, or a folder.",
        metavar="digits|cifar10|PATH",
    ),
]
MINUTES = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(
        help="Train for this long, but for at most the recipe's epochs.", min=0.1, metavar="MINUTES"
    ),
]
SEEDS = Annotated[
    str, typer.Option(help="Train each network once per seed, such as 0-2.", metavar="N-M")
]
RECIPE = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="Default: study-digits for digits, else paper-cifar10."),
]


def _comparison_options(
    recipe: str | None,
    minutes: float | None,
    *,
    seeds: str,
    device: str,
    workers: int | None,
    settings: list[str] | None,
) -> dict[str, Any]:
    """Return the shared options of the studies that train, as arguments for `runs.compare`."""
    from ..training.seeds import parse_seeds
    from ..training.settings import parse_settings

    return {
        "recipe_name": recipe,
        "minutes": minutes,
        "seeds": parse_seeds(seeds, fewest=1),
        "device": device,
        "workers": workers,
        "settings": parse_settings(settings or []),
    }


@study.command()
def gradients(
    data: DATA = "digits",
    steps: Annotated[int, typer.Option(help="Training steps.", min=1, metavar="N")] = 40,
    seed: Annotated[int, typer.Option(help="Seed for the weights and batches.", metavar="N")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for gradients.json and the figures.")] = Path(
        "study/gradients"
    ),
    format: OUTPUT_FORMAT = OutputFormat.table,
) -> None:
    """Measure how residual connections change activations and gradients by layer."""
    from ..data.preprocessing import Preprocessing
    from ..storage import write_json
    from ..study import figures
    from ..study import gradients as study_gradients
    from ..study.images import resolve_data, training_tensors

    preprocessing = Preprocessing(study_gradients.SIDE, study_gradients.SIDE)
    images, labels = training_tensors(resolve_data(data, out), preprocessing)
    stacks = study_gradients.stacks(images, labels, steps=steps, seed=seed)
    nets = study_gradients.nets(images, labels, steps=steps, seed=seed)
    responses = study_gradients.trained_responses(images, labels, steps=steps, seed=seed)
    figures.stacks(stacks, out / "stacks.svg")
    figures.signals(nets, out / "gradients.svg")
    figures.responses(responses, out / "responses.svg")
    content = study_gradients.to_dict(stacks, nets, responses)
    write_json(out / "gradients.json", content)
    tables = [
        study_gradients.signal_table(stacks, "backward"),
        study_gradients.signal_table(nets),
        study_gradients.response_table(responses),
        f"figures and gradients.json are in {out}",
    ]
    _print(tables, content=content, format=format)


@study.command()
def degradation(
    data: DATA = "digits",
    depths: Annotated[
        str, typer.Option(help="Depths of the networks.", metavar="N,N,...")
    ] = "20,56",
    minutes: MINUTES = None,
    seeds: SEEDS = "0",
    device: DEVICE = "auto",
    workers: WORKERS = None,
    recipe: RECIPE = None,
    settings: RECIPE_SETTINGS = None,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs; the same command continues them.")
    ] = Path("study/degradation"),
    format: OUTPUT_FORMAT = OutputFormat.table,
) -> None:
    """Train plain and residual networks of different depths: section 4.2 and figure 6."""
    from ..storage import write_json
    from ..study import degradation as study_degradation
    from ..study import figures, runs

    numbers = study_degradation.parse_depths(depths)
    groups = study_degradation.groups(numbers)
    options = _comparison_options(
        recipe, minutes, seeds=seeds, device=device, workers=workers, settings=settings
    )
    comparison, outcomes = runs.compare(study_degradation.nets(numbers), data, out, **options)
    responses = study_degradation.response_deviations(comparison, outcomes)
    table6 = study_degradation.table6(comparison, outcomes, device=device)
    figures.errors(outcomes, groups, out / "degradation.svg")
    figures.responses(responses, out / "responses.svg")
    content = study_degradation.to_dict(comparison, outcomes, responses, table6)
    write_json(out / "degradation.json", content)
    tables = [runs.table(outcomes), "\n".join(runs.verdicts(outcomes, groups))]
    if table6:
        tables.append(str(table6))
    tables.append(f"figures and degradation.json are in {out}")
    _print(tables, content=content, format=format)


@study.command()
def shortcuts(
    data: DATA = "digits",
    model: Annotated[str, typer.Option(help="The network to train.")] = "cifar_resnet20",
    minutes: MINUTES = None,
    seeds: SEEDS = "0",
    device: DEVICE = "auto",
    workers: WORKERS = None,
    recipe: RECIPE = None,
    settings: RECIPE_SETTINGS = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="Only count parameters and multiply-adds; do not train.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="Folder for the runs; the same command continues them.")
    ] = Path("study/shortcuts"),
    format: OUTPUT_FORMAT = OutputFormat.table,
) -> None:
    """Measure the cost and benefit of shortcut options A, B and C from table 3."""
    from ..storage import write_json
    from ..study import figures, runs
    from ..study import shortcuts as study_shortcuts

    costs_tables = [
        study_shortcuts.costs("resnet34", 224),
        study_shortcuts.costs("cifar_resnet20", 32),
    ]
    tables: list[object] = [*costs_tables, study_shortcuts.published_errors()]
    content: dict[str, Any] = {"costs": [table.to_dict() for table in costs_tables]}
    if not costs:
        nets = study_shortcuts.nets(model)
        group = [net.name for net in nets]
        options = _comparison_options(
            recipe, minutes, seeds=seeds, device=device, workers=workers, settings=settings
        )
        comparison, outcomes = runs.compare(nets, data, out, **options)
        figures.errors(outcomes, [group], out / "shortcuts.svg")
        content |= runs.to_dict(comparison, outcomes)
        write_json(out / "shortcuts.json", content)
        tables += [
            runs.table(outcomes),
            "\n".join(runs.verdicts(outcomes, [group])),
            f"shortcuts.svg and shortcuts.json are in {out}",
        ]
    _print(tables, content=content, format=format)
