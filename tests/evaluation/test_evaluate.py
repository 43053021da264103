from __future__ import annotations

import json
import shutil

import pytest
import torch

from resnetkit import evaluate
from resnetkit.data.decode import decode
from resnetkit.data.transforms import center_crop, normalize
from resnetkit.errors import DataError, PictureError
from resnetkit.evaluation.evaluate import confusions
from resnetkit.models import modelfile


def test_evaluation_repeats_the_report_of_training_exactly(trained):
    recorded = json.loads((trained / "metrics.json").read_text())
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "val")
    assert found.metrics == recorded
    header = modelfile.read_header(trained / "model.safetensors")
    assert header.metrics["val_accuracy"] == found.metrics["accuracy"]
    assert header.metrics["val_loss"] == found.metrics["loss"]


def test_the_logits_are_the_networks_on_each_picture(trained):
    """Against decoding, cropping and running each picture alone."""
    model, header = modelfile.read(trained / "model.safetensors")
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all", workers=3)
    assert len(found.part) == 60
    for i in (0, 17, 59):
        pixels = center_crop(decode(found.part.path(i), 32), 32, 32)
        with torch.no_grad():
            alone = model(normalize(pixels[None], header.preprocessing))[0]
        torch.testing.assert_close(found.logits[i], alone, rtol=1e-4, atol=1e-5)


def test_the_file_needs_nothing_beside_it(trained, tmp_path):
    copy = shutil.copy(trained / "model.safetensors", tmp_path / "elsewhere.safetensors")
    found = evaluate(copy, trained.parent / "data", "val")
    assert found.metrics == json.loads((trained / "metrics.json").read_text())


def test_the_split_is_found_again_by_contents(trained, tmp_path, save):
    data = shutil.copytree(trained.parent / "data", tmp_path / "data")
    before = evaluate(trained / "model.safetensors", data, "val")
    save(tmp_path / "more", 5, start=500)
    for path in sorted((tmp_path / "more").rglob("*.png")):
        shutil.copy(path, data / path.parent.name / path.name)
    renamed = before.part.path(0)
    renamed.rename(renamed.with_name("renamed.png"))
    after = evaluate(trained / "model.safetensors", data, "val")
    assert len(after.part) == len(before.part)
    assert after.metrics["accuracy"] == before.metrics["accuracy"]
    assert after.notes == ()
    asked_nothing = evaluate(trained / "model.safetensors", data)
    assert asked_nothing.split == "val"
    assert "66 other pictures were left out; --split all" in asked_nothing.notes[0]
    after.part.path(1).unlink()
    fewer = evaluate(trained / "model.safetensors", data, "val")
    assert fewer.notes[0].startswith(f"1 of the {len(before.part)} pictures that training took")
    everyone = evaluate(trained / "model.safetensors", data, "all")
    assert len(everyone.part) == 60 + 15 - 1
    assert everyone.notes == ("51 of these 74 pictures were trained on: expect too good a result",)


def test_a_split_that_is_not_there(trained, split_folder):
    with pytest.raises(DataError, match=r"no split 'test'; it has all, train, val"):
        evaluate(trained / "model.safetensors", trained.parent / "data", "test")
    found = evaluate(trained / "model.safetensors", split_folder)
    assert found.split == "val"
    assert len(found.part) == 18


def test_new_pictures_in_a_flat_folder_are_all_evaluated(trained, tmp_path, save):
    data = save(tmp_path / "new", 3, start=900)
    known = evaluate(trained / "model.safetensors", trained.parent / "data", "val").part
    shutil.copy(known.path(0), data / "blue" / "known.png")  # one old picture changes nothing
    assert len(evaluate(trained / "model.safetensors", data).part) == 10
    (data / "blue" / "known.png").unlink()
    found = evaluate(trained / "model.safetensors", data)
    assert (found.split, len(found.part)) == ("all", 9)
    with pytest.raises(DataError, match="None of the pictures that training took for 'val'"):
        evaluate(trained / "model.safetensors", data, "val")


def test_classes_match_by_name(trained, tmp_path, save):
    data = save(tmp_path / "some", 2)
    shutil.rmtree(data / "blue")
    found = evaluate(trained / "model.safetensors", data, "all")
    assert set(found.part.labels) == {1, 2}
    (data / "green").rename(data / "greenish")
    with pytest.raises(DataError, match=r"'greenish' \(did you mean 'green'\?\)"):
        evaluate(trained / "model.safetensors", data)


def test_a_broken_picture_is_named(trained, tmp_path, save):
    data = save(tmp_path / "some", 2)
    (data / "red" / "000.png").write_bytes(b"nothing")
    with pytest.raises(PictureError, match=r"red/000\.png: holds text"):
        evaluate(trained / "model.safetensors", data)


def test_confusions_are_sorted(trained):
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    wrong = confusions(found)
    assert sum(n for _, _, n in wrong) == found.metrics["errors"]
    assert [n for _, _, n in wrong] == sorted((n for _, _, n in wrong), reverse=True)
