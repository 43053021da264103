"""Predictions -> numbers. scikit-learn computes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


def accuracy_and_loss(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of right classes in [0, 1], and mean cross-entropy in nats.

    Args:
        logits: ``(n, classes)`` float32.
        labels: ``(n,)`` int64.
    """
    right = int((logits.argmax(1) == labels).sum())
    return right / len(labels), float(F.cross_entropy(logits.double(), labels))


def compute(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """What ``metrics.json`` holds, from the same arguments and the names of the classes.

    Precision and recall of a class that was never predicted, or never came, are 0.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    everyone = np.arange(len(classes))
    truth, predicted = labels.numpy(), logits.argmax(1).numpy()
    precision, recall, f1, support = precision_recall_fscore_support(
        truth, predicted, labels=everyone, zero_division=0.0
    )
    accuracy, loss = accuracy_and_loss(logits, labels)
    came = support > 0
    return {
        "pictures": len(labels),
        "accuracy": accuracy,
        "errors": int((truth != predicted).sum()),
        "loss": loss,
        "macro": {
            "precision": float(precision[came].mean()),
            "recall": float(recall[came].mean()),
            "f1": float(f1[came].mean()),
        },
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
        "confusion_matrix": confusion_matrix(truth, predicted, labels=everyone).tolist(),
    }


def probabilities(logits: Tensor) -> Tensor:
    """``(n, classes)`` logits -> probabilities that sum to 1."""
    return torch.softmax(logits.double(), dim=1).float()
