from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from resnetkit.evaluation import label_errors
from resnetkit.evaluation.label_errors import NEIGHBORS, THRESHOLD, score_labels


@pytest.fixture
def made():
    """Three clusters of 40; ten labels are wrong, and their margins are low."""
    rng = np.random.default_rng(0)
    true = np.repeat([0, 1, 2], 40)
    centers = np.eye(8)[:3] * 4
    features = (centers[true] + rng.normal(0, 1, (120, 8))).astype(np.float32)
    logits = (np.eye(3)[true] * 3 + rng.normal(0, 1, (120, 3))).astype(np.float32)
    labels = true.copy()
    wrong = rng.choice(120, 10, replace=False)
    labels[wrong] = (labels[wrong] + 1) % 3
    margins = np.where(np.isin(np.arange(120), wrong), -5.0, 2.5) + rng.normal(0, 0.5, 120)
    return (
        {
            "labels": labels,
            "logits": logits,
            "features": features,
            "margins": margins,
        },
        true,
        set(wrong.tolist()),
    )


def reference(labels, features, margins, k=NEIGHBORS):
    """The score of each label, computed image by image, with scikit-learn's neighbors."""
    search = NearestNeighbors(n_neighbors=k, metric="cosine").fit(features.astype(np.float64))
    nearest = search.kneighbors(return_distance=False)
    scores = []
    for i, near in enumerate(nearest):
        votes = [sum(labels[j] == c for j in near) / k for c in range(labels.max() + 1)]
        peers = sum(label == labels[i] for label in labels) - 1
        own = votes.pop(labels[i]) / min(1, peers / k) if peers else None
        agreement = own - max(votes) if peers else 0.0
        scores.append(-margins[i] / np.std(margins) - agreement)
    return nearest, scores


def test_scores_equal_the_reference(made):
    values, _, _ = made
    nearest, expected = reference(values["labels"], values["features"], values["margins"])
    found = score_labels(**values)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
    np.testing.assert_array_equal(found.neighbors, nearest)


def test_wrong_labels_are_suspects_and_the_true_class_is_suggested(made):
    values, true, wrong = made
    suspects = score_labels(**values).suspects()
    assert {suspect.index for suspect in suspects} == wrong
    assert [s.score for s in suspects] == sorted((s.score for s in suspects), reverse=True)
    for suspect in suspects:
        assert suspect.score > THRESHOLD
        assert suspect.label == values["labels"][suspect.index]
        assert suspect.suggested == true[suspect.index]
        assert len(suspect.neighbors) == 3
        assert suspect.index not in suspect.neighbors


def test_correct_labels_are_no_suspects(made):
    values, true, _ = made
    values |= {"labels": true, "margins": np.abs(values["margins"])}
    assert score_labels(**values).suspects() == []


def test_the_final_margins_stand_in_for_missing_ones(made):
    values, _, _ = made
    logits = values["logits"].astype(np.float64)
    final = []
    for row, label in zip(logits.tolist(), values["labels"].tolist(), strict=True):
        own = row.pop(label)
        final.append(own - max(row))
    _, expected = reference(values["labels"], values["features"], np.array(final))
    np.testing.assert_allclose(
        score_labels(**{**values, "margins": None}).scores, expected, rtol=1e-5
    )
    never_shown = np.where(np.arange(120) == 7, np.nan, values["margins"])
    mixed = np.where(np.arange(120) == 7, final[7], values["margins"])
    _, expected = reference(values["labels"], values["features"], mixed)
    found = score_labels(**{**values, "margins": never_shown})
    np.testing.assert_allclose(found.scores, expected, rtol=1e-6)


def test_with_many_images_only_small_margins_are_compared(made, monkeypatch):
    values, _, wrong = made
    every = score_labels(**values)
    monkeypatch.setattr(label_errors, "MOST_CANDIDATES", 30)
    some = score_labels(**values)
    lowest = np.sort(np.argsort(values["margins"])[:30])
    np.testing.assert_array_equal(some.candidates, lowest)
    np.testing.assert_allclose(some.scores[lowest], every.scores[lowest])
    assert {suspect.index for suspect in some.suspects()} == wrong
    rest = np.setdiff1d(np.arange(120), lowest)
    assert (some.scores[rest] <= every.scores[rest] + 1e-12).all()


def test_small_classes_and_datasets(made):
    values, _, _ = made
    labels = values["labels"].copy()
    labels[labels == 2] = 1
    labels[[3, 50, 51]] = 2  # a class of three images, so none has three neighbors in its class
    _, expected = reference(labels, values["features"], values["margins"])
    found = score_labels(**{**values, "labels": labels})
    np.testing.assert_allclose(found.scores, expected, rtol=1e-9)
    few = {key: value[[0, 40, 80]] for key, value in values.items()}
    few["labels"] = np.array([0, 1, 2])  # each image is alone in its class
    found = score_labels(**few)
    np.testing.assert_allclose(found.scores, -few["margins"] / few["margins"].std())
    assert found.neighbors.shape == (3, 2)
