from __future__ import annotations

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest

import resnetkit
from resnetkit.errors import ModelFileError, RecipeError
from resnetkit.inference import predictor as module
from resnetkit.models.weights import modelfile


@pytest.fixture(scope="module")
def predictor(trained):
    return resnetkit.load(trained / "model.safetensors")


@pytest.fixture(scope="module")
def paths(trained):
    return sorted((trained.parent / "data").rglob("*.png"))


@pytest.fixture
def plain_file(trained, tmp_path):
    """The same model, as older versions wrote it."""
    model, header = modelfile.read(trained / "model.safetensors")
    path = tmp_path / "plain.safetensors"
    modelfile.write(path, model.state_dict(), replace(header, calibration=None))
    return path


def noise(count):
    return np.random.default_rng(0).integers(0, 256, (count, 40, 40, 3), dtype=np.uint8)


def test_sets_follow_from_the_scores_in_the_file(predictor, trained, paths):
    scores = modelfile.read_header(trained / "model.safetensors").calibration.conformal
    count = len(scores)
    for coverage in (0.3, 0.6, count / (count + 1)):
        rank = int(np.ceil((count + 1) * coverage - 1e-9))
        smallest = np.exp(-scores[rank - 1])
        for answer in predictor(paths[::5], coverage=coverage):
            expected = [name for name, p in answer.top if p >= smallest * (1 - 1e-6)]
            assert list(answer.class_set) == (expected or [answer.top[0][0]])
            assert answer.to_dict()["set"] == list(answer.class_set)
            assert answer.strangeness is None


def test_noise_is_strange_and_known_images_are_not(predictor, paths):
    known = predictor(paths, false_alarms=0.15)
    strange = predictor(noise(8), false_alarms=0.15)
    assert [answer.class_name for answer in strange] == ["unknown"] * 8
    assert sum(answer.class_name == "unknown" for answer in known) <= 0.3 * len(known)
    for answer in [*known, *strange]:
        assert answer.is_strange == (answer.strangeness >= 0.85 - 1e-9)
        assert 0 <= answer.strangeness < 1
    # One image at a time, and with another threshold.
    assert predictor(noise(8)[0], false_alarms=0.15).strangeness == strange[0].strangeness
    assert predictor(paths[0], threshold=1.0, false_alarms=0.15).class_name == "unknown"


def test_without_a_request_nothing_is_computed(predictor, paths, monkeypatch):
    plain = predictor(paths[0])
    assert (plain.coverage, plain.false_alarms) == (None, None)
    assert (plain.class_set, plain.strangeness, plain.is_strange) == ((), None, False)
    asked = predictor(paths[0], coverage=0.5, false_alarms=0.5)
    assert (asked.top, asked.probability) == (plain.top, plain.probability)
    monkeypatch.setattr(module.Uncertainty, "answers", None)
    assert predictor(paths[0]) == plain


def test_unreadable_images_and_pickles(predictor, paths, tmp_path):
    gone = tmp_path / "gone.png"
    answers = predictor([gone, paths[0]], coverage=0.5, false_alarms=0.5)
    assert answers[0].to_dict()["set"] == []
    assert answers[0].to_dict()["strangeness"] is None
    assert answers[0].class_name is None
    again = pickle.loads(pickle.dumps(predictor))
    assert again(paths[0], coverage=0.5, false_alarms=0.5) == answers[1]


@pytest.mark.parametrize("value", [0.0, 1.0, -0.1, 2.0, float("nan")])
@pytest.mark.parametrize("name", ["coverage", "false_alarms"])
def test_shares_out_of_range_are_refused(predictor, paths, name, value):
    flag = "--" + name.replace("_", "-")
    with pytest.raises(RecipeError, match=f"{flag} must be above 0 and below 1"):
        predictor(paths[0], **{name: value})


def test_too_few_validation_images_say_what_is_possible(predictor, paths):
    """Of the run's 60 images, 9 are for validation."""
    count = predictor.header.calibration.count
    assert count == 9
    with pytest.raises(RecipeError, match=r"needs at least 19 .*with 9 validation images.* 0\.9\."):
        predictor(paths[0], coverage=0.95)
    with pytest.raises(RecipeError, match=r"needs at least 99 .*at least --false-alarms 0\.1\."):
        predictor(paths[0], false_alarms=0.01)
    predictor(paths[0], coverage=0.9, false_alarms=0.1)


def test_a_file_without_calibration_says_how_to_add_it(plain_file, paths, trained):
    old = resnetkit.load(plain_file)
    assert old(paths[0]).top == resnetkit.load(trained / "model.safetensors")(paths[0]).top
    with pytest.raises(ModelFileError, match=r"data for --coverage.*--calibrate --save-model"):
        old(paths[0], coverage=0.5)
    with pytest.raises(ModelFileError, match=r"for --coverage and --false-alarms"):
        next(old.stream([paths[0]], coverage=0.5, false_alarms=0.5))


def test_every_engine_answers(trained, paths):
    eager = resnetkit.load(trained / "model.safetensors")
    reference = eager(paths[::7], coverage=0.5, false_alarms=0.5)
    for engine, precision in (("onnx", "fp32"), ("eager", "bf16")):
        if engine == "onnx":
            pytest.importorskip("onnxruntime")
        other = resnetkit.load(trained / "model.safetensors", engine=engine, precision=precision)
        answers = other(paths[::7], coverage=0.5, false_alarms=0.5)
        for found, expected in zip(answers, reference, strict=True):
            # In bf16, images that are nearly equal to this tiny network swap places.
            assert abs(found.strangeness - expected.strangeness) <= (0.1 if engine == "onnx" else 1)
            assert found.to_dict().keys() == expected.to_dict().keys()
            assert json.loads(json.dumps(found.to_dict()))["set"]


def test_the_features_of_the_file_are_those_of_its_training_images(trained):
    header = modelfile.read_header(trained / "model.safetensors")
    means = header.calibration.means.array()
    data = trained.parent / "data"
    found = resnetkit.evaluate(trained / "model.safetensors", data, "train")
    predictor = resnetkit.load(trained / "model.safetensors")
    images = [found.samples.path(i) for i in range(len(found.samples))]
    features = np.stack([a.features for a in predictor.stream(images, features=True)])
    for index in range(len(header.classes)):
        mean = features[found.labels.numpy() == index].mean(0)
        np.testing.assert_allclose(means[index], mean, rtol=1e-4, atol=1e-5)
    assert np.isfinite(header.calibration.directions.array()).all()
