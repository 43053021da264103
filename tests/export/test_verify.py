"""`verify` names the first stage at which a changed file disagrees."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from resnetkit.errors import ArtefactError, OutputError
from resnetkit.export.artefact import read_artefact
from resnetkit.export.export import export
from resnetkit.export.verify import verify

onnx = pytest.importorskip("onnx")
TARGETS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


@pytest.fixture(scope="module")
def onnx_file(tiny_model, tmp_path_factory):
    return export(tiny_model, "onnx", tmp_path_factory.mktemp("verify") / "model.onnx").path


@pytest.mark.parametrize("entrance", ["crop", pytest.param("image", marks=pytest.mark.slow)])
@pytest.mark.parametrize("to", list(TARGETS))
def test_every_runtime_agrees_at_every_stage(tiny_model, tmp_path, to, entrance):
    exported = export(tiny_model, to, tmp_path / f"model{TARGETS[to]}", entrance=entrance)
    report = verify(read_artefact(exported.path), threads=1)
    stages = {result.stage: result for result in report.stages}
    assert report.agrees
    assert list(stages) == [
        "decoded", "cropped", "normalized", "logits", "probabilities", "class",
    ]  # fmt: skip
    assert all(result.images == 17 and not result.note for result in report.stages)
    assert stages["decoded"].largest == 0  # the same decoder
    assert stages["cropped"].largest == 0 if entrance == "crop" else stages["cropped"].largest <= 2


def constant(model, wanted):
    """Return the initializers that hold these values."""
    found = []
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.shape == np.shape(wanted) and np.allclose(values, wanted):
            found.append(tensor)
    assert found
    return found


def put(tensor, values):
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def manifest(model):
    return next(item for item in model.metadata_props if item.key == "resnetkit")


def another_size(model):
    for tensor in constant(model, 32):
        if tensor.data_type == onnx.TensorProto.INT64:
            put(tensor, np.array(40))


def another_filter(model):
    """Shrink with a filter that is not widened, as `antialias=False` does."""
    for node in [node for node in model.graph.node if node.op_type == "Max"][:2]:
        node.op_type = "Min"


def swapped_channels(model):
    """Read the image as BGR."""
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2, 1, 0]), "bgr_order"))
    for node in model.graph.node:
        node.input[:] = ["bgr" if name == "image" else name for name in node.input]
    swap = onnx.helper.make_node("Gather", ["image", "bgr_order"], ["bgr"], axis=3)
    model.graph.node.insert(0, swap)


def another_mean(model):
    mean = np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1)
    for tensor in constant(model, mean):
        put(tensor, np.full_like(mean, 0.5))


def another_first_layer(model):
    weights = next(tensor for tensor in model.graph.initializer if tensor.dims[1:] == [3, 3, 3])
    put(weights, onnx.numpy_helper.to_array(weights)[:, ::-1].copy())


def another_order_of_classes(model):
    entry = manifest(model)
    content = json.loads(entry.value)
    content["classes"] = [*content["classes"][1:], content["classes"][0]]
    entry.value = json.dumps(content)


def logits_twice(model):
    """Compute the probabilities with half the temperature."""
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    double = onnx.helper.make_node("Add", ["logits", "logits"], ["double"])
    softmax.input[0] = "double"
    model.graph.node.insert(list(model.graph.node).index(softmax), double)


@pytest.mark.parametrize(
    ("change", "stage"),
    [
        (another_size, "cropped"),
        (another_filter, "cropped"),
        (swapped_channels, "cropped"),
        (another_mean, "normalized"),
        (another_first_layer, "logits"),
        (logits_twice, "probabilities"),
        (another_order_of_classes, "class"),
    ],
)
def test_the_stage_that_changed_is_named(onnx_file, tmp_path, change, stage):
    from resnetkit.cli.commands import app

    model = onnx.load(onnx_file)
    change(model)
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    report = verify(read_artefact(path), threads=1)
    assert report.first_failure is not None
    assert report.first_failure.stage == stage, str(report)
    done = CliRunner().invoke(app, ["verify", str(path), "--format", "json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout)["first_failure"] == stage


def test_a_decoder_that_differs_is_named(onnx_file, monkeypatch):
    from resnetkit.export import preparation

    real = preparation.decode
    monkeypatch.setattr(preparation, "decode", lambda *a, **k: real(*a, **k)[:, ::-1].copy())
    report = verify(read_artefact(onnx_file), threads=1)
    assert report.first_failure is not None
    assert report.first_failure.stage == "decoded"


def test_renamed_tensors_are_reported_and_the_answers_still_compared(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = ["other" if name == "cropped" else name for name in names]
    onnx.save(model, tmp_path / "renamed.onnx")
    report = verify(read_artefact(tmp_path / "renamed.onnx"), threads=1)
    assert report.agrees
    assert "the file does not expose it" in str(report)


@pytest.mark.parametrize("name", ["model.xml", "model.bin"])
def test_openvino_overwrites_neither_of_its_two_files(tiny_model, tmp_path, name):
    (tmp_path / name).write_bytes(b"from elsewhere")
    with pytest.raises(OutputError, match=f"{name} exists. Name another path"):
        export(tiny_model, "openvino", tmp_path / "model.xml")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [
        (name, b"from elsewhere")
    ]


def test_a_file_without_golden_images_cannot_be_verified(onnx_file, tmp_path):
    model = onnx.load(onnx_file)
    del model.metadata_props[1:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(ArtefactError, match="no golden images"):
        verify(read_artefact(tmp_path / "bare.onnx"))
