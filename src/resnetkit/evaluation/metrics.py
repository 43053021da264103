"""Predictions -> numbers. scikit-learn computes what it knows."""

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
"""Of a normal distribution, 95 % lies within so many standard deviations."""

DENSE = 100
"""Classes up to which all numbers of the confusion matrix are written."""


def accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of right classes in [0, 1], and mean cross-entropy in nats.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
    """
    correct = int((logits.argmax(1) == labels).sum())
    return correct / len(labels), float(F.cross_entropy(logits.double(), labels))


def interval(correct: int, count: int, z: float = NORMAL_95) -> tuple[float, float]:
    """Wilson's score interval of a share: where the true accuracy lies, given that ``right`` of
    ``count`` pictures were right (Wilson 1927, doi:10.2307/2276774). By default of 95 %.

    >>> [round(x, 3) for x in interval(95, 100)]
    [0.888, 0.978]
    """
    share = correct / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2)
    low, high = ((centre + sign * spread) / (1 + z * z / count) for sign in (-1, 1))
    return (0.0 if correct == 0 else low), (1.0 if correct == count else high)


def in_top(logits: Tensor, labels: Tensor, k: int = 5) -> Tensor:
    """``(n,)`` bool: whether the true class is among the ``k`` most probable."""
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(1)


def compute(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What ``metrics.json`` holds, from the same arguments and the names of the classes.

    Precision and recall of a class that was never predicted, or never came, are 0; averages are of
    the classes that came, so that the macro recall is the balanced accuracy. ``top5_accuracy`` is
    there where there are more than five classes. ``calibration`` is described at `reliability`,
    and ``confusion_matrix`` is read with `confusion_counts`.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    everyone = np.arange(len(classes))
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=everyone, zero_division=0.0
    )
    accuracy, loss = accuracy_and_loss(logits, labels)
    errors = int((truth != predicted).sum())
    came = support > 0
    more = {}
    if len(classes) > 5:
        more["top5_accuracy"] = float(in_top(logits, labels).double().mean())
    return {
        "pictures": len(labels),
        "accuracy": accuracy,
        "accuracy_interval": list(interval(len(labels) - errors, len(labels))),
        **more,
        "errors": errors,
        "loss": loss,
        "balanced_accuracy": float(recall[came].mean()),
        "macro": {
            "precision": float(precision[came].mean()),
            "recall": float(recall[came].mean()),
            "f1": float(f1[came].mean()),
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
        "confusion_matrix": _stored(confusion_matrix(truth, predicted, labels=everyone)),
    }


def _stored(counts: np.ndarray) -> list[list[int]] | dict[str, Any]:
    """Rows of numbers; of more than `DENSE` classes, where nearly all are 0, the others alone."""
    if len(counts) <= DENSE:
        rows: list[list[int]] = counts.tolist()
        return rows
    cells = [[i, j, int(counts[i, j])] for i, j in np.argwhere(counts).tolist()]
    return {"classes": len(counts), "cells": cells}


def confusion_counts(stored: Any) -> np.ndarray:
    """The ``confusion_matrix`` of ``metrics.json`` as ``(classes, classes)`` int64, truth by row.

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
    """``(n, classes)`` logits -> probabilities that sum to 1."""
    return torch.softmax(logits.double(), dim=1).float()
