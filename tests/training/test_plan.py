from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from resnetkit.data.folder import Split
from resnetkit.models import get_model
from resnetkit.runtime import Runtime
from resnetkit.training import defaults, distributed, plan
from resnetkit.training.recipe import load_recipe

CPU = Runtime(torch.device("cpu"), "fp32")


def test_the_table_of_many_classes_summarizes_the_others():
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


@pytest.mark.parametrize(
    ("ranks", "settings", "text"),
    [
        (1, {"batch_size": 4}, None),
        (4, {"batch_size": 32}, None),
        (4, {"batch_size": 16}, "4 images at once in each of 4 processes, .* --batch-size 32, "),
        (2, {"batch_size": 16, "accumulate": 4}, "2 images at once .* --batch-size 64, "),
        (4, {"batch_size": 16, "sync_bn": True}, None),
        (4, {"batch_size": 4}, "1 image at once"),
    ],
)
def test_a_note_if_batch_norm_sees_few_images(ranks, settings, text):
    recipe = load_recipe("fast").with_settings(settings)
    runtime = Runtime(torch.device("cuda"), "bf16", world_size=ranks)
    model = distributed.convert_sync_bn(get_model("cifar_resnet20", width=4), recipe)
    notes = plan._note_on_batch_norm(recipe, runtime, model)
    assert len(notes) == (text is not None)
    if text:
        assert re.search(f"batch norm sees {text}", notes[0])
        assert "on CUDA GPUs --set sync_bn=true" in notes[0]


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
def test_class_names_that_may_be_mirrored(classes, expected):
    assert plan._names_may_be_mirrored(classes) is expected


def test_a_recipe_as_text():
    fast = load_recipe("fast")
    assert plan.describe_augmentation(fast.with_settings({"flip": False})).endswith(
        "area, not mirrored"
    )
    assert plan.describe_augmentation(load_recipe("paper-cifar10")) == (
        "random squares from the image with 4 px of black around it, mirrored at random"
    )
    assert "scaled to 1.14 to 2.14 times" in plan.describe_augmentation(
        load_recipe("paper-imagenet")
    )
    v2 = load_recipe("torchvision-v2")
    assert plan.describe_augmentation(v2) == (
        "crops of 8% to 100% of the area, mirrored at random, TrivialAugment, "
        "a box erased in 10% of images, "
        "MixUp 0.2, CutMix 1"
    )
    assert plan.describe_training(v2, 10_000) == (
        "600 epochs of 9 steps of 1,024 images, 4 copies of each"
    )
    assert plan.describe_optimizer(v2) == (
        "sgd, learning rate 0.5 (cosine), weight decay 2e-05, label smoothing 0.1, "
        "EMA of the weights 0.998908 every 32 steps"
    )
    cifar = defaults.fill_epochs(load_recipe("paper-cifar10"), 45_000, CPU)
    balanced = cifar.with_settings({"sampling": "balanced"})
    assert plan.describe_training(balanced, 45_000) == (
        "64,000 steps in 183 epochs of 128 images, every class equally often"
    )
