"""Several models on the same pictures: their curves, their numbers, and where they disagree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

from ..data.folder import Split
from ..errors import DataError, RecipeError
from ..evaluation.choice import choose, read_for
from ..evaluation.evaluate import Evaluation, evaluate_split
from ..evaluation.findings import disagreements
from .html import best_row, curves, parameters, recipe_rows, render
from .record import Record
from .thumbnails import plain_thumbnails

SHOWN = 36  # pictures on which they disagree


@dataclass(frozen=True)
class Duel:
    """Two models on the same pictures: how many each alone names rightly, and the probability of
    such a difference or a greater one between equals (the exact test of McNemar)."""

    first: str
    second: str
    only_first: int
    only_second: int

    @property
    def p_value(self) -> float:
        """Two-sided."""
        total, fewer = self.only_first + self.only_second, min(self.only_first, self.only_second)
        tail: int = sum(comb(total, k) for k in range(fewer + 1))
        return min(1.0, float(2 * tail / 2**total))


def write_comparison(
    path: Path,
    records: Sequence[Record],
    data: Path | None = None,
    split: str | None = None,
    device: str = "auto",
    workers: int | None = None,
) -> tuple[str, ...]:
    """Compare models on the data, or on those of the first run; where these are not there any more,
    by their curves and the numbers of their own runs alone, which a note says.

    Returns:
        Notes for the reader.

    Raises:
        RecipeError: they do not know the same classes.
    """
    classes = records[0].header.classes
    for record in records[1:]:
        if record.header.classes != classes:
            raise RecipeError(
                f"{record.name} knows other classes than {records[0].name}: only models with the "
                "same classes, in the same order, can be compared"
            )
    names = _names(records)
    found, notes = _measure(records, names, data, split, device, workers)
    images = disagreements(found, SHOWN) if found else ([], 0)
    thumbnails = plain_thumbnails(records[0].header, found[0].samples, images[0]) if found else {}
    render(
        path,
        "comparison.html",
        title=" and ".join(names),
        names=names,
        records=records,
        curves=curves(records, names),
        metrics=[item.metrics for item in found] if found else [r.metrics for r in records],
        parameters=[parameters(record) for record in records],
        best=[best_row(record) for record in records],
        found=found,
        notes=notes,
        duels=_duels(found, names),
        rows=_class_rows(found),
        differences=_differences(records),
        images=images[0],
        disagreed=images[1],
        shown=thumbnails,
    )
    return notes


def _names(records: Sequence[Record]) -> list[str]:
    """What tells them apart: the name, or where that is the same the path."""
    names = [record.name for record in records]
    return names if len(set(names)) == len(names) else [str(record.file) for record in records]


def _measure(
    records: Sequence[Record],
    names: Sequence[str],
    data: Path | None,
    split: str | None,
    device: str,
    workers: int | None,
) -> tuple[list[Evaluation], tuple[str, ...]]:
    """Each model on the same pictures."""
    where = data or records[0].data
    if where is None:
        raise RecipeError("model files alone do not know their data: name them behind the models")
    chosen_split = split or ("val" if data is None else None)
    notes: list[str] = []
    samples: Split | None = None
    try:
        for record, name in zip(records, names, strict=True):
            choice = choose(read_for(record.header, where), chosen_split, record.header)
            if samples is None:
                samples, chosen_split = choice.samples, choice.split
                notes += [f"{name}: {note}" for note in choice.notes]
            elif list(choice.samples.paths) != list(samples.paths):
                notes.append(
                    f"measured on the validation pictures of {names[0]}; {name} was validated on "
                    "others, and may have been trained on some of these"
                )
            else:
                notes += [f"{name}: {note}" for note in choice.notes]
    except DataError as error:
        if data is not None:
            raise
        if any("calibration" not in (record.metrics or {}) for record in records):
            raise
        return [], (f"the pictures are not compared: {error}",)
    assert samples is not None
    how: dict[str, Any] = {"device": device, "workers": workers}
    label = chosen_split or "all"
    return [evaluate_split(record.file, samples, label, **how) for record in records], tuple(notes)


def _duels(found: Sequence[Evaluation], names: Sequence[str]) -> list[Duel]:
    correct = [item.logits.argmax(1) == item.labels for item in found]
    return [
        Duel(
            names[i],
            names[j],
            int((correct[i] & ~correct[j]).sum()),
            int((correct[j] & ~correct[i]).sum()),
        )
        for i, j in combinations(range(len(found)), 2)
    ]


def _class_rows(found: Sequence[Evaluation]) -> list[dict[str, Any]]:
    """For each class the F1 of every model, and how far they are apart."""
    rows = []
    for same in zip(*(item.metrics["per_class"] for item in found), strict=True):
        values = [row["f1"] for row in same]
        rows.append(
            {
                "class": same[0]["class"],
                "pictures": same[0]["pictures"],
                "values": values,
                "difference": values[-1] - values[0],
            }
        )
    return rows


def _differences(records: Sequence[Record]) -> list[tuple[str, list[str]]]:
    """The settings that are not the same."""
    recipes = [dict(recipe_rows(record)) for record in records]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    values = [(key, [recipe.get(key, "—") for recipe in recipes]) for key in keys]
    return [(key, row) for key, row in values if len(set(row)) > 1]
