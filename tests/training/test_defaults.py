from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from resnetkit.data import folder
from resnetkit.data.folder import Dataset, Split
from resnetkit.errors import RecipeError
from resnetkit.runtime import Runtime
from resnetkit.training import defaults, distributed
from resnetkit.training.recipe import load_recipe

CPU = Runtime(torch.device("cpu"), "fp32")


def test_the_image_size_follows_the_data(flat_folder):
    dataset = folder.read_dataset(flat_folder)  # 40 x 36 px
    recipe = load_recipe("fast").with_settings({"model": "resnet18"})
    filled = defaults.fill_image_size(recipe, dataset, CPU)
    assert (filled.image_size, filled.resize_size) == (32, 32)
    assert filled.model_options["stem"] == "small"
    given = defaults.fill_image_size(recipe.with_settings({"image_size": 64}), dataset, CPU)
    assert (given.image_size, given.resize_size) == (64, 64)
    assert "stem" not in given.model_options


def test_the_network_follows_the_machine_and_the_number_of_images():
    few = _blank_dataset(1999)
    many = _blank_dataset(2000)
    cpu = Runtime(torch.device("cpu"), "bf16")
    narrow = defaults.fill_network(load_recipe("fast"), few, cpu)
    assert (narrow.model, narrow.model_options) == ("resnet18", {"width": 16})
    assert narrow.precision == "bf16"
    assert defaults.fill_network(load_recipe("fast"), many, cpu).model_options == {"width": 32}
    gpu = defaults.fill_network(load_recipe("fast"), few, Runtime(torch.device("cuda"), "bf16"))
    assert (gpu.model, gpu.model_options) == ("resnet18", {})
    named = load_recipe("fast").with_settings({"model": "resnet18"})
    assert defaults.fill_network(named, few, cpu).model_options == {}


def _blank_dataset(count):
    labels = np.zeros(count, dtype=np.int32)
    split = Split(Path("photos"), [f"{i}.jpg" for i in range(count)], labels)
    return Dataset(Path("photos"), ("a",), {"all": split})


def test_small_sets_get_more_epochs():
    counts = [10, 1400, 1_000_000]
    assert [defaults.fill_epochs(load_recipe("fast"), n, CPU).epochs for n in counts] == [
        300,
        29,
        16,
    ]
    assert defaults.fill_epochs(load_recipe("classic"), 10, CPU).epochs == 30
    pretrained = load_recipe("fast").with_settings({"weights": "DEFAULT"})
    assert [defaults.fill_epochs(pretrained, n, CPU).epochs for n in (160, 10_000)] == [100, 16]


@pytest.mark.parametrize(
    ("device", "batch_size", "epochs", "size"),
    [("cpu", 16, 29, 128), ("mps", 64, 57, 192), ("cuda", 128, 114, 224)],
)
def test_batch_size_epochs_and_image_size_follow_the_device(
    device, batch_size, epochs, size, monkeypatch
):
    runtime = Runtime(torch.device(device), "fp32")
    filled = defaults.fill_length(load_recipe("fast"), 1400, runtime)
    assert (filled.batch_size, filled.epochs) == (batch_size, epochs)
    assert defaults.fill_length(filled, 1400, runtime) == filled
    for images, expected in ((16, 300), (10_000_000, 16)):
        assert defaults.fill_length(load_recipe("fast"), images, runtime).epochs == expected
    assert defaults.fill_length(load_recipe("fast"), 10, runtime).batch_size == 10
    stated = defaults.fill_length(load_recipe("classic"), 10, runtime)
    assert (stated.batch_size, stated.epochs) == (128, 30)
    monkeypatch.setattr(defaults, "image_sizes", lambda *_: [(500, 375)] * 5)
    named = load_recipe("fast").with_settings({"model": "resnet18"})
    assert defaults.fill_image_size(named, _blank_dataset(5), runtime).image_size == size


def test_few_images_are_augmented_more():
    recipe = load_recipe("finetune")
    filled = [defaults.fill_length(recipe, images, CPU) for images in (999, 1000)]
    assert [found.trivial_augment for found in filled] == [True, False]
    assert [found.augmentation().trivial_augment for found in (recipe, *filled)] == [
        False, True, False,
    ]  # fmt: skip
    fixed = recipe.with_settings({"trivial_augment": True})
    assert defaults.fill_length(fixed, 5000, CPU).trivial_augment is True


def test_the_batch_size_of_a_cpu_follows_the_number_of_images():
    sizes = [
        defaults.fill_length(load_recipe("fast"), images, CPU).batch_size
        for images in (250, 1_000, 3_000, 6_000, 12_000, 24_000, 100_000, 10_000_000)
    ]
    assert sizes == [16, 16, 16, 32, 64, 128, 128, 128]


@pytest.mark.parametrize(
    ("ranks", "images", "expected"), [(2, 100, 16), (3, 100, 15), (4, 10, 8), (20, 100, 20)]
)
def test_the_default_batch_size_can_be_split_over_the_processes(ranks, images, expected):
    several = Runtime(torch.device("cpu"), "fp32", world_size=ranks)
    distributed.check_recipe(load_recipe("fast"), several)  # no batch size yet
    filled = defaults.fill_length(load_recipe("fast"), images, several)
    assert filled.batch_size == expected
    distributed.check_recipe(filled, several)


def test_a_resumed_run_keeps_the_defaults_of_another_device():
    gpu = Runtime(torch.device("cuda"), "bf16")
    begun = defaults.fill_length(load_recipe("fast"), 1400, gpu)
    assert defaults.fill_length(load_recipe("fast"), 1400, CPU, recorded=begun) == begun
    other = load_recipe("fast").with_settings({"batch_size": 32, "epochs": 7})
    assert (
        defaults.fill_length(other, 1400, CPU, recorded=begun) == other
    )  # a later check rejects it


def test_steps_say_how_many_epochs():
    recipe = load_recipe("paper-cifar10")
    assert (recipe.steps, recipe.epochs) == (64_000, None)
    filled = defaults.fill_epochs(recipe, 45_000, CPU)
    assert (filled.steps, filled.epochs) == (64_000, 183)  # of 351 steps; the last has 118
    assert defaults.fill_epochs(filled, 45_000, CPU) == filled
    with pytest.raises(
        RecipeError, match=r"epochs is 183, .* 64000 steps take 821 epochs\. Set epochs or"
    ):
        defaults.fill_epochs(filled, 10_000, CPU)
    assert defaults.fill_epochs(recipe, 5, CPU).epochs == 64_000


def test_random_weights_have_one_channel_if_all_training_images_are_gray(flat_folder):
    def channels(**settings):
        recipe = load_recipe("fast").with_settings(settings)
        filled = defaults.fill_channels(recipe, folder.read_dataset(flat_folder))
        assert filled.model_options.get("in_channels", 3) == (filled.channels or 3)
        return filled.channels or 3

    paths = sorted(flat_folder.rglob("*.png"))
    assert channels() == 3
    for path in paths:
        Image.open(path).convert("L").save(path)
    assert channels() == 1
    assert channels(channels=3) == 3
    assert channels(channels=4) == 4
    assert channels(weights="DEFAULT") == 3  # as in the weights
    paths[0].write_bytes(b"damaged")  # will be reported when it is decoded
    assert channels() == 1
    Image.new("RGB", (32, 32)).save(paths[-1])
    assert channels() == 3


@pytest.mark.parametrize(("number", "says"), [(0, False), (3, False), (4, True), (40, True)])
def test_transparency_that_is_put_on_white_is_said_once(tmp_path, capsys, number, says):
    """An opaque alpha channel is not transparency; a few transparent images are not mentioned."""
    for i in range(40):
        image = Image.new("RGBA", (32, 32), (i, 2 * i, 90, 255))
        if i < number:
            image.putpixel((3, 3), (0, 0, 0, 254))
        path = tmp_path / f"{'ab'[i % 2]}/{i}.png"
        path.parent.mkdir(exist_ok=True)
        image.save(path)
    dataset = folder.read_dataset(tmp_path)
    assert not defaults.fill_channels(load_recipe("fast"), dataset).channels
    words = f"{number} of 40 training images checked, such as a/0.png, are partly transparent."
    output = capsys.readouterr().err
    assert (words in output, "--channels 4" in output) == (says, says)
    for settings in ({"channels": 3}, {"channels": 4}):
        defaults.fill_channels(load_recipe("fast").with_settings(settings), dataset)
    defaults.fill_channels(load_recipe("fast"), dataset, recorded=load_recipe("fast"))
    assert "transparent" not in capsys.readouterr().err


def test_a_resumed_run_keeps_its_channels(flat_folder):
    """A run on grayscale images, begun before channels were detected, has three."""
    for path in flat_folder.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    recipe, dataset = load_recipe("fast"), folder.read_dataset(flat_folder)
    assert defaults.fill_channels(recipe, dataset, recorded=recipe).channels is None
    found = defaults.fill_channels(recipe, dataset)
    assert found.channels == 1
    assert defaults.fill_channels(recipe, dataset, recorded=found).channels == 1
