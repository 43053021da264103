"""Exported files answer like the model file, and without PyTorch."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from resnetkit import load
from resnetkit.cli.commands import app
from resnetkit.errors import ImageError, ModelFileError, OutputError
from resnetkit.export.export import export
from resnetkit.export.predictor import ExportedPredictor

pytest.importorskip("onnx")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A trained model file with calibration data, its photos, and an exported file."""
    photos = trained.parent / "data"
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    model_file = trained / "model.safetensors"
    return model_file, photos, export(model_file, "onnx", path, data=photos)


def test_rows_have_the_same_form_and_nearly_the_same_numbers(exported):
    model_file, photos, found = exported
    paths = sorted(photos.rglob("*.png"))[:9]
    paths.insert(3, photos / "missing.png")
    settings = {"coverage": 0.9, "false_alarms": 0.2}
    own = list(load(model_file).stream(paths, **settings))
    other = list(ExportedPredictor(found.path).stream(paths, **settings))
    for a, b in zip(own, other, strict=True):
        first, second = a.to_dict(), b.to_dict()
        assert first.keys() == second.keys()
        assert (first["source"], first["error"]) == (second["source"], second["error"])
        assert first["model"] == second["model"]
        if a.error is None:  # the decoders differ: scaled and full
            assert abs(first["probability"] - second["probability"]) < 0.05
            assert abs(first["strangeness"] - second["strangeness"]) <= 0.2


def test_the_note_compares_the_two_decoders(exported):
    (note,) = exported[2].notes
    assert "decoder scaled" in note
    assert "decoder full" in note


def test_images_of_several_sizes_keep_their_order(exported):
    predictor = ExportedPredictor(exported[2].path)
    rng = np.random.default_rng(0)
    sizes = [(40, 36), (40, 36), (20, 90), (40, 36), (33, 33), (33, 33), (33, 33)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    together = predictor(images)
    for image, answer in zip(images, together, strict=True):
        alone = predictor(image)
        assert alone.top[0][0] == answer.top[0][0]
        assert abs(alone.top[0][1] - answer.top[0][1]) < 1e-5


def test_answers_about_images_in_memory_keep_thumbnails_for_notebooks(exported):
    predictor = ExportedPredictor(exported[2].path)
    image = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    for answer in (predictor(image), *predictor([image] * 2)):
        with Image.open(io.BytesIO(answer.image)) as shown:
            assert shown.size == (160, 120)
        assert "<img" in answer._repr_html_()


def test_other_forms_of_an_image(exported):
    predictor = ExportedPredictor(exported[2].path)
    path = min(exported[1].rglob("*.png"))
    answers = [
        predictor(form)
        for form in (
            path,
            str(path),
            path.read_bytes(),
            Image.open(path),
            np.asarray(Image.open(path)),
        )
    ]
    assert len({answer.top for answer in answers}) == 1
    with pytest.raises(ImageError):
        predictor(b"text")


def test_features_are_those_of_the_model_file(exported):
    model_file, photos, found = exported
    path = min(photos.rglob("*.png"))
    own = next(load(model_file).stream([path], features=True))
    other = next(ExportedPredictor(found.path).stream([path], features=True))
    assert own.features.shape == other.features.shape
    assert np.corrcoef(own.features, other.features)[0, 1] > 0.99


def test_an_output_that_is_not_finite_is_an_error(exported, monkeypatch):
    predictor = ExportedPredictor(exported[2].path)
    original = predictor.run

    def run(inputs, stages):
        for number, answer in enumerate(original(inputs, stages)):
            if number == 1:
                answer = {name: np.full_like(value, np.nan) for name, value in answer.items()}
            yield answer

    monkeypatch.setattr(predictor, "run", run)
    paths = sorted(exported[1].rglob("*.png"))[:3]
    answers = list(predictor.stream(paths, coverage=0.9, false_alarms=0.2))
    assert [answer.class_name is None for answer in answers] == [False, True, False]
    assert "the model's output for this image is NaN or infinite" in answers[1].error


WITHOUT = """
import sys
sys.argv = ["resnet", *sys.argv[1:]]
from resnetkit.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
assert "torch" not in sys.modules and "sklearn" not in sys.modules
status = open("/proc/self/status").read().split()
print(int(status[status.index("VmHWM:") + 1]) // 1024, file=sys.stderr)
"""


@pytest.mark.parametrize("command", ["predict", "evaluate", "bench", "verify"])
def test_commands_never_import_pytorch(exported, command):
    _, photos, found = exported
    arguments = {
        "predict": [min(photos.rglob("*.png")), "--coverage", "0.9", "--false-alarms", "0.2"],
        "evaluate": [photos],
        "bench": ["--seconds", "0.01"],
        "verify": [],
    }[command]
    words = [sys.executable, "-c", WITHOUT, command, found.path, *arguments]
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    most = 400 if command == "verify" else 300  # verify resizes a 12-megapixel image
    assert int(done.stderr.split()[-1]) < most  # MB; PyTorch alone takes more
    assert done.stdout


def test_evaluate_has_the_numbers_of_the_model_file(exported):
    from resnetkit import evaluate
    from resnetkit.export.evaluate import evaluate_exported

    model_file, photos, found = exported
    own = evaluate(model_file, photos)
    other = evaluate_exported(found.path, photos)
    assert (own.split, own.classes) == (other.split, other.classes)
    assert own.metrics.keys() - other.metrics.keys() == set()
    assert abs(own.metrics["accuracy"] - other.metrics["accuracy"]) <= 0.1
    assert own.samples.labels.tolist() == other.samples.labels.tolist()


def test_folders_named_by_wordnet_ids_are_matched(tiny_model, flat_folder, tmp_path):
    from resnetkit.export.evaluate import evaluate_exported
    from resnetkit.models.weights import imagenet_classes, imagenet_ids, modelfile

    network, header = modelfile.read(tiny_model)
    named = dataclasses.replace(header, classes=tuple(imagenet_classes()[:3]))
    modelfile.write(tmp_path / "model.safetensors", network.state_dict(), named)
    for color, wordnet_id in zip(header.classes, imagenet_ids(), strict=False):
        (flat_folder / color).rename(flat_folder / wordnet_id)
    found = export(tmp_path / "model.safetensors", data=flat_folder)
    assert "accuracy on all (48 images)" in found.notes[0]
    evaluation = evaluate_exported(found.path, flat_folder)
    assert evaluation.classes == ("tench", "goldfish", "great white shark")
    assert np.bincount(evaluation.samples.labels).tolist() == [16, 16, 16]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{file}", "{image}", "--engine", "onnx"], "--engine cannot be used"),
        (["evaluate", "{file}", "{photos}", "--flip"], "--flip cannot be used"),
        (["bench", "{file}", "--device", "cuda"], "--device cannot be used"),
        (["export", "{model}", "--to", "tensorrt"], "--to must be"),
        (["export", "{model}", "--out", "x.txt"], "ends in .onnx"),
        (["export", "{model}", "--to", "web", "--input", "crop"], "Remove --input"),
        (["export", "{model}", "--runtime", "x"], "applies only to --to web"),
        (["export", "{model}", "--golden", "none", "--out", "y.onnx"], "photos or made"),
        (["export", "{model}", "--out", "{file}"], "exists"),
    ],
)
def test_what_cannot_be_done_is_said(exported, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    model_file, photos, found = exported
    image = min(photos.rglob("*.png"))
    names = {"file": found.path, "image": image, "photos": photos, "model": model_file}
    done = CliRunner().invoke(app, [word.format(**names) for word in arguments])
    assert done.exception is not None
    assert message in str(done.exception)


def test_a_parent_that_is_a_file_is_refused_before_the_work(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr("resnetkit.export.export.record", None)
    with pytest.raises(OutputError, match="file is a file"):
        export(tiny_model, "onnx", tmp_path / "file" / "model.onnx")


def test_commands_that_need_the_model_file_say_so(exported):
    _, photos, found = exported
    image = str(min(photos.rglob("*.png")))
    for words in (["explain", str(found.path), image], ["similar", str(found.path), image, image]):
        done = CliRunner().invoke(app, words)
        assert "has the extension of an exported file" in str(done.exception)
    with pytest.raises(ModelFileError, match=r"resnetkit\.ExportedPredictor"):
        load(found.path)


def test_a_model_without_calibration_says_what_to_export(tiny_model, tmp_path):
    file = export(tiny_model, "onnx", tmp_path / "tiny.onnx").path
    with pytest.raises(ModelFileError, match="resnet evaluate MODEL DATA --calibrate") as caught:
        ExportedPredictor(file).resolve_uncertainty(0.9, None)
    assert str(caught.value).endswith("Then export NEW.safetensors")
    with pytest.raises(ModelFileError, match="has the extension of an exported file"):
        export(file)


def test_rows_from_the_command(exported):
    _, photos, found = exported
    images = sorted(map(str, photos.rglob("*.png")))[:2]
    words = ["predict", str(found.path), *images, "--format", "jsonl"]
    rows = [json.loads(line) for line in CliRunner().invoke(app, words).stdout.splitlines()]
    assert [row["source"] for row in rows] == images
    assert rows[0].keys() == {"source", "class", "probability", "top", "model", "error"}
