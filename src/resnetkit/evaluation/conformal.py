"""Split conformal sets: sets of classes that include the true class with a chosen probability.

The score of a class is -log of its probability. A class belongs to the set for a new image if its
score is not above a limit, which is a quantile of the true-class scores on the validation images.
For any network, the set then includes the true class with at least the chosen probability (the
coverage), on average over new images from the same source as the validation images. (The kept
epoch was selected by its accuracy on the same images, which can weaken this guarantee slightly.)

These are the sets of Sadinle, Lei and Wasserman (LAC, arXiv:1609.00451). Their score is
1 - probability, which sorts images the same way. The rank of the quantile follows Angelopoulos and
Bates (arXiv:2107.07511, section 1). LAC may leave a set empty; here the most probable class always
belongs to the set, which can only raise the coverage. benchmarks/unknown_cpu_2026-11-29.md compares
the sets with adaptive ones (APS and RAPS).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

import numpy as np

from .metrics import log_softmax

DIGITS = 6
"""Significant digits of stored scores."""


def class_scores(logits: np.ndarray) -> np.ndarray:
    """Return the conformal score of each class, ``(n, classes)`` float64, at least 0.

    Args:
        logits: ``(n, classes)``.
    """
    return -log_softmax(logits)


def true_scores(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the conformal scores of the true classes, ``(n,)`` float64.

    Args:
        logits: ``(n, classes)``.
        labels: ``(n,)`` int64.
    """
    scores: np.ndarray = class_scores(logits)[np.arange(len(labels)), labels]
    return scores


def summarize_scores(scores: np.ndarray, most: int) -> list[float]:
    """Sort scores and return at most ``most`` of them, rounded up to `DIGITS` digits.

    If there are more scores, those at evenly spaced ranks are kept, including the largest; see
    `kept_rank`. Like `score_limit`, rounding up errs on the safe side: no set gets smaller, and no
    image is considered stranger.

    Args:
        scores: ``(n,)``.
        most: the maximum number of scores to return.
    """
    ordered = sorted(scores.tolist())
    count = len(ordered)
    kept = min(count, most)
    ranks = [kept_rank(i, count, kept=kept) for i in range(1, kept + 1)]
    return [_round_up(ordered[rank - 1]) for rank in ranks]


def kept_rank(number: int, count: int, *, kept: int) -> int:
    """Return the rank that a kept score had among all scores.

    Args:
        number: which of the kept scores, from 1 to ``kept``; 0 gives rank 0.
        count: the number of images.
        kept: the number of scores that are kept, at most ``count``.

    >>> [kept_rank(i, 3, kept=3) for i in range(4)], [kept_rank(i, 10, kept=4) for i in range(5)]
    ([0, 1, 2, 3], [0, 3, 5, 8, 10])
    """
    return -(-count * number // kept)


def score_limit(scores: Sequence[float], count: int, coverage: float) -> float | None:
    """Return the conformal quantile: the largest score allowed in a set with this coverage.

    It is the score of rank ceil((n + 1) * coverage) among the n images, or of the next rank that is
    kept.

    Args:
        scores: the sorted scores that `summarize_scores` returned.
        count: the number of images, n.
        coverage: above 0 and below 1.

    Returns:
        The limit; None if n images are too few, because the rank would be n + 1.
    """
    # Without the tolerance, a product such as 100 * 0.55 = 55.00000000000001 would skip a rank.
    rank = math.ceil((count + 1) * coverage - 1e-9)
    if rank > count:
        return None
    kept = len(scores)
    rank_of = partial(kept_rank, count=count, kept=kept)
    return scores[bisect_left(range(1, kept + 1), rank, key=rank_of)]


def largest_coverage(count: int) -> float:
    """Return the largest coverage that this many images can guarantee: n / (n + 1)."""
    return count / (count + 1)


def prediction_sets(logits: np.ndarray, limit: float) -> np.ndarray:
    """Return which classes belong to the set of each image, ``(n, classes)`` bool.

    Args:
        logits: ``(n, classes)``.
        limit: the result of `score_limit`.
    """
    sets = class_scores(logits) <= limit
    sets[np.arange(len(sets)), logits.argmax(1)] = True
    return sets


def _round_up(value: float) -> float:
    """Round a number up to `DIGITS` significant digits.

    >>> _round_up(0.12345612), _round_up(0.0), _round_up(-1.23456789), _round_up(123456789.0)
    (0.123457, 0.0, -1.23456, 123457000.0)
    """
    rounded = float(f"{value:.{DIGITS}g}")
    if rounded >= value:
        return rounded
    step = 10.0 ** (math.floor(math.log10(abs(value))) + 1 - DIGITS)
    return float(f"{rounded + step:.{DIGITS}g}")
