"""``resnet study``: the paper, measured. Each command imports what it needs inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from .options import DEVICE, NETWORK_SETTINGS, RECIPE_SETTINGS, SHOWN, WORKERS, Shown

study = typer.Typer(
    name="study",
    no_args_is_help=True,
    help="The paper, measured on this machine: why residual networks work.",
)


def _show(tables: Sequence[object], content: object, form: Shown) -> None:
    """Tables to read, or one JSON document."""
    from ..progress import answer, answer_json

    if form is Shown.json:
        answer_json(content)
    else:
        answer("\n\n".join(map(str, tables)))


@study.command()
def tables(
    format: SHOWN = Shown.table,
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder for tables.json and blocks.svg."),
    ] = None,
) -> None:
    """Shapes, parameters and multiply-adds of built networks beside the paper's."""
    from ..storage import write_json, write_text
    from ..study.diagrams import draw, paper_blocks
    from ..study.tables import tables as derive

    found = derive()
    content = [table.to_dict() for table in found]
    if out is not None:
        write_json(out / "tables.json", content)
        write_text(out / "blocks.svg", draw(paper_blocks()))
    _show(found, content, format)


@study.command()
def blocks(
    models: Annotated[
        list[str], typer.Argument(help="Names that `resnet models` lists.", metavar="MODEL...")
    ],
    out: Annotated[Path, typer.Option(help="The SVG to write.")] = Path("blocks.svg"),
    settings: NETWORK_SETTINGS = None,
) -> None:
    """Draw the blocks of networks as they are built: one SVG."""
    from ..progress import answer
    from ..storage import write_text
    from ..study.diagrams import draw, named_blocks
    from ..training.settings import parse_settings

    options = parse_settings(settings or [])
    write_text(out, draw([drawn for name in models for drawn in named_blocks(name, options)]))
    answer(str(out))


DATA = Annotated[
    str,
    typer.Option(
        help="digits; cifar10 (fetched) or the path of its archive; or a folder.",
        metavar="digits|cifar10|PATH",
    ),
]
MINUTES = Annotated[
    Optional[float],  # noqa: UP045
    typer.Option(help="As many epochs as fit, at most the recipe's.", min=0.1, metavar="MINUTES"),
]
SEEDS = Annotated[
    str, typer.Option(help="Train each net with each of them, as in 0-2.", metavar="N-M")
]
RECIPE = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option(help="By default study-digits for digits, else paper-cifar10."),
]


def _given(
    recipe: str | None,
    minutes: float | None,
    seeds: str,
    device: str,
    workers: int | None,
    settings: list[str] | None,
) -> dict[str, Any]:
    """What the studies that train take alike, as `runs.compare` takes it."""
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
    steps: Annotated[int, typer.Option(help="Steps of training.", min=1, metavar="N")] = 40,
    seed: Annotated[int, typer.Option(help="Of weights and batches.", metavar="N")] = 0,
    out: Annotated[Path, typer.Option(help="Folder for gradients.json and the figures.")] = Path(
        "study/gradients"
    ),
    format: SHOWN = Shown.table,
) -> None:
    """What residual connections do to the signal: vanishing, exploding, and held."""
    from ..storage import write_json
    from ..study import figures
    from ..study import gradients as measured
    from ..study.images import folder_of, training_tensors

    images, labels = training_tensors(folder_of(data, out), measured.SIDE)
    stacks = measured.stacks(images, labels, steps, seed)
    nets = measured.nets(images, labels, steps, seed)
    responses = measured.trained_responses(images, labels, steps, seed)
    figures.stacks(stacks, out / "stacks.svg")
    figures.signals(nets, out / "gradients.svg")
    figures.responses(responses, out / "responses.svg")
    content = measured.to_dict(stacks, nets, responses)
    write_json(out / "gradients.json", content)
    shown = [measured.signal_table(stacks, "backward"), measured.signal_table(nets)]
    shown += [measured.response_table(responses), f"figures and gradients.json are in {out}"]
    _show(shown, content, format)


@study.command()
def degradation(
    data: DATA = "digits",
    depths: Annotated[str, typer.Option(help="Of the nets.", metavar="N,N,...")] = "20,56",
    minutes: MINUTES = None,
    seeds: SEEDS = "0",
    device: DEVICE = "auto",
    workers: WORKERS = None,
    recipe: RECIPE = None,
    settings: RECIPE_SETTINGS = None,
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on there.")] = Path(
        "study/degradation"
    ),
    format: SHOWN = Shown.table,
) -> None:
    """Plain nets get worse with depth, residual ones do not: section 4.2 and figure 6."""
    from ..storage import write_json
    from ..study import degradation as measured
    from ..study import figures, runs

    numbers = measured.parse_depths(depths)
    groups = measured.groups(numbers)
    given = _given(recipe, minutes, seeds, device, workers, settings)
    comparison, found = runs.compare(measured.nets(numbers), data, out, **given)
    responses = measured.response_deviations(comparison, found)
    table6 = measured.table6(comparison, found, device)
    figures.errors(found, groups, out / "degradation.svg")
    figures.responses(responses, out / "responses.svg")
    content = measured.to_dict(comparison, found, responses, table6)
    write_json(out / "degradation.json", content)
    shown = [runs.table(found), "\n".join(runs.verdicts(found, groups))]
    shown += [str(table6)] if table6 else []
    _show([*shown, f"figures and degradation.json are in {out}"], content, format)


@study.command()
def shortcuts(
    data: DATA = "digits",
    model: Annotated[str, typer.Option(help="The net to train.")] = "cifar_resnet20",
    minutes: MINUTES = None,
    seeds: SEEDS = "0",
    device: DEVICE = "auto",
    workers: WORKERS = None,
    recipe: RECIPE = None,
    settings: RECIPE_SETTINGS = None,
    costs: Annotated[
        bool, typer.Option("--costs", help="Only parameters and multiply-adds; no training.")
    ] = False,
    out: Annotated[Path, typer.Option(help="Folder; the same command goes on there.")] = Path(
        "study/shortcuts"
    ),
    format: SHOWN = Shown.table,
) -> None:
    """Options A, B and C of table 3: what they cost, and what they bring."""
    from ..storage import write_json
    from ..study import figures, runs
    from ..study import shortcuts as measured

    tables = [measured.costs("resnet34", 224), measured.costs("cifar_resnet20", 32)]
    shown: list[object] = [*tables, measured.published_errors()]
    content: dict[str, Any] = {"costs": [table.to_dict() for table in tables]}
    if not costs:
        nets = measured.nets(model)
        group = [net.name for net in nets]
        given = _given(recipe, minutes, seeds, device, workers, settings)
        comparison, found = runs.compare(nets, data, out, **given)
        figures.errors(found, [group], out / "shortcuts.svg")
        content |= runs.to_dict(comparison, found)
        write_json(out / "shortcuts.json", content)
        shown += [runs.table(found), "\n".join(runs.verdicts(found, [group]))]
        shown += [f"shortcuts.svg and shortcuts.json are in {out}"]
    _show(shown, content, format)
