from __future__ import annotations

import inspect
import json
import re
import shutil
from dataclasses import replace

import pytest
import torch
from torchvision.datasets import imagenette

from resnetkit import evaluate, train
from resnetkit.data.crops import center_crop, to_tensor
from resnetkit.data.decode import decode
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.transforms import normalize
from resnetkit.errors import DataError, ImageError
from resnetkit.evaluation.calibration import fit_temperature
from resnetkit.evaluation.metrics import confusions
from resnetkit.models import ResNet18_Weights, get_model
from resnetkit.models.weights import modelfile
from resnetkit.training import run_files


def test_evaluation_repeats_the_metrics_of_training_exactly(trained):
    recorded = json.loads((trained / "metrics.json").read_text())
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "val")
    assert found.metrics == recorded
    header = modelfile.read_header(trained / "model.safetensors")
    assert header.metrics["val_accuracy"] == found.metrics["accuracy"]
    assert header.metrics["val_loss"] == found.metrics["loss"]


def test_logits_equal_those_of_each_image_alone(trained):
    """Decode, crop and run each image alone."""
    model, header = modelfile.read(trained / "model.safetensors")
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all", workers=3)
    assert len(found.samples) == 60
    for i in (0, 17, 59):
        pixels = to_tensor(center_crop(decode(found.samples.path(i), 32), 32, 32))
        with torch.no_grad():
            alone = model(normalize(pixels[None], header.preprocessing))[0]
        torch.testing.assert_close(found.logits[i], alone, rtol=1e-4, atol=1e-5)


def test_a_model_file_needs_no_other_file(trained, tmp_path):
    copy = shutil.copy(trained / "model.safetensors", tmp_path / "elsewhere.safetensors")
    found = evaluate(copy, trained.parent / "data", "val")
    assert found.metrics == json.loads((trained / "metrics.json").read_text())


def test_a_split_is_found_by_the_contents_of_its_files(trained, tmp_path, save):
    data = shutil.copytree(trained.parent / "data", tmp_path / "data")
    before = evaluate(trained / "model.safetensors", data, "val")
    save(tmp_path / "more", 5, start=500)
    for path in sorted((tmp_path / "more").rglob("*.png")):
        shutil.copy(path, data / path.parent.name / path.name)
    renamed = before.samples.path(0)
    renamed.rename(renamed.with_name("renamed.png"))
    after = evaluate(trained / "model.safetensors", data, "val")
    assert len(after.samples) == len(before.samples)
    assert after.metrics["accuracy"] == before.metrics["accuracy"]
    assert after.notes == ()
    by_default = evaluate(trained / "model.safetensors", data)
    assert by_default.split == "val"
    assert "skipped 66 other images; --split all" in by_default.notes[0]
    after.samples.path(1).unlink()
    fewer = evaluate(trained / "model.safetensors", data, "val")
    assert fewer.notes[0].startswith(f"missing: 1 of the {len(before.samples)} images")
    all_images = evaluate(trained / "model.safetensors", data, "all")
    assert len(all_images.samples) == 60 + 15 - 1
    assert all_images.notes == (
        "the model was trained on 51 of these 74 images: expect an optimistic result",
    )


def test_digests_that_do_not_fit_in_the_header_are_left_out(trained, tmp_path, monkeypatch):
    """The validation images are still found."""
    file = trained / "model.safetensors"
    model, header = modelfile.read(file)
    digests = {name: split["digests"] for name, split in header.data["parts"].items()}
    assert {name: len(own) for name, own in digests.items()} == {"train": 51, "val": 9}
    monkeypatch.setattr(run_files, "MAX_DIGESTS", 59)
    parts = run_files.describe_splits(digests)
    assert parts == {
        "val": {"count": 9, "digests": digests["val"]},
        "train": {"count": 51, "digests": []},
    }
    short = tmp_path / "short.safetensors"
    modelfile.write(
        short, model.state_dict(), replace(header, data={**header.data, "parts": parts})
    )
    data = trained.parent / "data"
    assert sorted(evaluate(short, data).samples.paths) == sorted(evaluate(file, data).samples.paths)
    with pytest.raises(DataError, match=r"no split 'train'; it has all, val"):
        evaluate(short, data, "train")


def test_a_missing_split_is_an_error(trained, split_folder):
    with pytest.raises(DataError, match=r"no split 'test'; it has all, train, val"):
        evaluate(trained / "model.safetensors", trained.parent / "data", "test")
    found = evaluate(trained / "model.safetensors", split_folder)
    assert found.split == "val"
    assert len(found.samples) == 18


def test_the_split_of_a_training_that_is_not_there(trained, tmp_path, save):
    save(tmp_path / "data" / "test", 2)
    for split in ("val", "train"):
        with pytest.raises(DataError, match=f"no split '{split}'; it has test"):
            evaluate(trained / "model.safetensors", tmp_path / "data", split)


def test_new_images_in_a_flat_folder_are_all_evaluated(trained, tmp_path, save):
    data = save(tmp_path / "new", 3, start=900)
    known = evaluate(trained / "model.safetensors", trained.parent / "data", "val").samples
    shutil.copy(known.path(0), data / "blue" / "known.png")  # one known image changes nothing
    assert len(evaluate(trained / "model.safetensors", data).samples) == 10
    (data / "blue" / "known.png").unlink()
    found = evaluate(trained / "model.safetensors", data)
    assert (found.split, len(found.samples)) == ("all", 9)
    with pytest.raises(DataError, match="None of the images that training used for 'val'"):
        evaluate(trained / "model.safetensors", data, "val")


def test_classes_match_by_name(trained, tmp_path, save):
    data = save(tmp_path / "some", 2)
    shutil.rmtree(data / "blue")
    found = evaluate(trained / "model.safetensors", data, "all")
    assert set(found.samples.labels) == {1, 2}
    (data / "green").rename(data / "greenish")
    with pytest.raises(DataError, match=r"'greenish' \(did you mean 'green'\?\)"):
        evaluate(trained / "model.safetensors", data)


def test_a_broken_image_is_named(trained, tmp_path, save):
    data = save(tmp_path / "some", 2)
    (data / "red" / "000.png").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"red/000\.png: holds text"):
        evaluate(trained / "model.safetensors", data)


def test_confusions_are_sorted(trained):
    found = evaluate(trained / "model.safetensors", trained.parent / "data", "all")
    wrong = confusions(found.metrics)
    assert sum(n for _, _, n in wrong) == found.metrics["errors"]
    assert [n for _, _, n in wrong] == sorted((n for _, _, n in wrong), reverse=True)


def test_training_images_in_another_split_are_counted(tmp_path, save, small):
    data = tmp_path / "parts"
    save(data / "train", 6)
    save(data / "val", 3, start=100)
    save(data / "test", 2, start=200)
    run = train(data, out=tmp_path / "run", **{**small, "epochs": 1})
    assert evaluate(run.model, data, "val").notes == ()
    assert evaluate(run.model, data).split == "test"
    shutil.copy(data / "train" / "red" / "000.png", data / "test" / "red" / "again.png")
    (note,) = evaluate(run.model, data).notes
    assert note == "the model was trained on 1 of these 7 images: expect an optimistic result"
    (note,) = evaluate(run.model, data, "train").notes
    assert "trained on 18 of these 18 images" in note


def test_a_temperature_is_fitted_on_the_validation_split(trained, split_folder):
    file, data = trained / "model.safetensors", trained.parent / "data"
    before = file.read_bytes()
    plain = evaluate(file, data, "all")
    found = evaluate(file, data, "all", calibrate=True)
    fit = found.metrics.pop("temperature")
    assert found.metrics == plain.metrics
    val = evaluate(file, data, "val")
    assert fit["value"] == fit_temperature(val.logits, val.labels)
    assert (fit["fitted_on"], fit["pictures"]) == ("val", len(val.samples))
    assert fit["loss_before"] == plain.metrics["loss"]
    expected = torch.nn.functional.cross_entropy(plain.logits / fit["value"], plain.labels)
    assert fit["loss_after"] == pytest.approx(float(expected), rel=1e-5)
    assert file.read_bytes() == before
    assert (
        "fitted and measured on the same images"
        in evaluate(file, data, "val", calibrate=True).notes[-1]
    )


def test_folders_named_by_wordnet_ids_and_published_metrics(tmp_path, save):
    """The expected pairs of ids and names come from torchvision."""
    published = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]
    pairs = inspect.getsource(imagenette)
    ids = dict(re.findall(r'"(n\d{8})": \("([^"]+)"', pairs))
    assert len(ids) == 10
    torch.manual_seed(0)
    model = get_model("resnet18", num_classes=1000)
    numbers = {"data": "ImageNet-1K", "accuracy": 0.69758, "top5_accuracy": 0.89078}
    header = modelfile.Header(
        "resnet18",
        {"num_classes": 1000},
        tuple(published),
        Preprocessing(36, 32),
        metrics={"published": numbers},
    )
    modelfile.write(tmp_path / "m.safetensors", model.state_dict(), header)
    wordnet_ids = sorted(ids)[:3]
    data = save(tmp_path / "val", 2)
    for folder, name in zip(sorted(data.iterdir()), wordnet_ids, strict=True):
        folder.rename(data / name)
    found = evaluate(tmp_path / "m.safetensors", data)
    named = {published[label] for label in found.samples.labels}
    assert named == {ids[name] for name in wordnet_ids}
    assert found.metrics["published"] == numbers
    assert "and 987 more" in found.notes[0]
    (data / wordnet_ids[0]).rename(data / "n99999999")
    with pytest.raises(DataError, match="n99999999"):
        evaluate(tmp_path / "m.safetensors", data)


def test_a_validation_split_taken_from_train_is_found_beside_a_test_split(tmp_path, save, small):
    data = tmp_path / "parts"
    save(data / "train", 10)
    save(data / "test", 2, start=200)
    run = train(data, out=tmp_path / "run", **{**small, "epochs": 1})
    assert evaluate(run.model, data).split == "test"
    found = evaluate(run.model, data, "val", calibrate=True)
    assert found.metrics["accuracy"] == run.metrics["accuracy"]
    assert {path.split("/")[0] for path in found.samples.paths} == {"train"}
    assert len(found.samples) == found.metrics["temperature"]["pictures"] < 30
    later = evaluate(run.model, data, calibrate=True).metrics["temperature"]
    assert (later["fitted_on"], later["pictures"]) == ("val", len(found.samples))
    (note,) = evaluate(run.model, data, "train").notes
    assert f"trained on {30 - len(found.samples)} of these 30 images" in note
