from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data.folder import Split
from resnetkit.data.paths import Paths
from resnetkit.evaluation import findings
from resnetkit.evaluation.evaluate import Evaluation

CLASSES = ("a", "b", "c", "never")


def make_evaluation(logits, labels):
    paths = Paths(f"{i}.png" for i in range(len(labels)))
    samples = Split(Path(), paths, np.asarray(labels, np.int32))
    return Evaluation(samples, "val", CLASSES, torch.as_tensor(logits).float(), {})


@pytest.fixture
def found():
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 3, 400)
    logits = rng.normal(size=(400, 4)) * 1.5
    logits[np.arange(400), labels] += 2
    return make_evaluation(logits, labels)


def test_worst_errors_have_the_highest_loss(found):
    shares = torch.softmax(found.logits, 1)
    losses = [-float(torch.log(shares[i, label])) for i, label in enumerate(found.samples.labels)]
    wrong = [i for i in range(400) if int(shares[i].argmax()) != found.samples.labels[i]]
    expected = sorted(wrong, key=lambda i: -losses[i])[:9]
    worst = findings.worst_errors(found, 9)
    assert [item.index for item in worst] == expected
    for item in worst:
        assert item.suggested == CLASSES[int(shares[item.index].argmax())]
        assert item.loss == pytest.approx(losses[item.index], rel=1e-4)
        assert item.probability == pytest.approx(float(shares[item.index].max()), rel=1e-4)
        assert not item.correct
        assert item.path == f"{item.index}.png"


def test_least_sure_have_the_lowest_probability(found):
    best = torch.softmax(found.logits, 1).amax(1)
    items = findings.least_sure(found, 400)
    assert [item.index for item in items] == sorted(range(400), key=lambda i: float(best[i]))
    assert {item.correct for item in items} == {True, False}


def test_doubtful_labels_match_the_rule_written_out(found):
    shares, labels = torch.softmax(found.logits.double(), 1).numpy(), found.samples.labels
    threshold = [shares[labels == j, j].mean() if (labels == j).any() else 2.0 for j in range(4)]
    expected = {}
    for i in range(400):
        plausible = [j for j in range(4) if shares[i, j] >= threshold[j]]
        if plausible:
            j = max(plausible, key=lambda j: shares[i, j])
            if j != labels[i]:
                expected[i] = j
    items, count = findings.doubtful_labels(found, 10**6)
    assert {item.index: CLASSES.index(item.suggested) for item in items} == expected
    assert count == len(expected) > 5
    gaps = [item.probability - item.truth_probability for item in items]
    assert gaps == sorted(gaps, reverse=True)
    few, count = findings.doubtful_labels(found, 3)
    assert ([item.index for item in few], count) == ([item.index for item in items[:3]], len(items))


def test_a_planted_wrong_label_comes_first():
    logits = torch.eye(4)[torch.arange(40) % 3] * 6
    labels = (np.arange(40) % 3).copy()
    labels[7] = 2  # it was 1
    items, count = findings.doubtful_labels(make_evaluation(logits, labels), 5)
    assert (count, items[0].index, items[0].truth, items[0].suggested) == (1, 7, "c", "b")


def test_disagreements(found):
    other = make_evaluation(found.logits.flip(0), found.samples.labels)
    items, count = findings.disagreements([found, other], 12)
    mine, theirs = found.logits.argmax(1), other.logits.argmax(1)
    assert count == int((mine != theirs).sum())
    assert len(items) == 12
    for item in items:
        assert item.answers[0][0] == CLASSES[mine[item.index]]
        assert item.answers[1][0] == CLASSES[theirs[item.index]]
        assert item.answers[0][0] != item.answers[1][0]
    assert findings.disagreements([found, found], 5) == ([], 0)


def test_answers_are_those_of_the_logits_where_probabilities_round_to_a_tie():
    """The accuracy is computed from the logits, and the pages must agree with it."""
    close = make_evaluation([[0, 1e-8, -9, -9]], [1])
    assert torch.softmax(close.logits.double(), 1).float()[0, :2].unique().numel() == 1
    (item,) = findings.least_sure(close, 5)
    assert item.correct
    other = make_evaluation([[1e-8, 0, -9, -9]], [1])
    (item,), count = findings.disagreements([close, other], 5)
    assert (count, [answer for answer, _ in item.answers]) == (1, ["b", "a"])
