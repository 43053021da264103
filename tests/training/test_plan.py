from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data import folder
from resnetkit.data.cache import Pictures
from resnetkit.data.folder import DataSet, Part
from resnetkit.data.transforms import Preprocessing
from resnetkit.errors import RecipeError
from resnetkit.models import get_model
from resnetkit.runtime import Runtime
from resnetkit.training import plan, start, wording
from resnetkit.training.preparation import Prepared
from resnetkit.training.recipe import load


def test_picture_size_follows_the_data(flat_folder):
    data = folder.read(flat_folder)  # 40 x 36 px
    runtime = Runtime(torch.device("cpu"), "fp32")
    recipe = load("fast").with_settings({"model": "resnet18"})
    chosen = plan.choose_size(recipe, data, runtime)
    assert (chosen.image_size, chosen.resize_size) == (32, 32)
    assert chosen.model_options["stem"] == "small"
    given = plan.choose_size(recipe.with_settings({"image_size": 64}), data, runtime)

    assert (given.image_size, given.resize_size) == (64, 64)
    assert "stem" not in given.model_options


def test_the_network_follows_the_machine_and_the_number_of_pictures():
    few, many = (_made(count) for count in (1999, 2000))
    cpu = Runtime(torch.device("cpu"), "bf16")
    narrow = plan.choose_network(load("fast"), few, cpu)
    assert (narrow.model, narrow.model_options) == ("resnet18", {"width": 16})
    assert narrow.precision == "bf16"
    assert plan.choose_network(load("fast"), many, cpu).model_options == {"width": 32}
    gpu = plan.choose_network(load("fast"), few, Runtime(torch.device("cuda"), "bf16"))
    assert (gpu.model, gpu.model_options) == ("resnet18", {})
    named = load("fast").with_settings({"model": "resnet18"})
    assert plan.choose_network(named, few, cpu).model_options == {}


def _made(count):
    labels = np.zeros(count, dtype=np.int32)
    part = Part(Path("photos"), [f"{i}.jpg" for i in range(count)], labels)
    return DataSet(Path("photos"), ("a",), {"all": part})


def test_networks_are_built_with_what_they_know():
    narrow = load("fast").with_settings({"model": "resnet18", "model_options": {"width": 4}})
    model, options = start.make_network(narrow, 3)
    assert options == {"width": 4, "num_classes": 3}
    assert model.layer1[0].bn2.weight.abs().sum() == 0
    dark, _ = start.make_network(load("fast").with_settings({"model": "darknet53"}), 3)
    assert sum(p.numel() for p in dark.parameters()) > 40_000_000
    with pytest.raises(RecipeError, match=r"model_options of resnet18: .*did you mean stem"):
        start.make_network(narrow.with_settings({"model_options": {"stemm": "small"}}), 3)


def test_small_sets_get_more_epochs():
    counts = [10, 1400, 1_000_000]
    assert [plan.choose_epochs(load("fast"), n).epochs for n in counts] == [300, 29, 16]
    assert plan.choose_epochs(load("classic"), 10).epochs == 30


def test_measuring_leaves_the_network_and_chance_alone():
    recipe = load("demo").with_settings({"resize_size": 32, "epochs": 2})
    model = get_model("cifar_resnet20", width=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    seconds = plan.measure(model, recipe, Runtime(torch.device("cpu"), "fp32"), 160, 64)
    assert seconds > 0
    assert torch.equal(torch.rand(3), expected)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert model.training


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("0", "1", "10"), True),
        (("A", "b", "C"), True),
        (("arrow_left", "arrow_up"), True),
        (("turn right", "stop"), True),
        (("daisy", "rose"), False),
        (("bright", "leftover"), False),
        (("a", "rose"), False),
    ],
)
def test_class_names_that_may_mind_mirrors(classes, expected):
    data = _made(len(classes))
    data = replace(data, classes=classes)
    pictures = Pictures(data.parts["all"], Preprocessing(32, 32))
    prepared = Prepared(data, pictures, pictures, {}, False, (), ())
    recipe = load("demo").with_settings({"resize_size": 32, "flip": True})
    model, cpu = get_model("cifar_resnet20", width=4), Runtime(torch.device("cpu"), "fp32")
    said = plan.describe(prepared, recipe, cpu, model, 1, 10.0)
    assert ("a mirrored picture could be of another class" in said) is expected
    said = plan.describe(prepared, recipe.with_settings({"flip": False}), cpu, model, 1, 10.0)
    assert "mirrored picture" not in said


def test_steps_say_how_many_epochs():
    recipe = load("paper-cifar10")
    assert (recipe.steps, recipe.epochs) == (64_000, None)
    chosen = plan.choose_epochs(recipe, 45_000)
    assert (chosen.steps, chosen.epochs) == (64_000, 183)  # of 351 steps; the last has 118
    assert plan.choose_epochs(chosen, 45_000) == chosen
    with pytest.raises(RecipeError, match=r"epochs is 183, and 64000 steps .* are 821\. Set one"):
        plan.choose_epochs(chosen, 10_000)
    assert plan.choose_epochs(recipe, 5).epochs == 64_000


def test_the_measured_step_is_as_large_as_the_real_one():
    recipe = load("demo").with_settings({"resize_size": 32, "epochs": 2, "batch_size": 64})
    model, cpu = get_model("cifar_resnet20", width=4), Runtime(torch.device("cpu"), "fp32")
    seen = set()
    model.register_forward_pre_hook(lambda net, given: seen.add((net.training, len(given[0]))))
    for settings, trained, size in (({}, 640, 64), ({"accumulate": 8}, 640, 8), ({}, 10, 10)):
        seen.clear()
        plan.measure(model, recipe.with_settings(settings), cpu, trained, 0)
        assert seen == {(True, size), (False, plan.EVALUATED)}


def test_a_recipe_in_words():
    fast = load("fast")
    assert wording.augmentation(fast.with_settings({"flip": False})).endswith("area, not mirrored")
    assert wording.augmentation(load("paper-cifar10")) == (
        "squares at random of the picture with 4 px of black around it, mirrored at random"
    )
    assert "scaled to 1.14 to 2.14 times" in wording.augmentation(load("paper-imagenet"))
    v2 = load("torchvision-v2")
    assert wording.augmentation(v2) == (
        "crops of 8% to 100% of the area, mirrored at random, TrivialAugment, a box erased in 10%, "
        "MixUp 0.2, CutMix 1"
    )
    assert wording.training(v2, 10_000) == (
        "600 epoch(s) of 9 step(s) of 1024 pictures, 4 copies of each"
    )
    assert wording.optimiser(v2) == (
        "sgd, learning rate 0.5 (cosine), weight decay 2e-05, label smoothing 0.1, "
        "weights averaged by 0.998908 every 32 steps"
    )
    cifar = plan.choose_epochs(load("paper-cifar10"), 45_000)
    balanced = cifar.with_settings({"sampling": "balanced"})
    assert wording.training(balanced, 45_000) == (
        "64,000 step(s) in 183 epoch(s) of 128 pictures, every class equally often"
    )


@pytest.mark.parametrize(
    ("seconds", "most", "expected"),
    [
        ({1: 0.10, 2: 0.095}, 2, 1),  # a second thread is not worth it
        ({1: 0.10, 2: 0.06}, 2, 2),
        ({1: 0.10, 2: 0.40}, 2, 1),  # another process is busy
        ({1: 0.02, 2: 0.012, 4: 0.011, 6: 0.05}, 6, 2),
        ({1: 4.0, 2: 2.5}, 2, 2),  # too long to try them in turns
        ({1: 0.1}, 1, 1),
    ],
)
def test_the_fewest_threads_that_are_nearly_as_fast_win(seconds, most, expected):
    before, now = torch.get_num_threads(), [0.0]

    def step():
        now[0] += seconds[torch.get_num_threads()]

    try:
        assert plan.fastest(step, most, lambda: now[0]) == expected
        spent = now[0] - 2 * seconds[most]
    finally:
        torch.set_num_threads(before)
    assert spent <= plan.THREADS_SECONDS


def test_threads_are_measured_only_where_nobody_decided(monkeypatch):
    before = torch.get_num_threads()
    cpu = Runtime(torch.device("cpu"), "fp32")
    recipe = load("fast").with_settings(
        {"model": "cifar_resnet20", "model_options": {"width": 4}, "image_size": 32, "epochs": 1}
    )
    model, _ = start.make_network(recipe, 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(plan, "cores", lambda: 4)
    monkeypatch.setattr(plan, "fastest", lambda step, most: 100 + most)
    try:
        torch.set_num_threads(3)
        assert plan.choose_threads(model, recipe, cpu).threads == 103
        torch.set_num_threads(3)
        given = recipe.with_settings({"threads": 2})
        assert plan.choose_threads(model, given, cpu).threads == torch.get_num_threads() == 2
        assert plan.choose_threads(model, recipe, cpu, recorded=given).threads == 2
        torch.set_num_threads(3)
        several = Runtime(torch.device("cpu"), "fp32", world_size=2)
        assert plan.choose_threads(model, recipe, several).threads == 3
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert plan.choose_threads(model, recipe, cpu).threads == 3
    finally:
        torch.set_num_threads(before)
