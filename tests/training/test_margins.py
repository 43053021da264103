"""The margins of training images: their values, their sums, and how resuming restores them."""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from resnetkit import train
from resnetkit.training import checkpoint, loop
from resnetkit.training.checkpoint import Snapshot
from resnetkit.training.margins import Margins, label_margins
from resnetkit.training.outcomes import Outcome, Outcomes
from resnetkit.training.state import Tally


class Stop(Exception):
    pass


def watch(monkeypatch, stop_after=None):
    """Record the images and margins of each step; stop once ``stop_after`` steps are done."""
    real, steps = loop.training_step, []

    def step(state, batch, *args):
        if len(steps) == stop_after:
            raise Stop
        outcome = real(state, batch, *args)
        steps.append((batch.indices.tolist(), outcome.margins.tolist()))
        return outcome

    monkeypatch.setattr(loop, "training_step", step)
    return steps


def saved(folder):
    tensors = checkpoint.read_newest(folder / "state").tensors
    return tensors["margins.total"], tensors["margins.count"]


def test_a_margin_is_the_logit_of_the_label_minus_the_greatest_other():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 7
    expected = []
    for row, label in zip(logits.double().tolist(), labels.tolist(), strict=True):
        own = row.pop(label)
        expected.append(own - max(row))
    found = label_margins(logits.requires_grad_(), labels)
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert label_margins(logits.bfloat16(), labels).dtype == torch.float32


@pytest.mark.parametrize("repeats", [1, 2])
def test_the_state_holds_the_sum_over_all_steps(flat_folder, small, tmp_path, monkeypatch, repeats):
    settings = {**small, "repeats": repeats, "accumulate": 2}
    with monkeypatch.context() as patch:
        steps = watch(patch)
        run = train(flat_folder, out=tmp_path / "run", **settings)
    margins = defaultdict(list)
    for indices, values in steps:
        for index, value in zip(indices, values, strict=True):
            margins[index].append(value)
    total, count = saved(run.folder)
    assert count.tolist() == [len(margins[i]) for i in range(len(count))]
    assert count.max() == 2 * repeats  # two epochs
    expected = [sum(margins[i]) for i in range(len(total))]
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-12)


def test_a_resumed_run_has_the_margins_of_a_whole_one(flat_folder, small, tmp_path, monkeypatch):
    settings = {**small, "checkpoint_seconds": 0}
    whole = train(flat_folder, out=tmp_path / "whole", **settings)
    for steps in (3, 4):  # stops in the first epoch and in the second
        with monkeypatch.context() as patch:
            watch(patch, stop_after=steps)
            with pytest.raises(Stop):
                train(flat_folder, out=tmp_path / "run", resume=True, **settings)
    train(flat_folder, out=tmp_path / "run", resume=True, **settings)
    for first, second in zip(saved(whole.folder), saved(tmp_path / "run"), strict=True):
        assert torch.equal(first, second)
    assert (tmp_path / "run" / "suspects.csv").read_bytes() == (
        whole.folder / "suspects.csv"
    ).read_bytes()


def test_a_state_without_margins_resumes_and_says_so(
    flat_folder, small, tmp_path, monkeypatch, capsys
):
    settings = {**small, "checkpoint_seconds": 0}
    with monkeypatch.context() as patch:
        watch(patch, stop_after=6)
        with pytest.raises(Stop):
            train(flat_folder, out=tmp_path / "run", **settings)
    state = checkpoint.read_newest(tmp_path / "run" / "state")
    old = {name: value for name, value in state.tensors.items() if "margins" not in name}
    checkpoint.write_generation(tmp_path / "run" / "state", Snapshot(old, state.values))
    capsys.readouterr()
    train(flat_folder, out=tmp_path / "run", resume=True, **settings)
    assert "The saved state has no margins" in capsys.readouterr().err
    _, count = saved(tmp_path / "run")
    assert int(count.sum()) == (10 - 6) * 8


def test_mixed_images_have_no_margins(flat_folder, small, tmp_path):
    run = train(flat_folder, out=tmp_path / "run", **{**small, "epochs": 1, "mixup": 0.2})
    assert not [n for n in checkpoint.read_newest(run.folder / "state").tensors if "margins" in n]


@pytest.mark.parametrize("rank", [0, 1])
def test_all_ranks_collect_the_margins_of_the_whole_batch(rank):
    """This holds even if the shares differ in length, or an image is in the batch twice."""
    shares = [[0.5, -1.0, 2.0], [3.0, -0.25]]  # five images on two ranks
    state = SimpleNamespace(step=0, margins=Margins(4), tally=Tally())
    exchanged = []

    def gather(numbers):
        exchanged.append(numbers)
        rows = [[0.0, 1, 0, 0, *share, *[0.0] * (3 - len(share))] for share in shares]
        assert numbers == rows[rank]
        return rows

    runtime = SimpleNamespace(world_size=2, gather=gather)
    outcomes = Outcomes(state, None, runtime)
    totals = torch.tensor([[0.0, 1.0]])
    outcome = Outcome(totals, torch.tensor(shares[rank]))
    outcomes.add(outcome, np.array([3, 1, 0, 1, 3]))
    outcomes.drain()
    assert state.margins.total.tolist() == [2.0, 2.0, 0.0, 0.25]
    assert state.margins.count.tolist() == [1, 2, 0, 2]
    np.testing.assert_array_equal(state.margins.mean(), [2.0, 1.0, np.nan, 0.125])
