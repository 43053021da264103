"""What an evaluation leaves in a folder: numbers, rows, figures, the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..evaluation.evaluate import Evaluation
from ..evaluation.metrics import confusion_counts, in_top, probabilities
from ..storage import atomic, csv_line, make_output, write_json
from . import html, plots


def write_evaluation(found: Evaluation, out: Path, model_file: Path, device: str = "auto") -> None:
    """``per_class.csv``, ``predictions.csv``, ``confusion_matrix.png``, ``reliability.png``,
    ``report.html`` and ``metrics.json`` in the folder ``out``, which is made."""
    make_output(out)
    rows = found.metrics["per_class"]
    write_rows(out / "per_class.csv", list(rows[0]), (row.values() for row in rows))
    write_predictions(found, out / "predictions.csv")
    title = f"{found.split}: {found.metrics['accuracy']:.2%} right"
    matrix = confusion_counts(found.metrics["confusion_matrix"])
    plots.save_confusion_matrix(matrix, found.classes, out / "confusion_matrix.png", title)
    calibration = found.metrics["calibration"]
    title = f"{found.split}: calibration error {calibration['ece']:.2%}"
    plots.save_reliability(calibration["bins"], out / "reliability.png", title)
    html.write_page(out / "report.html", found, model_file, device)
    write_json(out / "metrics.json", found.metrics)


def write_predictions(found: Evaluation, path: Path) -> None:
    """A row a picture: its path as in the data set, truth, prediction and its probability, the
    cross-entropy in nats, and whether the truth is among the five most probable classes (where
    there are more than five)."""
    best = probabilities(found.logits).max(1)
    losses = torch.nn.functional.cross_entropy(
        found.logits.double(), found.labels, reduction="none"
    )
    columns: list[Sequence[Any]] = [
        found.samples.paths,
        [found.classes[i] for i in found.labels],
        [found.classes[i] for i in best.indices],
        best.values.tolist(),
        losses.tolist(),
    ]
    names = ["path", "truth", "prediction", "probability", "loss"]
    if len(found.classes) > 5:
        names.append("in_top5")
        columns.append([int(hit) for hit in in_top(found.logits, found.labels)])
    write_rows(path, names, zip(*columns, strict=True))


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """A CSV file, of which no cell is a formula: `storage.csv_line`. A path that is no text keeps
    its bytes."""
    with (
        atomic(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        file.writelines(map(csv_line, chain([names], rows)))
