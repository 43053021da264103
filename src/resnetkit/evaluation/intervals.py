"""Confidence intervals for an accuracy when some images are duplicates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

from .metrics import NORMAL_95, wilson_interval


def effective_count(groups: Iterable[Hashable]) -> float:
    """Return how many independent images are as informative as these, by Kish's formula.

    For groups of sizes m, it is ``(sum of m)^2 / (sum of m^2)``: the number of images if every
    group is a single image, and the number of groups if all have the same size (Kish 1965, "Survey
    Sampling", section 8.2: the design effect for a correlation of 1 within groups).

    >>> effective_count(["a", "b", "c"]), effective_count(["a", "a", "b", "b"])
    (3.0, 2.0)

    Args:
        groups: the group of each image; at least one image.
    """
    sizes = Counter(groups).values()
    return sum(sizes) ** 2 / sum(size * size for size in sizes)


def grouped_interval(
    correct: int, groups: Iterable[Hashable], z: float = NORMAL_95
) -> tuple[float, float]:
    """Return Wilson's score interval for an accuracy on images that come in groups of copies.

    Copies are usually all correct or all wrong, so they are not separate trials. The interval is
    that of `effective_count` independent images. It has the right width if copies always share
    their outcome, is wider than needed if they do not, and equals `metrics.wilson_interval` if
    there are no copies. A bootstrap over groups would give a single point when every answer is
    correct.

    Args:
        correct: number of images that were classified correctly.
        groups: the group of each image; at least one image.
        z: number of standard deviations; the default gives the 95% interval.
    """
    groups = list(groups)
    count = effective_count(groups)
    return wilson_interval(count * (correct / len(groups)), count, z)
