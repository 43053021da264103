from __future__ import annotations

import math

import pytest
import torch

from resnetkit.errors import RecipeError, TrainingError
from resnetkit.training.lr_finder import HIGHEST, LOWEST, find_lr, suggest_rate


def test_the_suggestion_is_below_the_rate_of_the_lowest_loss():
    rates = [10 ** (-6 + step / 10) for step in range(61)]
    # A loss that falls to its minimum at 1e-2 and rises after it, like that of a noisy quadratic.
    losses = [2 + (math.log10(rate) + 2) ** 2 / 4 for rate in rates]
    found = suggest_rate(rates, losses)
    # Smoothing by 0.9 lags by nine steps, so the minimum appears at up to 10**0.9 times its rate.
    assert 1e-2 / 3 <= found.suggestion <= 1e-2 * 10**0.9 / 3
    assert found.losses[0] == pytest.approx(losses[0])
    assert len(found.losses) == len(rates)


def test_smoothing_is_the_weighted_mean_of_what_came_before():
    import numpy as np

    losses = [3.0, 2.0, 2.5, 1.0, 0.5, 1.5]
    found = suggest_rate([1e-6] * 6, losses)
    for last in range(6):
        weights = 0.9 ** np.arange(last, -1, -1)
        assert found.losses[last] == pytest.approx(np.average(losses[: last + 1], weights=weights))


def test_a_loss_that_never_falls_is_an_error():
    with pytest.raises(TrainingError, match="The loss never fell at rates from 1e-06 to 3"):
        suggest_rate([1e-6, 1e-5, 1e-4, 1e-3], [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(TrainingError, match="never fell"):
        suggest_rate([], [])


def test_it_finds_a_rate_that_trains(flat_folder, small, tmp_path):
    before = torch.get_rng_state()
    found = find_lr(flat_folder, **small)
    assert torch.equal(torch.get_rng_state(), before)
    assert LOWEST < found.suggestion < HIGHEST
    assert 1e-4 < found.suggestion < 1.0
    assert min(found.losses) < found.losses[0] / 2
    assert not list(tmp_path.glob("runs/*"))
    assert find_lr(flat_folder, **small) == found  # the same seed gives the same result


def test_it_shows_the_batches_of_the_recipe_and_only_in_one_process(
    flat_folder, small, monkeypatch
):
    for number in range(10):
        (flat_folder / "red" / f"{number:03d}.png").unlink()
    plain, balanced = (find_lr(flat_folder, **small, sampling=s) for s in ("shuffled", "balanced"))
    assert plain.losses != balanced.losses
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match=r"in one process\. Start it without torchrun"):
        find_lr(flat_folder, **small)
