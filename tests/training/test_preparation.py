"""What training says about its images before it begins, and which images a split keeps together."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image

from resnetkit import train
from resnetkit.data import folder
from resnetkit.training.preparation import prepare
from resnetkit.training.recipe import Recipe

RECIPE = Recipe.model_validate({"image_size": 64, "resize_size": 64, "val_split": 0.4})


def save(path, number, size=(96, 80), quality=90):
    """Save a photo of smooth colors that is different for each number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(number).integers(0, 255, (7, 7, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((96, 80), Image.Resampling.BICUBIC).resize(size).save(
        path, quality=quality
    )


def test_thumbnails_stay_on_the_side_of_their_photo(tmp_path):
    for label in "ab":
        for i in range(8):
            number = i + 100 * (label == "b")
            save(tmp_path / label / f"{i}.jpg", number)
            save(tmp_path / label / f"thumb_{i}.jpg", number, (48, 40), 60)
    for seed in range(3):
        recipe = RECIPE.with_settings({"seed": seed})
        found = prepare(folder.read_dataset(tmp_path), recipe, workers=1)
        train, val = (
            {path.replace("thumb_", "") for path in images.split.paths}
            for images in (found.train, found.val)
        )
        assert not train & val
        assert len(val) == 6
        assert found.notes == (
            "32 images look nearly the same as another image of their class; such images stay "
            "in one split",
        )


def test_a_class_of_images_that_all_look_the_same_is_divided(tmp_path):
    for i in range(6):
        save(tmp_path / "a" / f"{i}.jpg", 1, quality=40 + 8 * i)
        save(tmp_path / "b" / f"{i}.jpg", 10 + i)
    found = prepare(folder.read_dataset(tmp_path), RECIPE, workers=1)
    assert found.val.split.counts(2) == [2, 2]


def test_a_note_counts_validation_images_that_are_trained_on(tmp_path):
    for label in "ab":
        for i in range(3):
            save(tmp_path / "train" / label / f"{i}.jpg", i + 10 * (label == "b"))
    shutil.copytree(tmp_path / "train" / "a", tmp_path / "val" / "a")
    found = prepare(folder.read_dataset(tmp_path), RECIPE, workers=1)
    assert found.notes[0].startswith("3 of the 3 validation images are also training images")


def plan_of(folder, out, capsys, small):
    train(folder, out=out, show_plan=True, weights="none", **{**small, "epochs": 1})
    return capsys.readouterr().err


def test_validation_images_that_are_training_images_are_counted(
    split_folder, small, tmp_path, capsys
):
    assert "also training images" not in plan_of(split_folder, tmp_path / "a", capsys, small)
    training = sorted((split_folder / "train" / "blue").iterdir())
    for number in (2, 5):
        shutil.copy(training[number], split_folder / "validation" / "blue" / f"copy{number}.png")
    shutil.copy(training[2], training[2].with_name("zzz.png"))  # twice in training, counted once
    text = " ".join(plan_of(split_folder, tmp_path / "b", capsys, small).split())
    expected = (
        "2 of the 20 validation images are also training images "
        "(validation/blue/copy2.png = train/blue/002.png)"
    )
    assert expected in text
