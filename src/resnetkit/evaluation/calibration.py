"""Whether a probability means what it says, and the temperature that brings it nearer.

Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

BINS = 15
COLDEST, HOTTEST = 0.01, 100.0
"""Where the temperature is looked for. A network that makes no error would be cooled for ever."""


def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, Any]:
    """The expected calibration error, and the bins that it is made of.

    The answers are sorted by their probability into ``bins`` of equal width, (0, 1/15] to
    (14/15, 1]. The error is the mean distance between probability and accuracy over the bins, each
    weighted with its pictures: 0 where of answers given with 80 % four in five are right.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.

    Returns:
        ``ece`` in [0, 1], and ``bins``, each with ``from``, ``to``, ``pictures``, and the mean
        ``confidence`` and ``accuracy`` of them (None where there is none).
    """
    confidence, predicted = torch.softmax(logits.double(), 1).max(1)
    correct = (predicted == labels).double()
    edges = torch.arange(1, bins, dtype=torch.float64) / bins
    index = torch.bucketize(confidence, edges)  # right=False: a bin includes its upper edge
    count = torch.bincount(index, minlength=bins)
    mean = [torch.bincount(index, x, bins) / count.clamp(min=1) for x in (confidence, correct)]
    gaps = (mean[0] - mean[1]).abs()
    rows = [
        {
            "from": i / bins,
            "to": (i + 1) / bins,
            "pictures": int(count[i]),
            "confidence": float(mean[0][i]) if count[i] else None,
            "accuracy": float(mean[1][i]) if count[i] else None,
        }
        for i in range(bins)
    ]
    return {"ece": float((gaps * count).sum() / len(labels)), "bins": rows}


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature T that makes ``softmax(logits / T)`` most likely.

    The loss is convex in 1 / T: its slope there, the mean of the expected logit less the true
    one, only grows. Its zero is found by halving, to 1e-9 of its value. Dividing all logits by T
    changes no answer, only how sure it is.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.

    Returns:
        T between `COLDEST` and `HOTTEST`; one of these where there is no better one between.
    """
    logits = logits.double()
    true = logits.gather(1, labels[:, None])[:, 0].mean()
    low, high = 1 / HOTTEST, 1 / COLDEST
    while high / low > 1 + 1e-9:
        middle = (low * high) ** 0.5
        expected = (torch.softmax(logits * middle, 1) * logits).sum(1).mean()
        low, high = (middle, high) if expected <= true else (low, middle)
    return float(1 / (low * high) ** 0.5)
