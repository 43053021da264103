from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
import sklearn.metrics
import torch
from scipy import stats

from resnetkit import storage
from resnetkit.evaluation import metrics


def test_metrics_match_a_hand_computed_example():
    probabilities = torch.tensor(
        [[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.2, 0.5, 0.3]]
    )
    labels = torch.tensor([0, 1, 1, 1])
    found = metrics.compute_metrics(probabilities.log(), labels, ["x", "y", "z"])
    assert found["accuracy"] == 0.75
    assert found["errors"] == 1
    assert found["loss"] == pytest.approx(-sum(map(math.log, [0.7, 0.3, 0.8, 0.5])) / 4, rel=1e-6)
    assert found["confusion_matrix"] == [[1, 0, 0], [1, 2, 0], [0, 0, 0]]
    x, y, z = found["per_class"]
    assert (x["precision"], x["recall"], x["pictures"]) == (0.5, 1.0, 1)
    assert (y["precision"], y["recall"], y["pictures"]) == (1.0, pytest.approx(2 / 3), 3)
    assert (z["precision"], z["recall"], z["pictures"]) == (0.0, 0.0, 0)
    assert found["macro"]["recall"] == pytest.approx(
        (1 + 2 / 3) / 2
    )  # over the classes with images


def test_metrics_match_counting():
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.normal(size=(500, 7)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 7, 500))
    found = metrics.compute_metrics(logits, labels, list("abcdefg"))
    predicted = logits.argmax(1)
    for i, row in enumerate(found["per_class"]):
        hits = int(((predicted == i) & (labels == i)).sum())
        assert row["precision"] == pytest.approx(hits / int((predicted == i).sum()))
        assert row["recall"] == pytest.approx(hits / int((labels == i).sum()))
        assert found["confusion_matrix"][i][i] == hits
    assert metrics.accuracy_and_loss(logits, labels)[0] == found["accuracy"]


def test_probabilities_sum_to_one():
    rows = metrics.probabilities(torch.tensor([[1000.0, 0.0], [-3.0, -3.0]]))
    assert rows.tolist() == [[1.0, 0.0], [0.5, 0.5]]


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 7), (7, 7), (1, 1), (3, 8), (246, 247), (81, 426)]
)
def test_interval_is_wilsons(correct, count):
    theirs = stats.binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert metrics.wilson_interval(correct, count) == pytest.approx(
        (theirs.low, theirs.high), abs=1e-12
    )


def test_top_five_and_balanced_accuracy_match_scikit_learn():
    rng = np.random.default_rng(1)
    logits = torch.from_numpy(rng.normal(size=(300, 9)).astype(np.float32))
    labels = torch.from_numpy(rng.integers(0, 8, 300))  # the last class has no images
    found = metrics.compute_metrics(logits, labels, list("abcdefghi"))
    theirs = sklearn.metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(9))
    assert found["top5_accuracy"] == pytest.approx(theirs)
    predicted = logits.argmax(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the class without images
        theirs = sklearn.metrics.balanced_accuracy_score(labels, predicted)
    assert found["balanced_accuracy"] == pytest.approx(theirs)
    assert "top5_accuracy" not in metrics.compute_metrics(logits[:, :5], labels % 5, list("abcde"))
    assert json.loads(json.dumps(found)) == found


def test_the_confusion_matrix_of_many_classes_is_stored_sparsely(tmp_path):
    names = [f"class {i}" for i in range(1200)]
    labels = torch.arange(1200)
    logits = torch.nn.functional.one_hot((labels * 7) % 1200, 1200).float()
    found = metrics.compute_metrics(logits, labels, names)
    counts = metrics.confusion_counts(found["confusion_matrix"])
    expected = np.zeros((1200, 1200), int)
    np.add.at(expected, (np.arange(1200), np.arange(1200) * 7 % 1200), 1)
    assert np.array_equal(counts, expected)
    storage.write_json(tmp_path / "m.json", found["confusion_matrix"])
    assert (tmp_path / "m.json").stat().st_size < 50_000
    few = metrics.compute_metrics(logits[:3, :3], labels[:3], names[:3])["confusion_matrix"]
    assert metrics.confusion_counts(few).tolist() == few
