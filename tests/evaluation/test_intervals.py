"""The interval of an accuracy, against scipy, published values, and a simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from resnetkit.evaluation.intervals import effective_count, grouped_interval
from resnetkit.evaluation.metrics import wilson_interval


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_without_copies_it_is_the_published_score_interval(correct, count, low, high):
    """Newcombe 1998, Statistics in Medicine 17:857, table I, method 3."""
    found = grouped_interval(correct, range(count))
    assert found == pytest.approx((low, high), abs=5e-5)
    reference = binomtest(correct, count).proportion_ci(method="wilson")
    assert found == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_groups_of_one_size_count_as_one_image_each():
    groups = [i // 4 for i in range(80)]
    assert effective_count(groups) == 20
    reference = binomtest(15, 20).proportion_ci(method="wilson")
    found = grouped_interval(60, groups)
    assert found == pytest.approx((reference.low, reference.high), abs=1e-12)
    assert effective_count("aaab") == 16 / 10


def test_the_interval_is_not_a_point_when_all_answers_are_correct_or_wrong():
    groups = ["a", "a", "b", "c"]
    low, high = grouped_interval(4, groups)
    assert high == 1
    count = 16 / 6
    assert low == pytest.approx(count / (count + 1.959963984540054**2))  # Wilson's limit at p = 1
    assert grouped_interval(0, groups) == pytest.approx((0, 1 - low))


def group_sizes():
    """Return the sizes of 200 groups: most are single images, a few have up to 12 copies."""
    return np.random.default_rng(1).choice([1, 2, 4, 12], 200, p=[0.6, 0.2, 0.1, 0.1])


def coverage(share, shared, interval):
    """Return the share of 2,000 simulated evaluations whose interval covers the true accuracy.

    Args:
        share: the true accuracy.
        shared: probability that a copy has the outcome of its group instead of its own.
        interval: takes the number of correct images and the group of each image.
    """
    rng = np.random.default_rng(0)
    sizes = group_sizes()
    groups = np.repeat(np.arange(len(sizes)), sizes)
    hits = 0
    for _ in range(2000):
        of_group = (rng.random(len(sizes)) < share)[groups]
        own = rng.random(len(groups)) < share
        correct = np.where(rng.random(len(groups)) < shared, of_group, own)
        low, high = interval(int(correct.sum()), groups.tolist())
        hits += low <= share <= high
    return hits / 2000


def plain(correct, groups):
    return wilson_interval(correct, len(groups))


@pytest.mark.parametrize("share", [0.7, 0.9, 0.97])
def test_coverage(share):
    """The standard error of a coverage is 0.5%."""
    assert coverage(share, 1.0, grouped_interval) == pytest.approx(0.95, abs=0.02)
    assert coverage(share, 0.0, grouped_interval) > 0.99  # wider than needed
    assert coverage(share, 1.0, plain) < 0.80  # if copies counted as separate trials
    assert coverage(share, 0.0, plain) == pytest.approx(0.95, abs=0.02)


def test_kish_gives_the_variance_of_the_mean():
    sizes = group_sizes()
    groups = np.repeat(np.arange(len(sizes)), sizes)
    outcomes = np.random.default_rng(2).random((20000, len(sizes))) < 0.8
    means = outcomes @ sizes / sizes.sum()
    expected = 0.8 * 0.2 / effective_count(groups.tolist())
    assert means.var() == pytest.approx(expected, rel=0.04)
