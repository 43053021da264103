"""Predictions -> metrics; scikit-learn computes the standard ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .calibration import reliability

NORMAL_95 = 1.959963984540054
"""Standard deviations around the mean that hold 95 % of a normal distribution."""

DENSE = 100
"""Largest number of classes for which every cell of the confusion matrix is stored."""


def accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy in [0, 1] and the mean cross-entropy in nats.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
    """
    correct = int((logits.argmax(1) == labels).sum())
    return correct / len(labels), float(F.cross_entropy(logits.double(), labels))


def wilson_interval(correct: int, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Return Wilson's score interval for an accuracy of ``correct`` out of ``count`` images.

    The default ``z`` gives the 95 % interval (Wilson 1927, doi:10.2307/2276774).

    >>> [round(x, 3) for x in wilson_interval(95, 100)]
    [0.888, 0.978]
    """
    share = correct / count
    center = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((center + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return (0.0 if correct == 0 else low), (1.0 if correct == count else high)


def in_top_k(logits: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """Return ``(n,)`` bool: whether the true class is among the ``k`` most probable."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(1)


def compute_metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
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
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    class_indices = np.arange(len(classes))
    truth = labels.numpy()
    predicted = logits.argmax(1).numpy()
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=class_indices, zero_division=0.0
    )
    accuracy, loss = accuracy_and_loss(logits, labels)
    errors = int((truth != predicted).sum())
    present = support > 0
    top5 = {}
    if len(classes) > 5:
        top5["top5_accuracy"] = float(in_top_k(logits, labels).double().mean())
    return {
        "pictures": len(labels),
        "accuracy": accuracy,
        "accuracy_interval": list(wilson_interval(len(labels) - errors, len(labels))),
        **top5,
        "errors": errors,
        "loss": loss,
        "balanced_accuracy": float(recall[present].mean()),
        "macro": {
            "precision": float(precision[present].mean()),
            "recall": float(recall[present].mean()),
            "f1": float(f1[present].mean()),
        },
        "calibration": reliability(logits, labels),
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
        "confusion_matrix": _pack_matrix(confusion_matrix(truth, predicted, labels=class_indices)),
    }


def _pack_matrix(counts: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """Return the matrix as rows, or above `DENSE` classes as its non-zero cells."""
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
    return torch.softmax(logits.double(), dim=1).float()
