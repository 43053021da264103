"""docs/verify_artefact.py verifies an exported file without resnetkit, and notices changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from resnetkit.export.export import export

onnx = pytest.importorskip("onnx")
SCRIPT = Path(__file__).parents[2] / "docs" / "verify_artefact.py"


@pytest.fixture(scope="module")
def exported(tiny_model, tmp_path_factory):
    """Exported files of a small network, by the name of their input."""
    folder = tmp_path_factory.mktemp("reference")
    return {
        entrance: export(tiny_model, "onnx", folder / f"{entrance}.onnx", entrance=entrance).path
        for entrance in ("image", "crop")
    }


def verify(path):
    """Return the exit code of the script, and the rows of its table."""
    done = subprocess.run(
        [sys.executable, SCRIPT, path], capture_output=True, text=True, check=False
    )
    assert not done.stderr, done.stderr
    rows = (line.split(maxsplit=2) for line in done.stdout.splitlines())
    return done.returncode, {stage: verdict for stage, _, verdict in rows}


def altered(path, change):
    """Return a copy of an exported file after a change."""
    model = onnx.load(path)
    change(model)
    copy = path.with_name(f"{path.stem}-{change.__name__}.onnx")
    onnx.save(model, copy)
    return copy


def entry(model, key):
    return next(item for item in model.metadata_props if item.key == key)


def classes_in_another_order(model):
    manifest = entry(model, "resnetkit")
    content = json.loads(manifest.value)
    content["classes"] = [*content["classes"][1:], content["classes"][0]]
    manifest.value = json.dumps(content)


def weights_of_the_head(model):
    tensor = next(one for one in model.graph.initializer if one.name.endswith("head.weight"))
    values = onnx.numpy_helper.to_array(tensor)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.2), tensor.name))


def size_before_the_crop(model):
    """Resize to a different size from the one that was recorded."""
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT64:
            values = onnx.numpy_helper.to_array(tensor)
            if values.shape == () and values == 32:
                tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(38), tensor.name))


def no_golden_images(model):
    entry(model, "resnetkit.golden").value = '{"images": []}'


@pytest.mark.parametrize("entrance", ["image", "crop"])
def test_an_exported_file_agrees(exported, entrance):
    code, verdicts = verify(exported[entrance])
    assert verdicts.keys() == {"shape", "decoded", "cropped", "probabilities", "class"}
    assert set(verdicts.values()) == {"agrees"}
    assert code == 0


@pytest.mark.parametrize(
    ("change", "first"),
    [
        (classes_in_another_order, "class"),
        (weights_of_the_head, "probabilities"),
        (size_before_the_crop, "cropped"),
    ],
)
def test_a_changed_file_differs_from_the_stage_that_changed(exported, change, first):
    code, verdicts = verify(altered(exported["image"], change))
    assert next(stage for stage, verdict in verdicts.items() if verdict != "agrees") == first
    assert code == 1


def test_a_file_without_golden_images_proves_nothing(exported):
    assert verify(altered(exported["image"], no_golden_images)) == (1, {})


def test_it_needs_no_resnetkit():
    assert "import resnetkit" not in SCRIPT.read_text(encoding="utf-8")
    assert "from resnetkit" not in SCRIPT.read_text(encoding="utf-8")
    assert len(SCRIPT.read_text(encoding="utf-8").splitlines()) <= 60
