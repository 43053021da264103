"""Results -> text on standard output."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..storage import write_json

if TYPE_CHECKING:
    from ..evaluation.evaluate import Evaluation
    from ..inference.predictor import Prediction


def evaluation_table(found: Evaluation) -> str:
    """Accuracy, then precision, recall and F1 of each class, then what was mistaken for what."""
    from ..evaluation.evaluate import confusions

    metrics = found.metrics
    right = metrics["pictures"] - metrics["errors"]
    width = max(7, *(len(name) for name in found.classes))
    lines = [
        f"{found.split}: accuracy {metrics['accuracy']:.2%} "
        f"({right} of {metrics['pictures']} pictures), loss {metrics['loss']:.4f}",
        "",
        f"{'class':{width}}  precision   recall       F1  pictures",
    ]
    for row in [*metrics["per_class"], {"class": "average", **metrics["macro"]}]:
        pictures = row.get("pictures", metrics["pictures"])
        lines.append(
            f"{row['class']:{width}}  {row['precision']:9.2%}  {row['recall']:7.2%}  "
            f"{row['f1']:7.2%}  {pictures:8}"
        )
    wrong = confusions(found)[:5]
    if wrong:
        text = "; ".join(f"{truth} taken for {answer} {n}x" for truth, answer, n in wrong)
        lines += ["", f"most frequent mistakes: {text}"]
    return "\n".join(lines)


def write_evaluation(found: Evaluation, out: Path) -> None:
    """``metrics.json`` and ``confusion_matrix.png`` in the folder ``out``."""
    from ..report.plots import confusion_matrix

    write_json(out / "metrics.json", found.metrics)
    title = f"{found.split}: {found.metrics['accuracy']:.2%} right"
    matrix = found.metrics["confusion_matrix"]
    confusion_matrix(matrix, found.classes, out / "confusion_matrix.png", title)


def write_predictions(answers: Iterable[Prediction], format: str) -> int:
    """Write answers as they come; returns how many pictures could not be read."""
    failed = 0
    rows = csv.writer(sys.stdout, lineterminator="\n")
    if format == "csv":
        rows.writerow(["source", "class", "probability", "model", "error"])
    for answer in answers:
        failed += answer.error is not None
        if format == "jsonl":
            print(json.dumps(answer.to_dict(), ensure_ascii=False), flush=True)
        elif format == "csv":
            rows.writerow(
                [answer.source, answer.class_name, answer.probability, answer.model, answer.error]
            )
        elif answer.error is not None:
            print(f"{answer.source}  ERROR  {answer.error}", flush=True)
        else:
            others = "  ".join(f"{name} {p:.1%}" for name, p in answer.top[1:])
            best = f"{answer.class_name}  {answer.probability:.2%}"
            print(f"{answer.source}  {best}" + (f"   ({others})" if others else ""), flush=True)
    return failed


def model_table(pattern: str | None) -> str:
    """Name, parameters and multiply-adds of the architectures that match a shell pattern."""
    from ..errors import RecipeError
    from ..models import list_models, summarize
    from ..models.registry import get_skeleton

    names = list_models(include=pattern)
    if not names:
        raise RecipeError(f"No model matches {pattern!r}. All: {', '.join(list_models())}")
    lines = [f"{'model':20}  {'parameters':>12}  {'multiply-adds':>13}  at"]
    for name in names:
        size = 32 if name.startswith("cifar_") else 224
        found = summarize(get_skeleton(name), size)
        lines.append(f"{name:20}  {found.parameters:12,}  {found.macs / 1e9:11.3f} G  {size} px")
    return "\n".join(lines)
