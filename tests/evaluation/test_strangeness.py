from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp
from sklearn.decomposition import PCA

from resnetkit.evaluation import strangeness
from resnetkit.evaluation.conformal import summarize_scores
from resnetkit.evaluation.strangeness import FeatureModel, balanced_indices, share_less_strange


def draw(count, seed, features=48, classes=4):
    """Features of classes with a common covariance, much wider in some directions."""
    rng = np.random.default_rng([9, 9])
    means = rng.normal(size=(classes, features)) * 2
    mixing = rng.normal(size=(features, 6)) @ np.diag([5, 4, 3, 2, 1.5, 1])
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    noise = rng.normal(size=(count, features)) * 0.3
    values = means[labels] + rng.normal(size=(count, 6)) @ mixing.T + noise
    return values.astype(np.float32), labels


def logits_of(features, seed=3, classes=4):
    weight = np.random.default_rng(seed).normal(size=(48, classes)).astype(np.float32)
    return features @ weight[: features.shape[1]]


def fit(features, labels):
    return FeatureModel.fit(features, logits_of(features, classes=int(labels.max()) + 1), labels)


def test_it_is_the_mahalanobis_distance_of_probabilistic_pca(monkeypatch):
    """scikit-learn's PCA fits the same covariance, and inverts it."""
    monkeypatch.setattr(strangeness, "DIRECTIONS", 6)
    features, labels = draw(600, 1)
    model = fit(features, labels)
    means = np.stack([features[labels == k].mean(0, dtype=float) for k in range(4)])
    residuals = features - means[labels]
    pca = PCA(6, svd_solver="full").fit(residuals)
    # scikit-learn divides by n - 1, which scales all variances by the same factor.
    precision = pca.get_precision() * pca.noise_variance_
    new, _ = draw(50, 2)
    offsets = new[:, None] - means
    expected = np.einsum("nkc,cd,nkd->nk", offsets, precision, offsets).min(1)
    np.testing.assert_allclose(model.distances(new) ** 2, expected, rtol=1e-4)


def test_distance_and_greatest_logit_count_the_same_in_training():
    features, labels = draw(400, 1)
    logits = logits_of(features).astype(float)
    model = fit(features, labels)
    expected = (logits.max(1) - logits.mean(1)).mean()
    # Of m images in a class, each is m / (m - 1) times as far from the mean of the others.
    sizes = np.bincount(labels)[labels]
    distances = model.distances(features) * sizes / (sizes - 1)
    assert model.scale * distances.mean() == pytest.approx(expected)


def test_with_one_image_of_each_class_only_the_logits_count():
    features, _ = draw(4, 1)
    model = FeatureModel.fit(features, logits_of(features), np.arange(4))
    assert model.scale == 0


def test_an_unknown_class_is_strange_and_a_known_one_is_not():
    features, labels = draw(400, 1)
    model = fit(features, labels)
    known, _ = draw(200, 2)
    unknown = known + 3 * np.random.default_rng(5).normal(size=48).astype(np.float32)
    both = np.concatenate([known, unknown])
    logits = logits_of(both)
    found = model.strangeness(both, logits)
    expected = model.scale * model.distances(both) - logsumexp(logits, axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    # Only distances tell them apart here: the logits are random.
    found = model.distances(both)
    truth = np.repeat([0, 1], 200)
    mann_whitney = stats.mannwhitneyu(found[200:], found[:200]).statistic / 200**2
    assert mann_whitney > 0.99
    assert found.shape == truth.shape


@pytest.mark.parametrize("count", [4, 5, 8, 30])
def test_few_images_give_fewer_directions(count):
    features, labels = draw(count, 1)
    model = fit(features, labels)
    assert model.directions.shape == ((count - 4) // 4, 48)
    assert ((model.directions**2).sum(1) < 1).all()
    assert np.isfinite(model.distances(features)).all()


def test_constant_features_do_no_harm():
    features, labels = draw(200, 1)
    features[:, ::2] = 0.0  # as after a ReLU that never fires
    model = fit(features, labels)
    found = model.distances(features)
    assert np.isfinite(found).all()
    features[:, 2:] = 0.0  # only one of the 48 features varies
    features[:, 0] = np.linspace(-1, 1, 200)
    model = fit(features, labels)
    assert 0 < model.distances(features).max() < 0.1
    assert model.distances(np.eye(48)[2:]).min() > 0.9
    flat = fit(np.ones((8, 3), np.float32), np.arange(8) % 2)
    assert flat.scale == 0.0
    assert flat.distances(np.ones((1, 3))).tolist() == [0.0]
    assert flat.distances(np.zeros((1, 3))).tolist() == [3.0**0.5]


def test_the_share_is_one_minus_the_conformal_p_value():
    generator = np.random.default_rng(0)
    validation = generator.exponential(size=99)
    kept = summarize_scores(validation, 2000)
    new = generator.exponential(size=500) * 1.5
    p_value = (1 + (validation[None] >= new[:, None]).sum(1)) / 100
    found = [share_less_strange(kept, 99, value) for value in new]
    np.testing.assert_allclose(found, 1 - p_value)


@pytest.mark.parametrize(("count", "kept"), [(199, 199), (5000, 2000)])
def test_false_alarms_do_not_exceed_the_share(count, kept):
    """A new image of a known class is as strange as any other: false alarms are binomial."""
    alarms = 0
    for seed in range(50):
        scores = np.random.default_rng(seed).gamma(3, size=count + 200)
        summary = summarize_scores(scores[:count], kept)
        assert len(summary) == kept
        shares = np.array([share_less_strange(summary, count, s) for s in scores[count:].tolist()])
        alarms += int((shares >= 1 - 0.05).sum())
    assert 0.035 < alarms / (50 * 200) < 0.06
    # Leaving out quantiles can only make images less strange.
    every = sorted(scores[:count].tolist())
    exact = np.array([share_less_strange(every, count, s) for s in scores[count:].tolist()])
    assert (shares <= exact).all()
    assert (exact - shares).max() <= 1 / kept + 1e-9


def test_the_choice_of_images_is_balanced_and_a_function_of_the_seed(monkeypatch):
    monkeypatch.setattr(strangeness, "IMAGES", 50)
    monkeypatch.setattr(strangeness, "IMAGES_PER_CLASS", 2)
    labels = np.repeat([0, 1, 2], [100, 5, 300])[np.random.default_rng(0).permutation(405)]
    chosen = balanced_indices(labels, 3, seed=1)
    assert (np.diff(chosen) > 0).all()
    counts = np.bincount(labels[chosen])
    assert counts[1] == 5
    assert sorted(counts.tolist()) == [5, 22, 23]
    assert np.array_equal(chosen, balanced_indices(labels, 3, seed=1))
    assert not np.array_equal(chosen, balanced_indices(labels, 3, seed=2))
    many = np.arange(1000) % 100
    assert np.bincount(many[balanced_indices(many, 100, seed=0)]).tolist() == [2] * 100
    assert balanced_indices(labels[:20], 3, seed=0).tolist() == list(range(20))
