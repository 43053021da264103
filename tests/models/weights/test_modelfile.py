from __future__ import annotations

import contextlib
import json
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import resnetkit
from resnetkit.calibration import Calibration, Matrix
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import ModelFileError, OutputError, WeightsError
from resnetkit.evaluation.explain import explain
from resnetkit.models import convert, get_model
from resnetkit.models.skeleton import get_skeleton
from resnetkit.models.weights import modelfile
from resnetkit.models.weights.modelfile import Header

OPTIONS = {"num_classes": 3, "width": 4}
FIXTURES = Path(__file__).parents[2] / "fixtures"


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = get_model("cifar_resnet20", **OPTIONS).eval()
    values = {
        "architecture": "cifar_resnet20",
        "options": OPTIONS,
        "classes": ("a", "ü", "花"),
        "preprocessing": Preprocessing(32, 28),
        "metrics": {"val_accuracy": 0.5},
        "recipe": {"seed": 3, "value_range": None},
        "data": {"name": "x", "parts": {}},
    }
    return model, Header(**{**values, **changes})


@pytest.fixture
def file(tmp_path):
    model, header = make()
    modelfile.write(tmp_path / "m.safetensors", model.state_dict(), header)
    return tmp_path / "m.safetensors"


def test_round_trip(file):
    model, header = make()
    loaded, read = modelfile.read(file)
    assert read == header
    assert not loaded.training
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize("length", range(8))
def test_tensors_lie_in_memory_as_pytorchs_own_do(tmp_path, length):
    model, header = make(data={"name": "x" * 8 * length})
    modelfile.write(tmp_path / "m", model.state_dict(), header)
    loaded, _ = modelfile.read(tmp_path / "m")
    assert {tensor.data_ptr() % 64 for tensor in loaded.state_dict().values()} == {0}


def test_two_names_may_share_their_memory(tmp_path):
    model, header = make()
    model.layer1[0].bn2.weight = model.layer1[0].bn1.weight
    modelfile.write(tmp_path / "m", model.state_dict(), header)
    loaded, _ = modelfile.read(tmp_path / "m")
    x = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded(x), model(x))


@pytest.mark.parametrize(
    "options", [{"in_channels": -1}, {"width": -4}, {"num_classes": -3}, {"in_channels": 2**62}]
)
def test_invalid_options_are_named(tmp_path, options):
    model, header = make(options={**OPTIONS, **options})
    modelfile.write(tmp_path / "m", model.state_dict(), header)
    (name, value), *_ = options.items()
    with pytest.raises(ModelFileError, match=f"cannot be built .*{name}.*{value}"):
        modelfile.read(tmp_path / "m")
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        get_skeleton("cifar_resnet20", **options)


def test_the_same_model_gives_the_same_bytes(file, tmp_path):
    model, header = make()
    other = tmp_path / "other"
    channels_last = model.to(memory_format=torch.channels_last)
    modelfile.write(other, channels_last.state_dict(), header)
    assert other.read_bytes() == file.read_bytes()
    again, read = modelfile.read(file)
    modelfile.write(other, again.state_dict(), read)
    assert other.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_cut_short(file, keep):
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ModelFileError, match=r"m\.safetensors.*(cut short|damaged)"):
        modelfile.read(file)


def test_flipped_bits_in_the_header_raise_or_are_harmless(file):
    whole = file.read_bytes()
    length = struct.unpack("<Q", whole[:8])[0]
    for position in range(0, 8 + length, 37):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        file.write_bytes(bytes(damaged))
        with contextlib.suppress(ModelFileError):  # any other exception fails the test
            modelfile.read(file)


def test_other_files(tmp_path):
    torch.save({"x": torch.zeros(1)}, tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=r"it is a PyTorch file.*resnet convert .*x\.pth"):
        modelfile.read(tmp_path / "x.pth")
    (tmp_path / "x.txt").write_text("hello, this is some text")
    with pytest.raises(ModelFileError, match="not a resnetkit model file"):
        modelfile.read(tmp_path / "x.txt")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match="without the entry 'resnetkit'"):
        modelfile.read(tmp_path / "x.safetensors")
    with pytest.raises(ModelFileError, match="does not exist"):
        modelfile.read(tmp_path / "gone")
    with pytest.raises(ModelFileError, match="is a folder"):
        modelfile.read(tmp_path)
    (tmp_path / "huge").write_bytes(struct.pack("<Q", 2**40) + b"{")
    with pytest.raises(ModelFileError, match="header would have"):
        modelfile.read(tmp_path / "huge")


def rewrite(file, **changes):
    """Write the same tensors with other values in the header."""
    model, header = make()
    content = {**json.loads(header.to_json()), **changes}
    tensors = {k: v.contiguous() for k, v in model.state_dict().items()}
    save_file(tensors, file, metadata={"resnetkit": json.dumps(content)})


def test_convert_leaves_a_model_file_alone(file, tmp_path):
    with pytest.raises(WeightsError, match="is already a model file"):
        convert(file, tmp_path / "other.safetensors")
    assert not (tmp_path / "other.safetensors").exists()


def test_a_full_disk_raises(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("No space left on device")

    model, header = make()
    monkeypatch.setattr(modelfile, "save_file", full)
    with pytest.raises(OutputError, match=r"m\.safetensors cannot be written .No space left"):
        modelfile.write(tmp_path / "m.safetensors", model.state_dict(), header)
    assert list(tmp_path.iterdir()) == []


def test_a_newer_version_says_to_upgrade(file):
    rewrite(file, format_version=3)
    with pytest.raises(ModelFileError, match=r"version 3.* up to 2.*pip install --upgrade"):
        modelfile.read(file)


def test_half_precision_is_read_as_float32(tmp_path):
    model, header = make()
    state = {n: t.half() if t.ndim > 1 else t for n, t in model.state_dict().items()}
    modelfile.write(tmp_path / "half", state, header)
    modelfile.write(tmp_path / "full", model.state_dict(), header)
    assert (tmp_path / "half").stat().st_size < 0.6 * (tmp_path / "full").stat().st_size
    found, found_header = modelfile.read(tmp_path / "half")
    assert found_header == header
    for name, tensor in found.state_dict().items():
        assert tensor.dtype == model.state_dict()[name].dtype
        assert torch.equal(tensor, state[name].to(tensor.dtype))
    versions = {
        name: modelfile._read_json(tmp_path / name)["format_version"] for name in ("half", "full")
    }
    assert versions == {"half": 2, "full": 1}  # older releases can read version 1


MEANS = torch.randn(3, 16, generator=torch.Generator().manual_seed(1)).numpy()
CALIBRATION = Calibration(
    count=4,
    temperature=1.25,
    conformal=(0.0, 0.01, 0.5, 2.5),
    strangeness=(-3.5, 0.2, 0.2, 7.0),
    distance_scale=0.75,
    means=Matrix.from_array(MEANS),
    directions=Matrix.from_array(torch.linspace(-0.1, 0.1, 32).view(2, 16).numpy()),
)


def test_calibration_is_kept_beside_the_network(tmp_path):
    model, header = make(calibration=CALIBRATION)
    path = tmp_path / "m.safetensors"
    modelfile.write(path, model.state_dict(), header)
    assert modelfile.read_header(path) == header
    loaded, read = modelfile.read(path)
    assert read == header
    assert np.array_equal(read.calibration.means.array(), MEANS)
    again = tmp_path / "again"
    modelfile.write(again, loaded.state_dict(), read)
    assert again.read_bytes() == path.read_bytes()


def test_other_programs_find_the_network_alone(tmp_path):
    """Calibration adds no tensors and no version: other programs read the file as before."""
    model, header = make(calibration=CALIBRATION)
    path = tmp_path / "m.safetensors"
    modelfile.write(path, model.state_dict(), header)
    assert load_file(path).keys() == model.state_dict().keys()
    assert modelfile._read_json(path)["format_version"] == 1


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_others_may_read_what_the_umask_allows(tmp_path):
    model, header = make()
    before = os.umask(0o022)
    try:
        modelfile.write(tmp_path / "m.safetensors", model.state_dict(), header)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "m.safetensors").stat().st_mode) == 0o644


def test_a_file_without_calibration_is_written_as_before(file):
    assert modelfile._read_json(file)["format_version"] == 1
    assert "calibration" not in modelfile._read_json(file)


def test_calibration_of_earlier_versions_is_still_read():
    """``calibration.safetensors`` was written when the entry was new; it never changes."""
    model, header = modelfile.read(FIXTURES / "calibration.safetensors")
    expected = json.loads((FIXTURES / "calibration.json").read_text())
    assert replace(header.calibration, means=None) == replace(CALIBRATION, means=None)
    logits = model(torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28))
    torch.testing.assert_close(logits, torch.tensor(expected["logits"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(header.calibration.means.array(), expected["means"], rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "1"}, "no format_version"),
        ({"architecture": "resnet19"}, "Unknown model 'resnet19'.*resnet18"),
        ({"architecture": "resnet18"}, "does not fit its architecture resnet18"),
        ({"options": {"num_classes": 3, "depth": 7}}, "cannot be built.*depth"),
        ({"options": {"num_classes": 4, "width": 4}}, "fc.weight is .* not .*4, 16."),
        ({"options": {"num_classes": 10**12, "width": 10**9}}, "does not fit|cannot be built"),
        ({"classes": ["a"]}, "1 class name for 3 logits"),
        ({"classes": "abc"}, "classes is str"),
        ({"preprocessing": {"decoder": "x"}}, "preprocessing"),
    ],
)
def test_headers_that_do_not_fit(file, changes, message):
    rewrite(file, **changes)
    with pytest.raises(ModelFileError, match=message):
        modelfile.read(file)


def test_missing_and_unknown_tensors(file):
    model, header = make()
    tensors = dict(model.state_dict())
    del tensors["bn1.bias"]
    tensors["bn9.bias"] = torch.zeros(4)
    modelfile.write(file, tensors, header)
    with pytest.raises(ModelFileError, match=r"bn1\.bias is missing; bn9\.bias is unknown"):
        modelfile.read(file)


def test_the_first_version_is_still_read():
    """``format_v1.safetensors`` was written by version 0.1.0; it never changes."""
    model, header = modelfile.read(FIXTURES / "format_v1.safetensors")
    assert header.classes == ("a", "ü", "花")
    assert header.preprocessing == Preprocessing(32, 28, value_range="image")  # as it was then
    logits = model(torch.linspace(-1, 1, 3 * 28 * 28).view(1, 3, 28, 28))
    expected = torch.tensor(json.loads((FIXTURES / "format_v1.json").read_text()))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_head_says_what_to_do(tmp_path, flat_folder):
    file = tmp_path / "body.safetensors"
    net = get_model("cifar_resnet20", width=4, num_classes=0)
    header = Header("cifar_resnet20", {"width": 4, "num_classes": 0}, (), Preprocessing(32, 32))
    modelfile.write(file, net.state_dict(), header)
    image = next(flat_folder.rglob("*.*"))
    for use in (
        lambda: resnetkit.load(file)(image),
        lambda: resnetkit.evaluate(file, flat_folder),
        lambda: next(explain(file, [image])),
    ):
        with pytest.raises(ModelFileError, match=r"network without a head.*--embeddings"):
            use()
    vector = next(resnetkit.load(file).stream([image], features=True)).features
    assert vector.shape == (16,)
