"""The files of an evaluation: metrics, tables, figures, report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from ..evaluation.evaluate import Evaluation
from ..evaluation.metrics import confusion_counts, in_top_k, probabilities
from ..storage import atomic, csv_line, make_output, write_json
from . import html, plots


def write_evaluation(
    evaluation: Evaluation, out: Path, model_file: Path, device: str = "auto"
) -> None:
    """Write the files of an evaluation to the folder ``out``, which is created.

    The files are ``per_class.csv``, ``predictions.csv``, ``confusion_matrix.png``,
    ``reliability.png``, ``report.html`` and ``metrics.json``.
    """
    make_output(out)
    rows = evaluation.metrics["per_class"]
    write_rows(out / "per_class.csv", list(rows[0]), rows=(row.values() for row in rows))
    write_predictions(evaluation, out / "predictions.csv")
    plots.save_confusion_matrix(
        confusion_counts(evaluation.metrics["confusion_matrix"]),
        evaluation.classes,
        path=out / "confusion_matrix.png",
        title=f"{evaluation.split}: accuracy {evaluation.metrics['accuracy']:.2%}",
    )
    calibration = evaluation.metrics["calibration"]
    title = f"{evaluation.split}: calibration error {calibration['ece']:.2%}"
    plots.save_reliability(calibration["bins"], out / "reliability.png", title=title)
    html.write_page(out / "report.html", evaluation, model_file=model_file, device=device)
    write_json(out / "metrics.json", evaluation.metrics)


def write_predictions(
    evaluation: Evaluation, path: Path, more: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """Write a CSV file with one row per image.

    Its columns are the path in the dataset, truth, prediction, probability of the prediction and
    cross-entropy in nats. With more than five classes, ``in_top5`` is 1 if the truth is among the
    five most probable classes.

    Args:
        evaluation: the predictions.
        path: the file.
        more: further columns, by name.
    """
    answers = evaluation.logits.argmax(1)
    shares = probabilities(evaluation.logits).gather(1, answers[:, None])[:, 0]
    losses = torch.nn.functional.cross_entropy(
        evaluation.logits.double(), evaluation.labels, reduction="none"
    )
    columns: list[Sequence[Any]] = [
        evaluation.samples.paths,
        [evaluation.classes[i] for i in evaluation.labels],
        [evaluation.classes[i] for i in answers],
        shares.tolist(),
        losses.tolist(),
    ]
    names = ["path", "truth", "prediction", "probability", "loss"]
    if len(evaluation.classes) > 5:
        names.append("in_top5")
        columns.append([int(hit) for hit in in_top_k(evaluation.logits, evaluation.labels)])
    for name, values in (more or {}).items():
        names.append(name)
        columns.append(values)
    write_rows(path, names, rows=zip(*columns, strict=True))


def write_rows(path: Path, names: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file whose cells no spreadsheet reads as formulas; see `storage.csv_line`.

    Paths that are not UTF-8 keep their bytes.
    """
    with (
        atomic(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        file.writelines(map(csv_line, chain([names], rows)))
