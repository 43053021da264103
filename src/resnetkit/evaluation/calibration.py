"""Calibration: whether a probability means what it says, and the temperature that improves it.

Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from torch import Tensor

BINS = 15
# Bounds of the temperature search: a perfect model has no positive optimum.
COLDEST = 0.01
HOTTEST = 100.0


def reliability(logits: ArrayLike, labels: ArrayLike, bins: int = BINS) -> dict[str, Any]:
    """Return the expected calibration error and its bins.

    Answers are sorted by probability into ``bins`` of equal width, (0, 1/15] to (14/15, 1]. The
    error is the mean distance between confidence and accuracy over the bins, weighted by the
    number of images in each. It is 0 if, for example, 80% of the answers with probability 80% are
    correct.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.

    Returns:
        ``ece`` in [0, 1], and ``bins``. Each bin has ``from``, ``to``, ``pictures``, and the mean
        ``confidence`` and ``accuracy`` of its images (None if it is empty).
    """
    scores = np.asarray(logits, np.float64)
    truth = np.asarray(labels)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    confidence = 1 / weights.sum(1)  # the greatest weight is 1
    correct = scores.argmax(1) == truth
    edges = np.arange(1, bins) / bins
    index = np.searchsorted(edges, confidence)  # from the left: a bin includes its upper edge
    count = np.bincount(index, minlength=bins)
    mean_confidence, accuracy = (
        np.bincount(index, values, bins) / np.maximum(count, 1) for values in (confidence, correct)
    )
    gaps = np.abs(mean_confidence - accuracy)
    rows = [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "pictures": int(count[i]),
            "confidence": float(mean_confidence[i]) if count[i] else None,
            "accuracy": float(accuracy[i]) if count[i] else None,
        }
        for i in range(bins)
    ]
    return {"ece": float((gaps * count).sum() / len(truth)), "bins": rows}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Return the temperature T that maximizes the likelihood of ``softmax(logits / T)``.

    The loss is convex in 1 / T. Its slope, the mean of the expected logit minus the true logit,
    is monotonic, so bisection finds its zero to a relative precision of 1e-9. Dividing all logits
    by T changes the confidence but not the answers.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.

    Returns:
        T between `COLDEST` and `HOTTEST`; one of these if there is no optimum between them.
    """
    import torch

    logits = logits.double()
    true_logit = logits.gather(1, labels[:, None])[:, 0].mean()
    low = 1 / HOTTEST
    high = 1 / COLDEST
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        expected_logit = (torch.softmax(logits * middle, 1) * logits).sum(1).mean()
        if expected_logit <= true_logit:
            low = middle
        else:
            high = middle
    return float(1 / (low * high) ** 0.5)
