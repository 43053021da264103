import argparse
import io
import logging
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import DownloadError, ModelFileError, UnknownWeightsError, WeightsError
from resnetkit.models import (
    ResNet18_Weights,
    ResNet50_Weights,
    cifar_resnet20,
    get_weight,
    load_into,
    load_tensors,
    resnet18,
    resnet50,
)
from resnetkit.models.weights import modelfile
from resnetkit.models.weights.download import fetch


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(5)
    return resnet18(num_classes=4).eval()


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def file(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pth")
    return tmp_path / "net.pth"


def same(model, net, x):
    with torch.no_grad():
        return torch.equal(model.eval()(x), net(x))


def test_files_of_both_kinds_are_weights_and_bring_their_number_of_classes(net, x, file):
    save_file(net.state_dict(), file.with_suffix(".safetensors"))
    for source in (file, str(file), file.with_suffix(".safetensors")):
        assert same(resnet18(weights=source), net, x)


def test_an_address_is_weights(net, x, site, cache):
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    site.files["/net.pth"] = buffer.getvalue()
    assert same(resnet18(weights=site.address + "/net.pth", progress=False), net, x)


def test_members_and_their_names_are_weights(x, site, cache, monkeypatch):
    torch.manual_seed(6)
    full = resnet18().eval()
    buffer = io.BytesIO()
    torch.save(full.state_dict(), buffer)
    member = ResNet18_Weights.DEFAULT
    monkeypatch.setenv("RESNETKIT_MIRROR", site.address)
    site.files[member.url.removeprefix("https://download.pytorch.org")] = buffer.getvalue()
    fetch(member.url, progress=False, check_hash=False)
    names = ("DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1", member)
    with pytest.raises(WeightsError, match="its name says f37072fd"):
        resnet18(weights=member, progress=False)
    monkeypatch.setattr("resnetkit.models.weights.download.hash_in_name", lambda name: "")
    for source in names:
        assert same(resnet18(weights=source, progress=False), full, x)
    assert list(member.get_state_dict(progress=False)) == list(full.state_dict())
    elsewhere = cache.parent
    member.get_state_dict(str(elsewhere), progress=False, file_name="mine.pth")
    assert any(path.name.endswith("mine.pth") for path in elsewhere.iterdir())


def test_unknown_names_raise(tmp_path):
    with pytest.raises(UnknownWeightsError, match=r"has no member 'IMAGENET_V1'. Did you mean"):
        resnet18(weights="IMAGENET_V1")
    with pytest.raises(
        WeightsError, match=r"gone.pth is not a file; expected a .safetensors or .pth"
    ):
        resnet18(weights=tmp_path / "gone.pth")
    with pytest.raises(WeightsError, match="no published weights, so 'DEFAULT'"):
        cifar_resnet20(weights="DEFAULT")
    with pytest.raises(TypeError, match="ResNet18_Weights"):
        resnet18(weights=get_weight("ResNet50_Weights.DEFAULT"))


class _Hub(types.ModuleType):
    """A stand-in for huggingface_hub: a folder of files, and the requests so far."""

    def __init__(self, folder):
        super().__init__("huggingface_hub")
        self.folder, self.asked = folder, []
        absent = type("EntryNotFoundError", (Exception,), {})
        offline = type("LocalEntryNotFoundError", (absent, OSError), {})
        invalid = type("HFValidationError", (ValueError,), {})
        self.errors = types.SimpleNamespace(
            EntryNotFoundError=absent, LocalEntryNotFoundError=offline, HFValidationError=invalid
        )

    def hf_hub_download(self, name, file, *, revision, local_files_only):
        self.asked.append((name, file, revision, local_files_only))
        if local_files_only:
            raise self.errors.LocalEntryNotFoundError("not here")
        if not (self.folder / file).is_file():
            raise self.errors.EntryNotFoundError(file)
        return str(self.folder / file)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    made = _Hub(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", made)
    monkeypatch.delenv("RESNETKIT_OFFLINE", raising=False)
    return made


def test_the_hub_is_asked_for_safetensors_and_then_for_a_pytorch_file(net, x, hub, monkeypatch):
    torch.save(net.state_dict(), hub.folder / "pytorch_model.bin")
    assert same(resnet18(weights="hf://timm/resnet18.a1_in1k@v2"), net, x)
    asked = [
        ("timm/resnet18.a1_in1k", f, "v2", False)
        for f in ("model.safetensors", "pytorch_model.bin")
    ]
    assert hub.asked == asked
    save_file(net.state_dict(), hub.folder / "model.safetensors")
    assert same(resnet18(weights="hf://a/b"), net, x)
    assert hub.asked[-1] == ("a/b", "model.safetensors", None, False)
    monkeypatch.setenv("RESNETKIT_OFFLINE", "1")
    with pytest.raises(DownloadError, match="hf://a/b could not be fetched: not here"):
        resnet18(weights="hf://a/b")


def test_hub_errors_have_the_expected_base_classes():
    errors = pytest.importorskip("huggingface_hub.errors")
    assert issubclass(errors.LocalEntryNotFoundError, errors.EntryNotFoundError)
    assert issubclass(errors.HfHubHTTPError, OSError)
    assert issubclass(errors.HFValidationError, ValueError)


def test_hub_errors_say_what_to_do(hub, monkeypatch):
    with pytest.raises(WeightsError, match="expected hf://owner/name"):
        resnet18(weights="hf://resnet18")
    with pytest.raises(DownloadError, match="could not be fetched"):
        resnet18(weights="hf://a/b")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r'pip install "resnetkit\[hub\]"'):
        resnet18(weights="hf://a/b")


class _Canary:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["net.pth", "net.pt", "net.bin", "net.safetensors"])
@pytest.mark.parametrize("legacy", [False, True])
def test_reading_never_executes(tmp_path, name, legacy):
    canary, file = tmp_path / "canary", tmp_path / name
    content = {"conv1.weight": torch.zeros(64, 3, 7, 7), "oops": _Canary(canary)}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"could run code"):
        resnet18(weights=file)
    file.write_bytes(pickle.dumps(content["oops"], protocol=2))
    with pytest.raises(WeightsError):
        resnet18(weights=file)
    assert not canary.exists()
    pickle.loads(pickle.dumps(content["oops"]))
    assert canary.exists()  # so unpickling would have run it


def test_an_object_inside_a_number_of_numpy_is_not_read(tmp_path):
    canary = tmp_path / "canary"
    inside = pickle.dumps(_Canary(canary), protocol=2)

    class Number:
        def __reduce__(self):
            return np._core.multiarray.scalar, (np.dtype("O"), inside)

    torch.save({"a": torch.zeros(3, 3), "best": Number()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="could run code"):
        load_tensors(tmp_path / "net.pth")
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"hello", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_damaged_files_raise(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        resnet18(weights=tmp_path / name)


def test_a_damaged_pickle_is_named_wherever_it_is_damaged(net, tmp_path):
    torch.save(net.fc.state_dict(), tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pth").read_bytes()
    contents = [b"\x80abc", b"\x80\x02.", b"\x80\x02R.", b"\x80\x02s.", b"\x80\x02t."]
    contents += [whole[:end] for end in range(2, len(whole), max(1, len(whole) // 200))]
    for content in contents:
        (tmp_path / "a.pth").write_bytes(content)
        with pytest.raises(WeightsError, match=r"a\.pth (is damaged|is cut short|holds)."):
            load_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a file of tensors: it is empty"),
        (b"<!DOCTYPE html><html>log in</html>", "it is a web page, such as a login"),
        (b"\n  <html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer.*git lfs pull"),
        (b"\x1f\x8b\x08\0" + bytes(60), "it is a gzip archive: unpack it"),
        (bytes(257) + b"ustar\x0000", "it is a tar archive: unpack it"),
        (b"\x89HDF\r\n\x1a\n", "it is an HDF5 file, such as Keras writes"),
    ],
)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
def test_other_files_are_named_by_kind(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=words) as caught:
        load_tensors(tmp_path / name)
    assert "run code" not in str(caught.value)


def test_content_decides_the_format(net, x, tmp_path):
    save_file(net.state_dict(), tmp_path / "a.bin")
    torch.save(net.state_dict(), tmp_path / "b.safetensors")
    for name in ("a.bin", "b.safetensors"):
        assert same(resnet18(weights=tmp_path / name), net, x)


@pytest.mark.parametrize("spoilt", ["cut", "page", "empty"])
def test_a_download_is_kept_only_if_it_can_be_read(net, x, site, cache, spoilt):
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    whole = buffer.getvalue()
    bad = {"cut": whole[:100_000], "page": b"<html>busy</html>", "empty": b""}[spoilt]
    site.files["/net.pth"] = bad
    with pytest.raises(WeightsError, match=r"/net\.pth was not kept"):
        load_tensors(site.address + "/net.pth", progress=False)
    assert [p.name for p in cache.iterdir() if not p.name.endswith(".lock")] == []
    site.files["/net.pth"] = whole
    assert same(resnet18(weights=site.address + "/net.pth", progress=False), net, x)


def test_a_cached_file_that_cannot_be_read_is_named(site, cache):
    path = fetch(site.address + "/model.pth", progress=False)
    with pytest.raises(WeightsError, match=f"delete {path}"):
        load_tensors(site.address + "/model.pth", progress=False)


def test_a_file_cut_short_raises(file):
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(
        WeightsError, match=r"is damaged or cut short.*Copy or download it again"
    ) as caught:
        resnet18(weights=file)
    assert "internal" not in str(caught.value)


def _wrapped(state):
    prefixed = {f"module.{name}": tensor for name, tensor in state.items()}
    arguments = argparse.Namespace(lr=0.1)
    return {
        "plain": state,
        "parallel": prefixed,
        "compiled and parallel": {f"_orig_mod.{n}": t for n, t in prefixed.items()},
        "nested": {"state_dict": prefixed, "best_prec1": 92.6, "epoch": 3},
        "reference script": {"model": state, "optimizer": {"state": {}}, "args": arguments},
        "best as a number of numpy": {"model": state, "best": np.float64(0.9), "n": np.int64(3)},
        "averaged": {"n_averaged": torch.tensor(3), **prefixed},
        "twice nested": {"model": {"state_dict": state}},
        "equal beside": {"model": state, "ema": {n: t.clone() for n, t in state.items()}},
        "a matrix beside": {"state_dict": state, "confusion": torch.zeros(3, 3)},
        "a nest without tensors beside": {**state, "params": {"lr": 0.1}},
        "under checkpoint": {"checkpoint": {"state_dict": prefixed}, "epoch": 3},
        "under net_state_dict": {"net_state_dict": state},
        "lightning": {"state_dict": {f"net.{n}": t for n, t in state.items()}},
        "half": {n: t.half() if t.is_floating_point() else t for n, t in state.items()},
    }


@pytest.mark.parametrize("kind", ["plain", "parallel", "compiled and parallel"])
def test_wrappers_are_removed_from_safetensors(net, x, tmp_path, kind):
    state = dict(_wrapped(net.state_dict())[kind])
    save_file(state, tmp_path / "net.safetensors")
    assert same(resnet18(weights=tmp_path / "net.safetensors"), net, x)
    renamed = {n.replace("fc.", "linear."): t for n, t in state.items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    assert same(resnet18(weights=tmp_path / "renamed.safetensors"), net, x)


@pytest.mark.parametrize("kind", _wrapped({}))
def test_wrappers_are_removed(net, x, tmp_path, kind):
    torch.save(_wrapped(net.state_dict())[kind], tmp_path / "net.pth")
    model = resnet18(weights=tmp_path / "net.pth")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    if kind == "half":
        assert torch.equal(model.conv1.weight, net.conv1.weight.half().float())
    else:
        assert same(model, net, x)


def test_the_selected_network_is_noted(tmp_path, net):
    torch.save(_wrapped(net.state_dict())["equal beside"], tmp_path / "net.pth")
    note = "used the network under 'ema'; the file also has 'model'"
    assert note in load_tensors(tmp_path / "net.pth").notes


def test_ema_weights_beside_others_need_a_prefix(tmp_path, net, x):
    state = net.state_dict()
    torch.save({"model": {n: t * 0 for n, t in state.items()}, "ema": state}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"2 networks: 'ema', 'model'\. Select one: --prefix"):
        resnet18(weights=tmp_path / "net.pth")
    found = load_tensors(tmp_path / "net.pth", prefix="ema")
    model = resnet18(num_classes=4)
    load_into(model, found.tensors, "net.pth")
    assert same(model, net, x)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3}, "holds no tensors: found {'epoch': int}"),
        ({}, "holds no tensors"),
        ([1], "holds a list; expected tensors by name"),
        ({"state_dict": {"epoch": 3}}, "holds no tensors"),
    ],
)
def test_files_without_tensors_raise(tmp_path, content, words):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=words):
        load_tensors(tmp_path / "net.pth")


def test_another_number_of_classes_makes_a_new_head(net, x, file, caplog):
    torch.manual_seed(9)
    fresh = resnet18(num_classes=6)
    torch.manual_seed(9)
    model = resnet18(weights=file, num_classes=6)
    assert torch.equal(model.fc.weight, fresh.fc.weight)
    assert torch.equal(model.layer4[1].conv2.weight, net.layer4[1].conv2.weight)
    assert "has 4 classes, not 6: the head is new" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


@pytest.mark.parametrize("options", [{"num_classes": 0}, {"include_top": False}])
def test_a_network_without_head_loads_the_body(net, file, options, x):
    model = resnet18(weights=file, **options)
    assert torch.equal(model.conv1.weight, net.conv1.weight)
    assert not [n for n in model.state_dict() if n.startswith("fc.")]


def test_a_file_without_head_is_logged(net, tmp_path, caplog):
    torch.save({n: t for n, t in net.state_dict().items() if n[:2] != "fc"}, tmp_path / "a.pth")
    assert resnet18(weights=tmp_path / "a.pth").fc.out_features == 1000
    assert "has no classes, not 1000" in caplog.text


def test_other_input_channels_adapt_the_first_convolution(net, x, file, caplog):
    gray = resnet18(weights=file, in_channels=1).eval()
    with torch.no_grad():
        of_gray, of_rgb = gray(x[:, :1]), net(x[:, :1].expand(-1, 3, -1, -1))
    assert torch.allclose(of_gray, of_rgb, atol=1e-4)
    assert "has 3 input channels, not 1: the first convolution is summed" in caplog.text
    six = resnet18(weights=file, in_channels=6).eval()
    assert "is repeated" in caplog.text
    with torch.no_grad():
        assert torch.allclose(six(torch.cat([x, x], 1)), net(x), atol=1e-4)


def test_gray_weights_grow_to_three_channels(tmp_path):
    gray = resnet18(in_channels=1).eval()
    torch.save(gray.state_dict(), tmp_path / "gray.pth")
    assert resnet18(weights=tmp_path / "gray.pth").conv1.in_channels == 1
    model = resnet18(weights=tmp_path / "gray.pth", in_channels=3).eval()
    x = torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(model(x.expand(-1, 3, -1, -1)), gray(x), atol=1e-4)


def test_batch_counts_may_be_missing_or_extra(net, x, file, tmp_path):
    old = {n: t for n, t in net.state_dict().items() if "num_batches" not in n}
    torch.save(old, tmp_path / "old.pth")
    assert same(resnet18(weights=tmp_path / "old.pth"), net, x)
    frozen = resnet18(weights=file, norm_layer=FrozenBatchNorm2d).eval()
    with torch.no_grad():
        assert torch.allclose(frozen(x), net(x), atol=1e-4)


def test_a_mismatch_shows_the_first_names_and_shapes(net, file):
    from resnetkit.models import resnet34

    with pytest.raises(WeightsError, match=r"missing, first layer1\.0\.conv3\.weight \(256, 64"):
        resnet50(weights=file)
    with pytest.raises(
        WeightsError, match=r"80 tensors are missing, first layer1\.2\.conv1\.weight"
    ):
        resnet34(weights=file)
    with pytest.raises(WeightsError, match=r"conv1\.weight is \(64, 3, 7, 7\), expected \(16, 3"):
        resnet18(weights=file, width=16)
    with pytest.raises(RuntimeError, match=r"are unknown here, first bn1.running_mean"):
        resnet18(weights=file, norm_layer=lambda c: nn.GroupNorm(8, c))


def test_a_mismatch_logs_no_adaptation(file, caplog):
    with pytest.raises(WeightsError):
        resnet18(weights=file, width=16, num_classes=9, in_channels=1)
    assert caplog.records == []


def test_hidden_options_are_logged_for_published_weights(monkeypatch, caplog):
    state = resnet50().state_dict()
    monkeypatch.setattr(ResNet50_Weights, "get_state_dict", lambda *a, **k: state)
    caplog.set_level(logging.DEBUG, logger="resnetkit")
    resnet50(weights="DEFAULT", stride_on="3x3")
    assert caplog.records == []
    resnet50(weights="DEFAULT", stride_on="1x1")
    assert "was trained with stride_on='3x3', but this network has '1x1'" in caplog.text
    resnet50(weights="DEFAULT", replace_stride_with_dilation=[False, False, True])
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]


def test_hidden_options_are_logged_for_a_file(tmp_path, caplog):
    torch.save(resnet50(num_classes=2).state_dict(), tmp_path / "a.pth")
    caplog.set_level(logging.DEBUG, logger="resnetkit")
    resnet50(weights=tmp_path / "a.pth", stride_on="1x1")
    assert "does not show whether it was trained with stride_on='1x1'" in caplog.text
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_wrong_option_costs_no_download(monkeypatch):
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(TypeError, match="num_classes"):
        resnet18(weights="DEFAULT", num_clases=3)


@pytest.mark.parametrize("option", ["weights", "pretrained"])
def test_a_model_file_cannot_ask_for_a_download(net, site, cache, tmp_path, option):
    options = {"num_classes": 4, option: site.address + "/model.pth"}
    header = modelfile.Header("resnet18", options, tuple("abcd"), Preprocessing(256, 224))
    modelfile.write(tmp_path / "m.safetensors", net.state_dict(), header)
    with pytest.raises(ModelFileError, match="cannot be built"):
        modelfile.read(tmp_path / "m.safetensors")
    assert site.requests == []
