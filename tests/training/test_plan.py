from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data import folder
from resnetkit.data.folder import Dataset, Split
from resnetkit.errors import RecipeError
from resnetkit.models import get_model
from resnetkit.runtime import Runtime
from resnetkit.training import parallel, plan, start, wording
from resnetkit.training.recipe import load

CPU = Runtime(torch.device("cpu"), "fp32")


def test_picture_size_follows_the_data(flat_folder):
    data = folder.read_dataset(flat_folder)  # 40 x 36 px
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
    split = Split(Path("photos"), [f"{i}.jpg" for i in range(count)], labels)
    return Dataset(Path("photos"), ("a",), {"all": split})


def test_networks_are_built_with_what_they_know():
    narrow = load("fast").with_settings({"model": "resnet18", "model_options": {"width": 4}})
    model, options = start.make_network(narrow, 3)
    assert options == {"width": 4, "num_classes": 3}
    assert model.layer1[0].bn2.weight.abs().sum() == 0
    dark, _ = start.make_network(load("fast").with_settings({"model": "darknet53"}), 3)
    assert sum(p.numel() for p in dark.parameters()) > 40_000_000
    with pytest.raises(RecipeError, match=r"model_options of resnet18: .*did you mean stem"):
        start.make_network(narrow.with_settings({"model_options": {"stemm": "small"}}), 3)


def test_the_table_of_many_classes_says_how_many_images_the_others_have():
    counts = {f"c{i:03}": 40 + i if i < 90 else 2 for i in range(130)}
    names = tuple(counts)
    labels = np.repeat(np.arange(130), list(counts.values())).astype(np.int32)
    train = Split(Path("photos"), [""] * len(labels), labels)
    val = Split(Path("photos"), [""] * 130, np.arange(130, dtype=np.int32))
    lines = plan._class_table(names, train, val)
    assert len(lines) == 32
    assert lines[1].split() == ["c090", "2", "1"]
    assert lines[-1] == (
        "  ... the 30 smallest of 130 classes; the other 100 have 2 to 129 images for training and "
        "1 for validation"
    )


def test_small_sets_get_more_epochs():
    counts = [10, 1400, 1_000_000]
    assert [plan.choose_epochs(load("fast"), n, CPU).epochs for n in counts] == [300, 29, 16]
    assert plan.choose_epochs(load("classic"), 10, CPU).epochs == 30


@pytest.mark.parametrize(
    ("device", "batch_size", "epochs", "size"),
    [("cpu", 16, 29, 128), ("mps", 64, 57, 192), ("cuda", 128, 114, 224)],
)
def test_batch_size_epochs_and_image_size_follow_the_device(
    device, batch_size, epochs, size, monkeypatch
):
    where = Runtime(torch.device(device), "fp32")
    chosen = plan.choose_length(load("fast"), 1400, where)
    assert (chosen.batch_size, chosen.epochs) == (batch_size, epochs)
    assert plan.choose_length(chosen, 1400, where) == chosen
    for images, expected in ((16, 300), (10_000_000, 16)):
        assert plan.choose_length(load("fast"), images, where).epochs == expected
    assert plan.choose_length(load("fast"), 10, where).batch_size == 10
    stated = plan.choose_length(load("classic"), 10, where)
    assert (stated.batch_size, stated.epochs) == (128, 30)
    monkeypatch.setattr(plan, "image_sizes", lambda *_: [(500, 375)] * 5)
    named = load("fast").with_settings({"model": "resnet18"})
    assert plan.choose_size(named, _made(5), where).image_size == size


@pytest.mark.parametrize(
    ("ranks", "images", "expected"), [(2, 100, 16), (3, 100, 15), (4, 10, 8), (20, 100, 20)]
)
def test_the_batch_size_that_is_found_can_be_shared_by_the_processes(ranks, images, expected):
    several = Runtime(torch.device("cpu"), "fp32", world_size=ranks)
    parallel.check(load("fast"), several)  # nothing to share yet
    found = plan.choose_length(load("fast"), images, several)
    assert found.batch_size == expected
    parallel.check(found, several)


def test_a_resumed_run_keeps_what_was_found_on_another_device():
    gpu = Runtime(torch.device("cuda"), "bf16")
    begun = plan.choose_length(load("fast"), 1400, gpu)
    assert plan.choose_length(load("fast"), 1400, CPU, recorded=begun) == begun
    other = load("fast").with_settings({"batch_size": 32, "epochs": 7})
    assert plan.choose_length(other, 1400, CPU, recorded=begun) == other  # and is refused later


@pytest.mark.parametrize(
    ("ranks", "settings", "told"),
    [
        (1, {"batch_size": 4}, None),
        (4, {"batch_size": 32}, None),
        (4, {"batch_size": 16}, "4 images at once in each of 4 processes, .* --batch-size 32, "),
        (2, {"batch_size": 16, "accumulate": 4}, "2 images at once .* --batch-size 64, "),
        (4, {"batch_size": 16, "sync_bn": True}, None),
        (4, {"batch_size": 4}, "1 image at once"),
    ],
)
def test_few_images_for_batch_norm_are_told(ranks, settings, told):
    recipe = load("fast").with_settings(settings)
    where = Runtime(torch.device("cuda"), "bf16", world_size=ranks)
    model = parallel.synchronized(get_model("cifar_resnet20", width=4), recipe)
    remarks = plan._batch_norm_remark(recipe, where, model)
    assert len(remarks) == (told is not None)
    if told:
        assert re.search(f"batch norm sees {told}", remarks[0])
        assert "on CUDA GPUs --set sync_bn=true" in remarks[0]


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
    assert plan._may_mind_mirrors(classes) is expected


def test_steps_say_how_many_epochs():
    recipe = load("paper-cifar10")
    assert (recipe.steps, recipe.epochs) == (64_000, None)
    chosen = plan.choose_epochs(recipe, 45_000, CPU)
    assert (chosen.steps, chosen.epochs) == (64_000, 183)  # of 351 steps; the last has 118
    assert plan.choose_epochs(chosen, 45_000, CPU) == chosen
    with pytest.raises(RecipeError, match=r"epochs is 183, and 64000 steps .* are 821\. Set one"):
        plan.choose_epochs(chosen, 10_000, CPU)
    assert plan.choose_epochs(recipe, 5, CPU).epochs == 64_000


def test_the_measured_step_is_as_large_as_the_real_one(monkeypatch):
    sizes = []
    real = plan._made_batch
    monkeypatch.setattr(plan, "_made_batch", lambda n, *more: sizes.append(n) or real(n, *more))
    recipe = load("demo").with_settings({"resize_size": 32, "epochs": 2, "batch_size": 64})
    model, cpu = get_model("cifar_resnet20", width=4), Runtime(torch.device("cpu"), "fp32")
    for settings, trained in (({}, 640), ({"accumulate": 8}, 640), ({}, 10)):
        plan.measure(model, recipe.with_settings(settings), cpu, trained, 0)
    assert sizes == [64, plan.EVALUATED, 8, plan.EVALUATED, 10, plan.EVALUATED]


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
    cifar = plan.choose_epochs(load("paper-cifar10"), 45_000, CPU)
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
    recipe = plan.choose_batch_size(recipe, 100, cpu)
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
