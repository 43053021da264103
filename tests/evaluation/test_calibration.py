from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize, special

from resnetkit.evaluation.calibration import COLDEST, fit_temperature, reliability


@pytest.fixture
def answers():
    """Overconfident logits of 6 classes (three times too large), and classes drawn from them."""
    rng = np.random.default_rng(3)
    logits = rng.normal(size=(2000, 6)) * 1.5
    shares = special.softmax(logits, axis=1)
    labels = np.array([rng.choice(6, p=row) for row in shares])
    return torch.from_numpy(3 * logits).float(), torch.from_numpy(labels)


def test_calibration_error_matches_counting(answers):
    logits, labels = answers
    found = reliability(logits, labels)
    shares = special.softmax(logits.double().numpy(), axis=1)
    error = 0.0
    for i, row in enumerate(found["bins"]):
        low, high = i / 15, (i + 1) / 15
        inside = (shares.max(1) > low) & (shares.max(1) <= high)
        assert row["pictures"] == inside.sum()
        if not inside.any():
            assert row["confidence"] is row["accuracy"] is None
            continue
        correct = (shares.argmax(1) == labels.numpy())[inside]
        assert row["accuracy"] == pytest.approx(correct.mean())
        assert row["confidence"] == pytest.approx(shares.max(1)[inside].mean())
        error += inside.mean() * abs(correct.mean() - shares.max(1)[inside].mean())
    assert found["ece"] == pytest.approx(error)
    assert error > 0.15


def test_bins_include_their_upper_edge():
    logits = torch.tensor([[0.0, 0.0], [200.0, 0.0]])  # probabilities 1/2 and 1
    rows = reliability(logits, torch.tensor([0, 0]), bins=2)["bins"]
    assert [row["pictures"] for row in rows] == [1, 1]
    assert rows[1]["accuracy"] == 1.0


def test_temperature_minimises_the_loss(answers):
    logits, labels = answers

    def loss(temperature: float) -> float:
        scores = logits.double().numpy() / temperature
        true = scores[np.arange(len(labels)), labels.numpy()]
        return float((special.logsumexp(scores, axis=1) - true).mean())

    theirs = optimize.minimize_scalar(
        loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-9}
    )
    found = fit_temperature(logits, labels)
    assert found == pytest.approx(theirs.x, rel=1e-4)
    assert found == pytest.approx(3, rel=0.1)  # the logits are three times too large
    after = reliability(logits / found, labels)["ece"]
    assert after < reliability(logits, labels)["ece"] / 4


def test_a_model_without_errors_gets_the_lowest_temperature():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, torch.tensor([0, 1])) == pytest.approx(COLDEST)
