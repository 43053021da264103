"""Several networks trained by one recipe, to compare them: a folder of runs that can be resumed."""

from __future__ import annotations

import csv
import itertools
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from .. import runtime
from ..data import folder
from ..data.folder import Dataset
from ..errors import Interrupted, OutputError, RecipeError
from ..models import summarize
from ..models.registry import get_skeleton
from ..progress import say
from ..storage import write_json, write_text
from ..training import plan, recipe, start
from ..training.loop import train
from ..training.recipe import Recipe
from .images import folder_of

FEWEST_EPOCHS = 4  # with fewer, no curve could be compared


@dataclass(frozen=True)
class Net:
    """A network to compare: what it is called, its architecture, and options of it."""

    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A finished run: errors (0 to 1) by epoch. Those in training are of the augmented pictures,
    while the weights still changed; those of validation are of whole pictures, after the epoch."""

    net: str
    seed: int
    parameters: int
    macs: int
    train_errors: tuple[float, ...]
    val_errors: tuple[float, ...]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "folder": self.folder.name}


@dataclass(frozen=True)
class Comparison:
    """What is trained: the nets, the seeds, the pictures and the recipe, epochs included.

    Its runs have nothing in common but pictures and recipe; so nets and seeds can be added later.
    """

    out: Path
    data: Path
    nets: tuple[Net, ...]
    seeds: tuple[int, ...]
    recipe: Recipe

    def settings(self, net: Net, seed: int) -> dict[str, Any]:
        """What one run changes in the recipe."""
        options = {**self.recipe.model_options, **net.options}
        return {"model": net.model, "model_options": options, "seed": seed}

    def shared(self) -> dict[str, Any]:
        """What all of its runs have in common; a folder goes on only with the same."""
        inside = self.data.is_relative_to(self.out)  # then the folder may move
        data = self.data.relative_to(self.out) if inside else self.data.absolute()
        return {"data": str(data), "recipe": self.recipe.model_dump(mode="json")}

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        nets = {net.name: {"model": net.model, **net.options} for net in self.nets}
        return {**self.shared(), "nets": nets, "seeds": list(self.seeds)}


def compare(
    nets: Sequence[Net],
    data: str,
    out: Path,
    *,
    recipe_name: str | None,
    minutes: float | None,
    seeds: Sequence[int],
    device: str,
    workers: int | None,
    settings: dict[str, Any],
) -> tuple[Comparison, list[Outcome]]:
    """Train every net with every seed, but for the runs that ``out`` already holds.

    Args:
        data: ``digits``, ``cifar10``, an archive of it, or a folder.
        out: one run a net and seed, and ``study.json``, which says what they have in common.
        recipe_name: a built-in recipe or a YAML file; by default `study-digits` for digits and
            `paper-cifar10` for anything else.
        minutes: epochs are as many as fit, and no more than the recipe has; None takes those.
        seeds: each net is trained with each of them.
        settings: other values for fields of the recipe.

    Raises:
        OutputError: ``out`` holds runs on other pictures or by another recipe.
        Interrupted: a signal asked to stop; everything is saved.
    """
    chosen = recipe.load(recipe_name or ("study-digits" if data == "digits" else "paper-cifar10"))
    for name in {"model", "seed"} & set(settings):
        raise RecipeError(f"--set {name}=... is not for a study: it has its nets, and --seeds")
    chosen = chosen.with_settings({**settings, "model": nets[0].model})
    where = runtime.pick(device, chosen.precision)
    images = folder_of(data, out)
    dataset = folder.read_dataset(images)
    chosen = plan.choose(chosen, dataset, where)
    chosen = plan.choose_batch_size(chosen, _training_images(dataset), where)
    chosen = chosen.with_settings({"model": None})  # each run has its own
    comparison = Comparison(out, images, tuple(nets), tuple(seeds), chosen)
    comparison = _begin_or_go_on(comparison, minutes, where)
    write_text(out / "recipe.yaml", comparison.recipe.to_yaml())
    for number, (seed, net) in enumerate(itertools.product(comparison.seeds, comparison.nets)):
        _train(comparison, net, seed, device, workers, show_plan=number == 0)
    return comparison, [read(comparison, net, s) for net in nets for s in comparison.seeds]


def _begin_or_go_on(
    comparison: Comparison, minutes: float | None, where: runtime.Runtime
) -> Comparison:
    """The comparison with its number of epochs: recorded before, or chosen and recorded now."""
    record = comparison.out / "study.json"
    if record.exists():
        saved = json.loads(record.read_text(encoding="utf-8"))
        # One that was written before a field of recipes was thought of means its default.
        written = Recipe.model_validate({}).with_settings({**saved["recipe"], "model": None})
        if minutes is not None:  # the clock may say another number of epochs today
            comparison = _with(comparison, {"epochs": written.epochs})
        before = {"data": saved["data"], **written.model_dump(mode="json")}
        now = comparison.shared()
        now = json.loads(json.dumps({"data": now["data"], **now["recipe"]}))
        wrong = [f"{key} {before[key]}, now {now[key]}" for key in now if now[key] != before[key]]
        if wrong:
            raise OutputError(
                f"{comparison.out} holds runs that cannot be compared with these "
                f"({'; '.join(wrong)}). Take the same, or name another folder with --out"
            )
        return comparison
    if minutes is not None:
        comparison = _with(comparison, {"epochs": _epochs(comparison, minutes, where)})
    write_json(record, comparison.shared())
    return comparison


def _with(comparison: Comparison, settings: dict[str, Any]) -> Comparison:
    return replace(comparison, recipe=comparison.recipe.with_settings(settings))


def _epochs(comparison: Comparison, minutes: float, where: runtime.Runtime) -> int:
    """As many epochs as fit into ``minutes`` for all nets and seeds, from measured steps."""
    dataset = folder.read_dataset(comparison.data)
    val = len(dataset.splits["val"]) if "val" in dataset.splits else 0
    training = _training_images(dataset)
    seconds = 0.0
    for net in comparison.nets:
        settings = {**comparison.settings(net, 0), "epochs": 1}
        chosen = comparison.recipe.with_settings(settings)
        model, _, where = start.begin(chosen, dataset.classes, where)
        seconds += plan.measure(model, chosen, where, training, val)
    fitting = int(60 * minutes / (seconds * len(comparison.seeds)))
    most = plan.choose_epochs(comparison.recipe, training, where).epochs
    assert most is not None
    epochs = max(FEWEST_EPOCHS, min(fitting, most))
    say(f"An epoch of all {len(comparison.nets)} nets takes {seconds:.1f} s; training {epochs}.")
    if fitting < FEWEST_EPOCHS:
        say(f"{minutes:g} minutes are enough for {fitting}; it will take longer.")
    return epochs


def _training_images(data: Dataset) -> int:
    part = data.splits.get("train") or data.splits.get("all")
    return 0 if part is None else len(part)


def _train(
    comparison: Comparison,
    net: Net,
    seed: int,
    device: str,
    workers: int | None,
    *,
    show_plan: bool,
) -> None:
    path = _folder(comparison, net, seed)
    if (path / "metrics.json").exists():
        return
    say(f"\n{net.name}, seed {seed}")
    source = comparison.out / "recipe.yaml"
    try:
        train(
            comparison.data,
            source,
            out=path,
            device=device,
            workers=workers,
            resume=path.exists(),
            show_plan=show_plan,
            **comparison.settings(net, seed),
        )
    except Interrupted as error:
        raise Interrupted(
            "stopped; everything is saved, and the same command goes on", error.exit_code
        ) from error


def _folder(comparison: Comparison, net: Net, seed: int) -> Path:
    return comparison.out / f"{net.name}-seed{seed}"


def read(comparison: Comparison, net: Net, seed: int) -> Outcome:
    """A finished run, from its files."""
    path = _folder(comparison, net, seed)
    with (path / "history.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    classes = json.loads((path / "classes.json").read_text(encoding="utf-8"))
    options = {**comparison.recipe.model_options, **net.options, "num_classes": len(classes)}
    assert comparison.recipe.image_size is not None
    counted = summarize(get_skeleton(net.model, **options), comparison.recipe.image_size)
    errors = {
        part: tuple(round(1 - float(row[f"{part}_accuracy"]), 6) for row in rows)
        for part in ("train", "val")
    }
    return Outcome(
        net.name, seed, counted.parameters, counted.macs, errors["train"], errors["val"], path
    )


def to_dict(comparison: Comparison, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What was compared and found, as JSON."""
    return {**comparison.to_dict(), "outcomes": [one.to_dict() for one in outcomes]}


def table(outcomes: Sequence[Outcome]) -> str:
    """Each net with the errors of its last epoch: mean over the seeds, least and greatest."""
    width = max(len("net"), *(len(one.net) for one in outcomes))
    head = f"{'net':{width}}  {'parameters':>10}  {'mult-adds':>10}"
    lines = [f"{head}  {'training error':>24}  {'validation error':>24}"]
    for name in dict.fromkeys(one.net for one in outcomes):
        one = next(one for one in outcomes if one.net == name)
        errors = [_spread(last_errors(outcomes, name, w)) for w in ("train_errors", "val_errors")]
        numbers = f"{one.parameters:10,}  {one.macs / 1e6:8,.2f} M"
        lines.append(f"{name:{width}}  {numbers}  {errors[0]:>24}  {errors[1]:>24}")
    runs = len({one.seed for one in outcomes})
    return "\n".join([*lines, f"{runs} seed(s), {len(outcomes[0].val_errors)} epochs each"])


def last_errors(outcomes: Sequence[Outcome], net: str, which: str = "train_errors") -> list[float]:
    """The last epoch's ``train_errors`` or ``val_errors`` of a net, a value for each seed."""
    return [getattr(one, which)[-1] for one in outcomes if one.net == net]


def verdicts(outcomes: Sequence[Outcome], groups: Sequence[Sequence[str]]) -> list[str]:
    """What each net's training error is against that of the one before it in its group, in words:
    a difference is one where the seeds do not overlap."""
    lines = []
    for before, after in (pair for names in groups for pair in pairwise(names)):
        old, new = last_errors(outcomes, before), last_errors(outcomes, after)
        found = f"{100 * statistics.fmean(new):.2f} % against {100 * statistics.fmean(old):.2f} %"
        lines.append(f"{after} against {before}: training error {found}, {_compared(old, new)}")
    return lines


def _compared(before: Sequence[float], after: Sequence[float]) -> str:
    if len(before) == 1:
        word = "higher" if after[0] > before[0] else "no higher"
        return f"{word} (one seed; --seeds 0-2 tells it from chance)"
    if min(after) > max(before):
        return "higher with every seed"
    return "lower with every seed" if max(after) < min(before) else "no difference beyond chance"


def _spread(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.2f} %"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"
