from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import resnetkit
from resnetkit.errors import DataError
from resnetkit.evaluation import strangeness
from resnetkit.evaluation.calibrate import add_calibration
from resnetkit.models.weights import modelfile


@pytest.fixture
def plain_file(trained, tmp_path):
    """The same model, as older versions wrote it."""
    model, header = modelfile.read(trained / "model.safetensors")
    path = tmp_path / "plain.safetensors"
    modelfile.write(path, model.state_dict(), replace(header, calibration=None))
    return path


def test_training_writes_what_evaluation_finds(trained):
    path = trained / "model.safetensors"
    found = resnetkit.evaluate(path, trained.parent / "data", "val", calibrate=True)
    calibration = modelfile.read_header(path).calibration
    assert calibration.count == len(found.samples) == 9
    assert calibration.temperature == found.metrics["temperature"]["value"]
    shares = np.exp(-np.array(calibration.conformal))
    softmax = found.logits.double().softmax(1).numpy()[np.arange(9), found.labels]
    np.testing.assert_allclose(shares, np.sort(softmax)[::-1], rtol=1e-5)
    predictor = resnetkit.load(path)
    images = [found.samples.path(i) for i in range(9)]
    shown = predictor(images, coverage=0.9, false_alarms=0.1)
    # Scores are rounded up, so that no image is stranger than itself.
    assert sorted(a.strangeness for a in shown) == pytest.approx(np.arange(9) / 10)
    for label, answer in zip(found.labels, shown, strict=True):  # the limit is the largest score
        assert found.classes[label] in answer.class_set
    assert modelfile.read_header(trained / "last.safetensors").calibration is None


def test_calibration_can_be_added_later(trained, plain_file, tmp_path):
    before = plain_file.read_bytes()
    add_calibration(plain_file, trained.parent / "data", tmp_path / "new.safetensors")
    assert plain_file.read_bytes() == before
    expected_header = modelfile.read_header(trained / "model.safetensors")
    header = modelfile.read_header(tmp_path / "new.safetensors")
    assert header.calibration.temperature == expected_header.calibration.temperature
    assert header.calibration.conformal == expected_header.calibration.conformal
    np.testing.assert_allclose(
        header.calibration.strangeness, expected_header.calibration.strangeness, rtol=1e-3
    )
    np.testing.assert_allclose(
        header.calibration.means.array(),
        expected_header.calibration.means.array(),
        rtol=1e-5,
        atol=1e-7,
    )
    assert replace(header, calibration=None) == replace(expected_header, calibration=None)


def test_validation_images_in_the_training_folder_are_not_fitted(
    trained, plain_file, tmp_path, monkeypatch
):
    """With train/ alone, training takes its validation images from there."""
    shutil.copytree(trained.parent / "data", tmp_path / "data" / "train")
    seen = []
    monkeypatch.setattr(
        "resnetkit.evaluation.calibrate.balanced_indices",
        lambda labels, *_: seen.append(len(labels)) or np.arange(len(labels)),
    )
    add_calibration(plain_file, tmp_path / "data", tmp_path / "new.safetensors")
    assert seen == [51]  # of 60, 9 were held out
    add_calibration(plain_file, trained.parent / "data", tmp_path / "same.safetensors")
    same = (tmp_path / name for name in ("new.safetensors", "same.safetensors"))
    assert len({path.read_bytes() for path in same}) == 1


def test_a_class_without_training_images_is_named(trained, plain_file, split_folder, tmp_path):
    shutil.rmtree(split_folder / "train" / "green")
    with pytest.raises(DataError, match=r"no training images of 'green'.*name the dataset"):
        add_calibration(plain_file, split_folder, tmp_path / "new.safetensors")
    assert not (tmp_path / "new.safetensors").exists()


def test_images_that_the_model_was_trained_on_do_not_calibrate_it(trained, plain_file, tmp_path):
    data = trained.parent / "data"
    shutil.copytree(data, tmp_path / "split" / "train")
    shutil.copytree(data, tmp_path / "split" / "val")
    with pytest.raises(DataError, match=r"trained on 51 of the 60 validation images"):
        add_calibration(plain_file, tmp_path / "split", tmp_path / "new.safetensors")


def test_few_images_are_chosen_by_seed(trained, plain_file, tmp_path, monkeypatch):
    monkeypatch.setattr(strangeness, "IMAGES", 12)
    monkeypatch.setattr(strangeness, "IMAGES_PER_CLASS", 2)
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    add_calibration(plain_file, trained.parent / "data", files[0], workers=0)
    add_calibration(plain_file, trained.parent / "data", files[1], workers=3)
    assert files[0].read_bytes() == files[1].read_bytes()
    monkeypatch.setattr(strangeness, "IMAGES", 13)
    add_calibration(plain_file, trained.parent / "data", files[2])
    assert files[0].read_bytes() != files[2].read_bytes()


def test_the_command_writes_a_copy(trained, plain_file, tmp_path):
    def evaluate(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "resnetkit", "evaluate", plain_file, trained.parent / "data",
             *arguments],
            capture_output=True, text=True, cwd=tmp_path, timeout=300,
        )  # fmt: skip

    done = evaluate("--save-model", "new.safetensors")
    assert done.returncode == 2
    assert "Add --calibrate" in done.stderr
    done = evaluate("--calibrate", "--save-model", "new.safetensors", "--flip")
    assert done.returncode == 2
    assert "Remove --image-size, --crops and --flip" in done.stderr
    done = evaluate("--calibrate", "--save-model", "new.safetensors")
    assert done.returncode == 0, done.stderr
    assert "wrote new.safetensors" in done.stderr
    assert modelfile.read_header(tmp_path / "new.safetensors").calibration.count == 9
    done = evaluate("--calibrate", "--save-model", "new.safetensors")
    assert done.returncode == 1
    assert "new.safetensors exists" in done.stderr
