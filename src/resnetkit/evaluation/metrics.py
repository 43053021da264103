"""Predictions -> metrics. Nothing here needs PyTorch, except `probabilities`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .calibration import reliability

if TYPE_CHECKING:
    from torch import Tensor

NORMAL_95 = 1.959963984540054
"""Number of standard deviations around the mean that cover 95% of a normal distribution."""

DENSE = 100
"""Maximum number of classes for which every cell of the confusion matrix is stored."""


def accuracy_and_loss(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Return the accuracy in [0, 1] and the mean cross-entropy in nats.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
    """
    scores = np.asarray(logits)
    truth = np.asarray(labels)
    accuracy = float((scores.argmax(1) == truth).mean())
    return accuracy, float(-log_softmax(scores)[np.arange(len(truth)), truth].mean())


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return the log of the softmax of ``(n, classes)`` logits, in float64."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs


def wilson_interval(correct: float, count: float, z: float = NORMAL_95) -> tuple[float, float]:
    """Return Wilson's score interval for an accuracy of ``correct`` out of ``count`` images.

    The default ``z`` gives the 95% interval (Wilson 1927, doi:10.2307/2276774). Counts may be
    fractional, like those that `intervals.effective_count` returns.

    >>> [round(x, 3) for x in wilson_interval(95, 100)]
    [0.888, 0.978]
    """
    share = correct / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((center + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return (0.0 if correct == 0 else low), (1.0 if correct == count else high)


def in_top_k(logits: ArrayLike, labels: ArrayLike, k: int = 5) -> np.ndarray:
    """Return ``(n,)`` bool: whether the true class is among the ``k`` most probable."""
    best = np.argsort(-np.asarray(logits), axis=1, kind="stable")[:, :k]
    hits: np.ndarray = (best == np.asarray(labels)[:, None]).any(1)
    return hits


def compute_metrics(logits: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> dict[str, Any]:
    """Return the content of ``metrics.json``.

    A class that was never predicted has precision 0; a class without images has recall 0. Macro
    averages cover the classes that have images, so the macro recall is the balanced accuracy.
    ``top5_accuracy`` is present if there are more than five classes. For ``calibration`` see
    `reliability`; read ``confusion_matrix`` with `confusion_counts`.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
        classes: the class names.
    """
    scores = np.asarray(logits)
    truth = np.asarray(labels)
    count = len(classes)
    predicted = scores.argmax(1)
    matrix = np.bincount(truth * count + predicted, minlength=count**2).reshape(count, count)
    hits = matrix.diagonal()
    support = matrix.sum(1)
    precision = _divide(hits, matrix.sum(0))
    recall = _divide(hits, support)
    f1 = _divide(2 * precision * recall, precision + recall)
    accuracy, loss = accuracy_and_loss(scores, truth)
    errors = int((truth != predicted).sum())
    present = support > 0
    top5 = {}
    if count > 5:
        top5["top5_accuracy"] = float(in_top_k(scores, truth).mean())
    return {
        "pictures": len(truth),
        "accuracy": accuracy,
        "accuracy_interval": list(wilson_interval(len(truth) - errors, len(truth))),
        **top5,
        "errors": errors,
        "loss": loss,
        "balanced_accuracy": float(recall[present].mean()),
        "macro": {
            "precision": float(precision[present].mean()),
            "recall": float(recall[present].mean()),
            "f1": float(f1[present].mean()),
        },
        "calibration": reliability(scores, truth),
        "per_class": [
            {
                "class": name,
                "precision": float(precision[i]),
                "recall": float(recall[i]),
                "f1": float(f1[i]),
                "pictures": int(support[i]),
            }
            for i, name in enumerate(classes)
        ],
        "confusion_matrix": _pack_matrix(matrix),
    }


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the quotients in float64; 0 where the denominator is 0."""
    quotients = np.zeros(len(numerator))
    np.divide(numerator, denominator, out=quotients, where=denominator > 0)
    return quotients


def _pack_matrix(counts: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """Return the matrix as rows or, with more than `DENSE` classes, as its non-zero cells."""
    if len(counts) <= DENSE:
        rows: list[list[int]] = counts.tolist()
        return rows
    cells = [[i, j, int(counts[i, j])] for i, j in np.argwhere(counts).tolist()]
    return {"classes": len(counts), "cells": cells}


def confusion_counts(stored: Any) -> np.ndarray:
    """Return the ``confusion_matrix`` of ``metrics.json`` as ``(classes, classes)`` int64.

    Rows are true classes, columns predictions.

    >>> confusion_counts({"classes": 2, "cells": [[0, 1, 3]]}).tolist()
    [[0, 3], [0, 0]]
    """
    if not isinstance(stored, dict):
        return np.asarray(stored, np.int64)
    counts = np.zeros((stored["classes"], stored["classes"]), np.int64)
    for truth, predicted, count in stored["cells"]:
        counts[truth, predicted] = count
    return counts


def probabilities(logits: Tensor) -> Tensor:
    """Return the float32 softmax of ``(n, classes)`` logits, computed in float64."""
    import torch

    return torch.softmax(logits.double(), dim=1).float()


def confusions(metrics: dict[str, Any]) -> list[tuple[str, str, int]]:
    """Return (truth, prediction, count) for each kind of wrong answer, most frequent first.

    Args:
        metrics: the result of `compute_metrics`.
    """
    names = [row["class"] for row in metrics["per_class"]]
    matrix = confusion_counts(metrics["confusion_matrix"])
    wrong = [(i, j, int(matrix[i, j])) for i, j in np.argwhere(matrix).tolist() if i != j]
    return [(names[i], names[j], n) for i, j, n in sorted(wrong, key=lambda cell: -cell[2])]
