"""Comparisons of networks trained with one recipe, in a folder of runs that can be resumed."""

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

from ..data import folder
from ..data.folder import Dataset
from ..errors import Interrupted, OutputError, RecipeError
from ..models import summarize
from ..models.skeleton import get_skeleton
from ..progress import say
from ..runtime import Runtime, pick
from ..storage import write_json, write_text
from ..text import pluralize
from ..training import defaults, initial_weights, measure
from ..training import recipe as recipes
from ..training.loop import train
from ..training.recipe import Recipe
from .images import resolve_data

FEWEST_EPOCHS = 4  # fewer would give no curve to compare


@dataclass(frozen=True)
class Net:
    """A network to compare: its label, architecture and options."""

    name: str
    model: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """A finished run, with its errors (0 to 1) by epoch.

    Training errors are measured on augmented images, while the weights change. Validation errors
    are measured on unaugmented images, after the epoch.
    """

    net: str
    seed: int
    parameters: int
    macs: int
    train_errors: tuple[float, ...]
    val_errors: tuple[float, ...]
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """Return the outcome as JSON data."""
        return {**vars(self), "folder": self.folder.name}


@dataclass(frozen=True)
class Comparison:
    """The nets, seeds, images and recipe (epochs included) of a comparison.

    Its runs share only images and recipe, so nets and seeds can be added later.
    """

    out: Path
    data: Path
    nets: tuple[Net, ...]
    seeds: tuple[int, ...]
    recipe: Recipe

    def settings(self, net: Net, seed: int) -> dict[str, Any]:
        """Return the fields of the recipe that one run changes."""
        options = {**self.recipe.model_options, **net.options}
        return {"model": net.model, "model_options": options, "seed": seed}

    def shared(self) -> dict[str, Any]:
        """Return the settings that all runs share. They must not change between commands."""
        is_inside = self.data.is_relative_to(self.out)  # in that case the folder may be moved
        data = self.data.relative_to(self.out) if is_inside else self.data.absolute()
        return {"data": str(data), "recipe": self.recipe.model_dump(mode="json")}

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON data."""
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
    """Train every net with every seed, except for runs that ``out`` already holds.

    Args:
        nets: the networks to compare.
        data: ``digits``, ``cifar10``, an archive of CIFAR-10, or a folder.
        out: folder for one run per net and seed, and ``study.json`` with their shared settings.
        recipe_name: a built-in recipe or a YAML file; by default `study-digits` for digits and
            `paper-cifar10` for anything else.
        minutes: train as many epochs as fit into this time, at most as many as the recipe sets. If
            None, train all of them.
        seeds: each net is trained with each seed.
        device: as for `train`.
        workers: as for `train`.
        settings: values for fields of the recipe.

    Raises:
        RecipeError: an unknown recipe or field, a field that the study sets, or a recipe whose
            runs cannot be compared.
        OutputError: ``out`` holds runs on different images or with a different recipe.
        Interrupted: a signal asked to stop; everything is saved.
    """
    default_recipe = "study-digits" if data == "digits" else "paper-cifar10"
    recipe = recipes.load_recipe(recipe_name or default_recipe)
    for name in sorted({"model", "seed"} & set(settings)):
        raise RecipeError(
            f"--set {name}=... cannot be used in a study, which sets the nets itself and takes "
            "the seeds from --seeds"
        )
    recipe = recipe.with_settings({**settings, "model": nets[0].model})
    _check_comparable(recipe)
    runtime = pick(device, recipe.precision)
    images = resolve_data(data, out)
    dataset = folder.read_dataset(images)
    recipe = defaults.fill_defaults(recipe, dataset, runtime)
    recipe = defaults.fill_batch_size(recipe, _training_images(dataset), runtime)
    recipe = recipe.with_settings({"model": None})  # each run sets its own
    comparison = Comparison(out, images, nets=tuple(nets), seeds=tuple(seeds), recipe=recipe)
    comparison = _start_or_continue(comparison, minutes, runtime=runtime)
    write_text(out / "recipe.yaml", comparison.recipe.to_yaml())
    for number, (seed, net) in enumerate(itertools.product(comparison.seeds, comparison.nets)):
        _train(comparison, net, seed=seed, device=device, workers=workers, show_plan=number == 0)
    return comparison, [
        read_outcome(comparison, net, seed=seed) for net in nets for seed in comparison.seeds
    ]


def _check_comparable(recipe: Recipe) -> None:
    """Check that all runs have validation images and the same number of epochs.

    Raises:
        RecipeError: the runs cannot be compared.
    """
    if recipe.val_split == 0:
        raise RecipeError("A study compares validation errors: set val_split above 0")
    if recipe.patience is not None:
        raise RecipeError(
            "A study compares networks after the same number of epochs, so they cannot stop "
            f"early: patience is {recipe.patience}. Set it to null"
        )


def _start_or_continue(
    comparison: Comparison, minutes: float | None, *, runtime: Runtime
) -> Comparison:
    """Return the comparison with its number of epochs, from the record or newly recorded.

    Raises:
        OutputError: the record is for different images or a different recipe.
    """
    record = comparison.out / "study.json"
    if record.exists():
        saved = json.loads(record.read_text(encoding="utf-8"))
        # If a recipe field was added after the record was written, it has its default.
        written = Recipe.model_validate({}).with_settings({**saved["recipe"], "model": None})
        if minutes is not None:  # timing may now give a different number of epochs
            comparison = _with_settings(comparison, {"epochs": written.epochs})
        before = {"data": saved["data"], **written.model_dump(mode="json")}
        now = comparison.shared()
        now = json.loads(json.dumps({"data": now["data"], **now["recipe"]}))
        changes = [f"{key} {before[key]}, now {now[key]}" for key in now if now[key] != before[key]]
        if changes:
            raise OutputError(
                f"{comparison.out} holds runs that cannot be compared with these "
                f"({'; '.join(changes)}). Use the same values, or name another folder with --out"
            )
        return comparison
    if minutes is not None:
        comparison = _with_settings(
            comparison, {"epochs": _fitting_epochs(comparison, minutes, runtime=runtime)}
        )
    write_json(record, comparison.shared())
    return comparison


def _with_settings(comparison: Comparison, settings: dict[str, Any]) -> Comparison:
    return replace(comparison, recipe=comparison.recipe.with_settings(settings))


def _fitting_epochs(comparison: Comparison, minutes: float, *, runtime: Runtime) -> int:
    """Return how many epochs fit into ``minutes`` for all nets and seeds, from measured steps."""
    dataset = folder.read_dataset(comparison.data)
    val = len(dataset.splits["val"]) if "val" in dataset.splits else 0
    training = _training_images(dataset)
    seconds = 0.0
    for net in comparison.nets:
        settings = {**comparison.settings(net, 0), "epochs": 1}
        net_recipe = comparison.recipe.with_settings(settings)
        model, _, runtime = initial_weights.initial_network(net_recipe, dataset.classes, runtime)
        seconds += measure.estimate_seconds(model, net_recipe, runtime, training, val)
    fitting = int(60 * minutes / (seconds * len(comparison.seeds)))
    most = defaults.fill_epochs(comparison.recipe, training, runtime).epochs
    assert most is not None
    epochs = max(FEWEST_EPOCHS, min(fitting, most))
    nets = pluralize(len(comparison.nets), "net")
    say(f"One epoch of {nets} takes {seconds:.1f} s; training {pluralize(epochs, 'epoch')}.")
    if fitting < FEWEST_EPOCHS:
        fit = pluralize(fitting, "epoch")
        say(f"Only {fit} would fit into {minutes:g} minutes, so this will take longer.")
    return epochs


def _training_images(data: Dataset) -> int:
    split = data.splits.get("train") or data.splits.get("all")
    return 0 if split is None else len(split)


def _train(
    comparison: Comparison,
    net: Net,
    *,
    seed: int,
    device: str,
    workers: int | None,
    show_plan: bool,
) -> None:
    path = _run_folder(comparison, net, seed=seed)
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
            "Stopped; everything is saved. To continue, run the same command", error.exit_code
        ) from error


def _run_folder(comparison: Comparison, net: Net, *, seed: int) -> Path:
    return comparison.out / f"{net.name}-seed{seed}"


def read_outcome(comparison: Comparison, net: Net, *, seed: int) -> Outcome:
    """Read a finished run from its files."""
    path = _run_folder(comparison, net, seed=seed)
    with (path / "history.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    classes = json.loads((path / "classes.json").read_text(encoding="utf-8"))
    options = {**comparison.recipe.model_options, **net.options, "num_classes": len(classes)}
    assert comparison.recipe.image_size is not None
    summary = summarize(get_skeleton(net.model, **options), comparison.recipe.image_size)
    errors = {
        split: tuple(round(1 - float(row[f"{split}_accuracy"]), 6) for row in rows)
        for split in ("train", "val")
    }
    return Outcome(
        net.name,
        seed,
        parameters=summary.parameters,
        macs=summary.macs,
        train_errors=errors["train"],
        val_errors=errors["val"],
        folder=path,
    )


def to_dict(comparison: Comparison, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the comparison and its outcomes as JSON data."""
    return {**comparison.to_dict(), "outcomes": [outcome.to_dict() for outcome in outcomes]}


def table(outcomes: Sequence[Outcome]) -> str:
    """Return each net with its errors in the last epoch: mean over the seeds, and range."""
    width = max(len("net"), *(len(outcome.net) for outcome in outcomes))
    head = f"{'net':{width}}  {'parameters':>10}  {'mult-adds':>10}"
    lines = [f"{head}  {'training error':>24}  {'validation error':>24}"]
    for name in dict.fromkeys(outcome.net for outcome in outcomes):
        outcome = next(outcome for outcome in outcomes if outcome.net == name)
        errors = [
            _mean_and_range(last_errors(outcomes, name, which=which))
            for which in ("train_errors", "val_errors")
        ]
        numbers = f"{outcome.parameters:10,}  {outcome.macs / 1e6:8,.2f} M"
        lines.append(f"{name:{width}}  {numbers}  {errors[0]:>24}  {errors[1]:>24}")
    seeds = pluralize(len({outcome.seed for outcome in outcomes}), "seed")
    epochs = pluralize(len(outcomes[0].val_errors), "epoch")
    return "\n".join([*lines, f"{seeds}, {epochs} each"])


def last_errors(outcomes: Sequence[Outcome], net: str, which: str = "train_errors") -> list[float]:
    """Return a net's ``train_errors`` or ``val_errors`` in the last epoch, one value per seed."""
    return [getattr(outcome, which)[-1] for outcome in outcomes if outcome.net == net]


def verdicts(outcomes: Sequence[Outcome], groups: Sequence[Sequence[str]]) -> list[str]:
    """Compare, in words, each net's training error with the previous net's in its group.

    Errors count as different only if their ranges over the seeds do not overlap.
    """
    lines = []
    for previous, net in (pair for names in groups for pair in pairwise(names)):
        old = last_errors(outcomes, previous)
        new = last_errors(outcomes, net)
        means = f"{100 * statistics.fmean(new):.2f}% against {100 * statistics.fmean(old):.2f}%"
        lines.append(f"{net} against {previous}: training error {means}, {_verdict(old, new)}")
    return lines


def _verdict(before: Sequence[float], after: Sequence[float]) -> str:
    if len(before) == 1:
        word = "higher" if after[0] > before[0] else "not higher"
        return f"{word} (1 seed; use --seeds 0-2 to see whether the difference is random)"
    if min(after) > max(before):
        return "higher with every seed"
    return (
        "lower with every seed"
        if max(after) < min(before)
        else "no difference beyond the spread of the seeds"
    )


def _mean_and_range(values: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(values):.2f}%"
    if len(values) == 1:
        return mean
    return f"{mean} ({100 * min(values):.2f} to {100 * max(values):.2f})"
