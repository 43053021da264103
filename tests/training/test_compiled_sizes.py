"""A compiled run whose images grow: one compilation for each size, and no fallback to eager."""

from __future__ import annotations

import sys

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from resnetkit import train
from resnetkit.training import loop


@pytest.fixture
def counter(monkeypatch):
    """Count compilations, with a backend that needs no C++ compiler."""
    counter, compile_ = CompileCounter(), torch.compile
    monkeypatch.setenv("CXX", sys.executable)  # any program that exists
    monkeypatch.setattr(
        torch, "compile", lambda model, **settings: compile_(model, backend=counter, **settings)
    )
    torch._dynamo.reset()  # compilations of the same forward in other tests count toward a limit
    yield counter
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "settings",
    [{}, pytest.param({"shallow_share": 0.3}, marks=pytest.mark.slow)],
    ids=["whole", "growing"],
)
def test_each_image_size_is_compiled_once(
    settings, counter, flat_folder, small, tmp_path, monkeypatch
):
    real, seen = loop.training_step, []

    def step(state, batch, *more):
        before = counter.frame_count
        result = real(state, batch, *more)
        size = (len(list(state.network.modules())), batch.images.shape[-1])
        seen.append((size, counter.frame_count - before))
        return result

    monkeypatch.setattr(loop, "training_step", step)
    grown = {**small, "model": "resnet18", "model_options": {"width": 4, "stem": "small"}}
    grown |= {"epochs": 8, "image_size": 48, "train_sizes": [0.25, 1.0], **settings}
    with torch._dynamo.config.patch(recompile_limit=2, fail_on_recompile_limit_hit=True):
        train(flat_folder, out=tmp_path / "run", compile=True, show_plan=False, **grown)
    sizes = list(dict.fromkeys(size for size, _ in seen))
    assert [side for _, side in sizes][-1] == 48
    assert len({side for _, side in sizes}) == 5  # more than the limit
    first = {size: next(count for one, count in seen if one == size) for size in sizes}
    assert first == dict.fromkeys(sizes, 1)
    assert counter.frame_count == len(sizes)
