"""int8: calibrated on every class, compared with fp32, refused if it is worse."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest

from resnetkit.data.folder import read_dataset
from resnetkit.errors import ArtefactError, RecipeError
from resnetkit.export import quantize
from resnetkit.export.artefact import read_artefact
from resnetkit.export.export import export
from resnetkit.export.verify import verify

pytest.importorskip("onnx")
pytest.importorskip("nncf")


def test_calibration_images_come_from_every_class(flat_folder):
    samples = read_dataset(flat_folder).splits["all"]
    chosen = quantize.calibration_images(samples, 10)
    counts = Counter(path.parent.name for path in chosen)
    assert sorted(counts.values()) == [3, 3, 4]
    assert chosen == quantize.calibration_images(samples, 10)
    assert len(quantize.calibration_images(samples, 1)) == 3  # at least one of each
    assert len(set(quantize.calibration_images(samples, 10_000))) == len(samples)


@pytest.mark.parametrize(
    ("before", "after", "p_value", "worse"),
    [
        (0.9, 0.9, 1.0, False),
        (0.9, 0.95, 0.01, False),
        (0.9, 0.898, 0.5, False),
        (0.9, 0.896, 0.5, True),
        (0.9, 0.899, 0.01, True),
    ],
)
def test_when_it_is_worse(before, after, p_value, worse):
    assert quantize.Comparison("val", 100, before, after, p_value, 2.0).is_worse is worse


def test_pytorch_has_no_8_bit_files(tiny_model, flat_folder, tmp_path):
    with pytest.raises(RecipeError, match="--to onnx and --to openvino"):
        export(tiny_model, "torch", tmp_path / "a.pt2", int8=flat_folder)


@pytest.mark.slow
@pytest.mark.parametrize(("to", "ending"), [("onnx", ".onnx"), ("openvino", ".xml")])
def test_8_bits_agree_with_themselves_and_nearly_with_fp32(trained, tmp_path, to, ending):
    model_file, photos = trained / "model.safetensors", trained.parent / "data"
    whole = export(model_file, to, tmp_path / f"whole{ending}", data=photos)
    levels = [handler.level for handler in logging.root.handlers]
    small = export(model_file, to, tmp_path / f"small{ending}", int8=photos)
    assert [handler.level for handler in logging.root.handlers] == levels
    assert "in int8" in small.notes[0]
    artefact = read_artefact(small.path)
    assert artefact.manifest.precision == "int8"
    assert verify(artefact).agrees
    first, second = (read_artefact(found.path).golden for found in (whole, small))
    for a, b in zip(first, second, strict=True):
        assert (a.name, a.sha256) == (b.name, b.sha256)
    changes = [np.abs(a.logits - b.logits).max() for a, b in zip(first, second, strict=True)]
    assert max(changes) > 0

    def size(path):
        return (path.with_suffix(".bin") if to == "openvino" else path).stat().st_size

    assert size(small.path) < size(whole.path)


@pytest.mark.slow
def test_a_worse_file_is_refused_and_kept_under_another_name(trained, tmp_path, monkeypatch):
    model_file, photos = trained / "model.safetensors", trained.parent / "data"
    monkeypatch.setattr(quantize.Comparison, "is_worse", property(lambda self: True))
    with pytest.raises(ArtefactError, match="int8 is worse than fp32"):
        export(model_file, "onnx", tmp_path / "small.onnx", int8=photos)
    assert not (tmp_path / "small.onnx").exists()
    assert read_artefact(tmp_path / "small-worse.onnx").manifest.precision == "int8"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small-worse.onnx"]
