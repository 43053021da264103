"""Compare several models on the same images: curves, metrics, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import exp, lgamma, log
from pathlib import Path
from typing import Any

from ..data.folder import Split
from ..errors import DataError, RecipeError
from ..evaluation.evaluate import Evaluation, evaluate_split
from ..evaluation.findings import disagreements
from ..evaluation.selection import read_dataset_for, select_split
from .html import count_parameters, curve_panels, recipe_rows, render
from .record import Record
from .thumbnails import plain_thumbnails

MAX_DISAGREEMENTS = 36  # maximum number of images shown


@dataclass(frozen=True)
class Duel:
    """Two models on the same images.

    Args:
        first: the name of one model.
        second: the name of the other.
        only_first: the number of images that only ``first`` classifies correctly.
        only_second: the number of images that only ``second`` classifies correctly.
    """

    first: str
    second: str
    only_first: int
    only_second: int

    @property
    def p_value(self) -> float:
        """The two-sided p-value of McNemar's exact test.

        It is the probability that two equally good models differ by at least this much.
        """
        total = self.only_first + self.only_second
        fewer = min(self.only_first, self.only_second)
        # Use logarithms, because binomial coefficients are huge with many images.
        tail = sum(
            exp(lgamma(total + 1) - lgamma(k + 1) - lgamma(total - k + 1) - total * log(2))
            for k in range(fewer + 1)
        )
        return min(1.0, 2 * tail)


def write_comparison(
    path: Path,
    records: Sequence[Record],
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> tuple[str, ...]:
    """Compare models on ``data``, by default on the data of the first run.

    If the data of the first run is gone, compare only the curves and the metrics that the runs
    recorded; a note says so.

    Returns:
        Notes for the user.

    Raises:
        RecipeError: the models have different classes, or no data is known.
        DataError: the data cannot be evaluated, and the runs have no metrics to compare instead.
    """
    classes = records[0].header.classes
    for record in records[1:]:
        if record.header.classes != classes:
            raise RecipeError(
                f"{record.name} and {records[0].name} have different classes. Models can only be "
                "compared if they have the same classes in the same order"
            )
    names = _unique_names(records)
    evaluations, notes = _evaluate_records(
        records, names, data=data, split=split, device=device, workers=workers
    )
    if evaluations:
        metrics: list[Any] = [evaluation.metrics for evaluation in evaluations]
        images, disagreed = disagreements(evaluations, MAX_DISAGREEMENTS)
        thumbnails = plain_thumbnails(records[0].header, evaluations[0].samples, findings=images)
    else:
        metrics = [record.metrics for record in records]
        images = []
        disagreed = 0
        thumbnails = {}
    render(
        path,
        "comparison.html",
        title=" and ".join(names),
        names=names,
        records=records,
        curves=curve_panels(records, names),
        metrics=metrics,
        parameters=[count_parameters(record) for record in records],
        epochs=[record.header.metrics.get("epoch", "—") for record in records],
        evaluations=evaluations,
        notes=notes,
        duels=_duels(evaluations, names),
        rows=_class_rows(evaluations),
        differences=_recipe_differences(records),
        images=images,
        disagreed=disagreed,
        thumbnails=thumbnails,
    )
    return notes


def _unique_names(records: Sequence[Record]) -> list[str]:
    """Return the names of the models, or their paths if two names are the same."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.file) for record in records]


def _evaluate_records(
    records: Sequence[Record],
    names: Sequence[str],
    *,
    data: Path | None,
    split: str | None,
    device: str,
    workers: int | None,
) -> tuple[list[Evaluation], tuple[str, ...]]:
    """Evaluate each model on the same images; return no evaluations if a run's data is gone."""
    source = data or records[0].evaluated_data
    if source is None:
        raise RecipeError(
            f"{records[0].file} is not in a run folder, so its data is unknown. Name the data "
            "after the models"
        )
    split = split or ("val" if data is None else None)
    notes: list[str] = []
    samples: Split | None = None
    try:
        for record, name in zip(records, names, strict=True):
            dataset = read_dataset_for(record.header, source)
            selected = select_split(dataset, split, header=record.header)
            if samples is None:
                samples = selected.samples
                split = selected.split
                notes += [f"{name}: {note}" for note in selected.notes]
            elif list(selected.samples.paths) != list(samples.paths):
                notes.append(
                    f"measured on the validation images of {names[0]}; {name} has other validation "
                    "images, and may have been trained on some of these"
                )
            else:
                notes += [f"{name}: {note}" for note in selected.notes]
    except DataError as error:
        if data is not None:
            raise
        if any("calibration" not in (record.metrics or {}) for record in records):
            raise
        return [], (f"the models were not compared on images: {error}",)
    assert samples is not None
    evaluations = [
        evaluate_split(record.file, samples, split or "all", device=device, workers=workers)
        for record in records
    ]
    return evaluations, tuple(notes)


def _duels(evaluations: Sequence[Evaluation], names: Sequence[str]) -> list[Duel]:
    correct = [item.logits.argmax(1) == item.labels for item in evaluations]
    return [
        Duel(
            names[i],
            names[j],
            only_first=int((correct[i] & ~correct[j]).sum()),
            only_second=int((correct[j] & ~correct[i]).sum()),
        )
        for i, j in combinations(range(len(evaluations)), 2)
    ]


def _class_rows(evaluations: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """Return the F1 of each model for each class, and the last model's minus the first's."""
    rows = []
    for per_model in zip(*(item.metrics["per_class"] for item in evaluations), strict=True):
        values = [row["f1"] for row in per_model]
        rows.append(
            {
                "class": per_model[0]["class"],
                "pictures": per_model[0]["pictures"],
                "values": values,
                "difference": values[-1] - values[0],
            }
        )
    return rows


def _recipe_differences(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """Return the settings that differ, each with its value in every recipe."""
    recipes = [dict(recipe_rows(record)) for record in records]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    values = [(key, [recipe.get(key, "—") for recipe in recipes]) for key in keys]
    return [(key, row) for key, row in values if len(set(row)) > 1]
