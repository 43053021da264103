from __future__ import annotations

import pytest
import torch

from resnetkit.models import get_model
from resnetkit.runtime import Runtime
from resnetkit.training import defaults, initial_weights, measure
from resnetkit.training.recipe import load_recipe

CPU = Runtime(torch.device("cpu"), "fp32")


def test_measuring_changes_neither_the_network_nor_the_rng():
    recipe = load_recipe("demo").with_settings({"resize_size": 32, "epochs": 2})
    model = get_model("cifar_resnet20", width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    seconds = measure.estimate_seconds(model, recipe, CPU, 160, 64)
    assert seconds > 0
    assert torch.equal(torch.rand(3), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.training


def test_the_measured_step_is_as_large_as_the_real_one(monkeypatch):
    sizes = []
    real = measure._blank_batch
    monkeypatch.setattr(measure, "_blank_batch", lambda n, *more: sizes.append(n) or real(n, *more))
    recipe = load_recipe("demo").with_settings({"resize_size": 32, "epochs": 2, "batch_size": 64})
    model = get_model("cifar_resnet20", width=4)
    for settings, trained in (({}, 640), ({"accumulate": 8}, 640), ({}, 10)):
        measure.estimate_seconds(model, recipe.with_settings(settings), CPU, trained, 0)
    assert sizes == [
        64,
        measure.EVAL_BATCH_SIZE,
        8,
        measure.EVAL_BATCH_SIZE,
        10,
        measure.EVAL_BATCH_SIZE,
    ]


def test_every_step_is_measured_in_its_own_mode():
    """The shallow network shares its modules with the whole one, which is measured after it."""
    recipe = load_recipe("demo").with_settings(
        {"resize_size": 32, "epochs": 2, "batch_size": 8, "shallow_share": 0.5}
    )
    model = get_model("cifar_resnet20", width=4)
    for block in (block for name in model.stages for block in model.get_submodule(name)):
        torch.nn.init.zeros_(block.bn2.weight)
    modes = set()
    for norm in (module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.register_forward_hook(
            lambda norm, *_: modes.add((torch.is_inference_mode_enabled(), norm.training))
        )
    measure.estimate_seconds(model, recipe, CPU, 16, 8)
    assert modes == {(False, True), (True, False)}


@pytest.mark.parametrize(
    ("seconds", "most", "cores_used", "expected"),
    [
        ({1: 0.10, 2: 0.095}, 2, 2, 1),  # a second thread gains too little
        ({1: 0.10, 2: 0.06}, 2, 2, 2),
        ({1: 0.10, 2: 0.40}, 2, 1, 1),  # another process is busy
        ({1: 0.02, 2: 0.012, 4: 0.011, 6: 0.05}, 6, 5, 2),
        ({1: 4.0, 2: 2.5}, 2, 1.9, 2),  # too long to take turns
        ({1: 4.0, 2: 9.0}, 2, 1.0, 1),  # the same, and another process is busy
        ({64: 3.0}, 64, 57.0, 64),
        ({64: 3.0}, 64, 3.1, 4),
        ({1: 0.1}, 1, 1, 1),
    ],
)
def test_the_fewest_threads_that_are_nearly_as_fast_win(seconds, most, cores_used, expected):
    before = torch.get_num_threads()
    now = [0.0]

    def step():
        now[0] += seconds[torch.get_num_threads()]

    try:
        found = measure.fewest_fast_threads(step, most, lambda: now[0], lambda: now[0] * cores_used)
        assert found == expected
        spent = now[0] - 2 * seconds[most]
    finally:
        torch.set_num_threads(before)
    assert spent <= measure.THREADS_SECONDS


def test_threads_are_measured_only_if_nobody_set_them(monkeypatch):
    before = torch.get_num_threads()
    recipe = load_recipe("fast").with_settings(
        {"model": "cifar_resnet20", "model_options": {"width": 4}, "image_size": 32, "epochs": 1}
    )
    recipe = defaults.fill_batch_size(recipe, 100, CPU)
    model, _ = initial_weights.make_network(recipe, 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(measure, "cores", lambda: 4)
    monkeypatch.setattr(measure, "fewest_fast_threads", lambda step, most: 100 + most)
    try:
        torch.set_num_threads(3)
        assert measure.fill_threads(model, recipe, CPU, 100).threads == 103
        torch.set_num_threads(3)
        given = recipe.with_settings({"threads": 2})
        assert measure.fill_threads(model, given, CPU, 100).threads == torch.get_num_threads() == 2
        assert measure.fill_threads(model, recipe, CPU, 100, recorded=given).threads == 2
        torch.set_num_threads(3)
        several = Runtime(torch.device("cpu"), "fp32", world_size=2)
        assert measure.fill_threads(model, recipe, several, 100).threads == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert measure.fill_threads(model, recipe, CPU, 100).threads == 3
    finally:
        torch.set_num_threads(before)


def test_threads_are_measured_with_a_batch_that_occurs(monkeypatch):
    sizes = []
    real = measure._blank_batch
    monkeypatch.setattr(measure, "_blank_batch", lambda n, *more: sizes.append(n) or real(n, *more))
    monkeypatch.setattr(measure, "fewest_fast_threads", lambda step, most: 1)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(measure, "cores", lambda: 4)
    recipe = load_recipe("demo").with_settings(
        {"resize_size": 32, "epochs": 2, "batch_size": 1024, "accumulate": 2, "threads": None}
    )
    model = get_model("cifar_resnet20", width=4)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        measure.fill_threads(model, recipe, CPU, 24)
    finally:
        torch.set_num_threads(before)
    assert sizes == [12]
