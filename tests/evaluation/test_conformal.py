from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special, stats

from resnetkit.evaluation.conformal import (
    class_scores,
    kept_rank,
    largest_coverage,
    prediction_sets,
    score_limit,
    summarize_scores,
    true_scores,
)


def draw(count, seed, classes=5, scale=1.5):
    """Overconfident logits, and classes drawn from the true probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(count, classes)) * scale
    shares = special.softmax(logits, axis=1)
    labels = (shares.cumsum(1) < rng.random((count, 1))).sum(1)
    return (3 * logits).astype(np.float32), labels


def test_scores_are_minus_log_probabilities():
    logits, labels = draw(50, 0)
    expected = -special.log_softmax(logits.astype(float), axis=1)
    np.testing.assert_allclose(class_scores(logits), expected, rtol=1e-12)
    np.testing.assert_allclose(true_scores(logits, labels), expected[np.arange(50), labels])


@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.975])
@pytest.mark.parametrize("count", [39, 40, 99, 500])
def test_the_limit_is_the_quantile_of_the_literature(count, coverage):
    """Angelopoulos and Bates, section 1: the empirical quantile of 1 - probability."""
    logits, labels = draw(count, count)
    kept = summarize_scores(true_scores(logits, labels), 2000)
    shares = special.softmax(logits.astype(float), axis=1)
    scores = 1 - shares[np.arange(count), labels]
    level = math.ceil(round((count + 1) * coverage, 6)) / count
    threshold = np.quantile(scores, level, method="inverted_cdf")
    assert score_limit(kept, count, coverage) == pytest.approx(-math.log(1 - threshold), rel=1e-5)

    new, _ = draw(300, 1)
    expected = 1 - special.softmax(new.astype(float), axis=1) <= threshold + 1e-9
    found = prediction_sets(new, score_limit(kept, count, coverage))
    best = np.eye(5, dtype=bool)[new.argmax(1)]
    differing = found != (expected | best)
    assert differing.sum() <= 1  # a class whose score equals the limit before it is rounded up


def test_coverage_lies_within_its_binomial_distribution():
    """Use 100 splits; the coverage of a split is beta-binomial (Angelopoulos and Bates, 3.2)."""
    calibrated, tested, coverage = 200, 1000, 0.9
    rank = math.ceil((calibrated + 1) * coverage)
    exact = stats.betabinom(tested, rank, calibrated + 1 - rank)
    found = []
    for seed in range(100):
        logits, labels = draw(calibrated + tested, [seed, 7])
        scores = true_scores(logits[:calibrated], labels[:calibrated])
        limit = score_limit(summarize_scores(scores, 2000), calibrated, coverage)
        assert limit is not None
        # Without the rule that no set is empty, the theory is exact.
        covered = true_scores(logits[calibrated:], labels[calibrated:]) <= limit
        found.append(int(covered.sum()))
        members = prediction_sets(logits[calibrated:], limit)
        assert members[np.arange(tested), labels[calibrated:]].sum() >= covered.sum()
        assert members.any(1).all()
    error = exact.std() / math.sqrt(len(found))
    assert abs(np.mean(found) - exact.mean()) < 4 * error
    low, high = exact.ppf([0.0005, 0.9995])
    assert sum(low <= value <= high for value in found) >= 99
    assert np.std(found) == pytest.approx(exact.std(), rel=0.35)


def test_of_many_scores_evenly_spaced_quantiles_are_kept():
    scores = np.random.default_rng(0).random(25_000)
    kept = summarize_scores(scores, 2000)
    ordered = np.sort(scores)
    assert len(kept) == 2000
    assert kept == sorted(kept)
    assert kept[-1] == pytest.approx(ordered[-1], rel=2e-6)
    for coverage in (0.1, 0.9, 0.95, 0.999):
        rank = math.ceil(25_001 * coverage)
        limit = score_limit(kept, 25_000, coverage)
        assert limit >= ordered[rank - 1]  # never less coverage than requested
        assert limit <= ordered[min(rank - 1 + 13, 24_999)] + 1e-6  # at most 25,000 / 2,000 ranks
    assert kept_rank(2000, 25_000, kept=2000) == 25_000
    assert score_limit(kept, 25_000, 0.99999) is None


def test_stored_scores_are_rounded_up():
    scores = np.array([0.0, 1e-12, 0.1234561, 0.123456789, 9.9999999, 1234561.0])
    kept = summarize_scores(scores, 10)
    for found, exact in zip(kept, scores.tolist(), strict=True):
        assert exact <= found <= exact * (1 + 1e-5)
        assert len(f"{found:.15g}".replace(".", "").strip("0")) <= 6 or found < 1e-4


@pytest.mark.parametrize("count", [1, 9, 19, 20, 99])
def test_the_largest_coverage_is_possible_and_more_is_not(count):
    scores = [float(i) for i in range(1, count + 1)]
    assert score_limit(scores, count, largest_coverage(count)) == count
    assert score_limit(scores, count, largest_coverage(count) + 1e-6) is None


def test_the_most_probable_class_is_always_in_the_set():
    logits = np.array([[0.1, 0.0, 0.0], [9.0, 0.0, 0.0]])
    assert prediction_sets(logits, 0.01).tolist() == [[True, False, False]] * 2
    assert prediction_sets(logits, 20.0).all()
