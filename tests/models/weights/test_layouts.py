"""Checkpoints from other code give that code's logits, or an error that says what to choose."""

from __future__ import annotations

import itertools
import struct
import subprocess
import sys
import tracemalloc
import warnings
import zipfile

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from resnetkit.errors import WeightsError
from resnetkit.models import convert, get_model, load_tensors, recognise, resnet18
from resnetkit.models.weights.modelfile import read


def _trained(net: nn.Module, seed: int = 1) -> nn.Module:
    """Give the norms statistics that differ from the initial ones, so that a mix-up shows."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim == 1:
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            assert name
    return net.eval()


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    return _trained(torchvision.models.resnet18(num_classes=5))


@pytest.fixture(scope="module")
def x():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def _logits(found, x):
    model = get_model(found.architecture, **found.options)
    model.load_state_dict(found.tensors)
    with torch.no_grad():
        return model.eval()(x)


def _same(found, net, x, atol=0.0):
    with torch.no_grad():
        return torch.allclose(_logits(found, x), net(x), rtol=0, atol=atol)


# Two networks in one file


SAVE_TWO = """
import sys, torch, torchvision
from resnetkit.errors import WeightsError
from resnetkit.models import load_tensors
for prefix in (None, "encoder_k"):
    try:
        tensors = load_tensors(sys.argv[1], prefix=prefix).tensors
        print(prefix, float(tensors["conv1.weight"].sum()))
    except WeightsError as error:
        print(str(error).partition(" holds ")[2])
"""


def test_two_networks_need_a_prefix_whatever_the_hash_seed(tmp_path, net):
    torch.manual_seed(4)
    other = torchvision.models.resnet18(num_classes=5).state_dict()
    state = {f"module.encoder_q.{n}": t for n, t in net.state_dict().items()}
    state |= {f"module.encoder_k.{n}": t for n, t in other.items()}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "moco.pth.tar")
    command = [sys.executable, "-c", SAVE_TWO, str(tmp_path / "moco.pth.tar")]
    messages = {
        subprocess.run(
            command,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "01"
    }
    assert len(messages) == 1
    first, second = next(iter(messages)).splitlines()
    assert "2 networks: 'state_dict.module.encoder_k', 'state_dict.module.encoder_q'" in first
    assert "--prefix state_dict.module.encoder_k" in first
    assert second == f"encoder_k {float(other['conv1.weight'].sum())}"


@pytest.mark.parametrize("names", [("online", "target"), ("student", "teacher"), ("", "ema.")])
def test_each_of_two_networks_can_be_selected(names, net, x):
    torch.manual_seed(4)
    other = _trained(torchvision.models.resnet18(num_classes=3), 5)
    places = [name and f"{name.rstrip('.')}." for name in names]
    state = {f"{places[1]}{n}": t for n, t in other.state_dict().items()}
    state |= {f"{places[0]}{n}": t for n, t in net.state_dict().items()}
    for order in (state, dict(reversed(state.items()))):
        with pytest.raises(WeightsError, match="holds 2 networks"):
            recognise(order)
        assert _same(recognise(order, prefix=names[0] or "."), net, x)
        assert _same(recognise(order, prefix=names[1]), other, x)
    with pytest.raises(WeightsError, match="no network under 'queue'; it has"):
        recognise(state, prefix="queue")


def test_heads_beside_two_bodies_belong_to_the_nearer_one(net, x):
    state = {}
    for place, shift in (("model", 0.0), ("model_ema", 1.0)):
        for name, tensor in net.state_dict().items():
            where = f"{place}.{name}" if name.startswith("fc.") else f"{place}.backbone.{name}"
            state[where] = tensor + shift if name == "fc.bias" else tensor
    for place, shift in (("model", 0.0), ("model_ema", 1.0)):
        with torch.no_grad():
            expected = net(x) + shift
        assert torch.allclose(_logits(recognise(state, prefix=place), x), expected, atol=1e-5)


# Heads


def _with_head(net, **modules):
    """Return the body of ``net`` with other modules instead of its head."""
    body = {n: t for n, t in net.state_dict().items() if not n.startswith("fc.")}
    return body | {f"{m}.{n}": t for m, v in modules.items() for n, t in v.state_dict().items()}


def _head_answers(net, head, x):
    features = nn.Sequential(*list(net.children())[:-1], nn.Flatten(), head).eval()
    with torch.no_grad():
        return features(x)


LINEAR = nn.Linear(512, 3)
HEADS = {
    "dropout before": nn.Sequential(nn.Dropout(0.5), LINEAR),
    "softmax after": nn.Sequential(LINEAR, nn.LogSoftmax(1)),
    "without bias": nn.Linear(512, 3, bias=False),
    "deep in sequences": nn.Sequential(nn.Sequential(nn.Dropout(), nn.Sequential(LINEAR))),
    "of one input in a dictionary": nn.ModuleDict({"out": LINEAR}),
}


@pytest.mark.parametrize("name", ["fc", "classifier", "linear", "head", "my_output"])
@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("place", ["", "backbone.", "module.net.encoder."])
def test_a_linear_head_is_found_under_any_name_and_prefix(net, x, name, kind, place):
    head = HEADS[kind]
    body = {f"{place}{n}": t for n, t in _with_head(net).items()}
    state = _with_head(net, **{name: head})
    state = body | {n: t for n, t in state.items() if n.startswith(f"{name}.")}
    answers = head["out"] if isinstance(head, nn.ModuleDict) else head
    if kind == "softmax after":
        answers = head[0]
    expected = _head_answers(net, answers, x)
    for order in (state, dict(reversed(state.items()))):
        found = recognise(order)
        assert found.options["num_classes"] == 3
        assert torch.allclose(_logits(found, x), expected, atol=1e-5)


def test_a_1x1_convolution_is_a_linear_head(net, x):
    convolution = nn.Conv2d(512, 3, 1)
    found = recognise(_with_head(net, last=convolution))
    with torch.no_grad():
        body = nn.Sequential(*list(net.children())[:-1])(x)
        assert torch.allclose(_logits(found, x), convolution(body).flatten(1), atol=1e-5)


MORE = {
    "two layers": {"fc": nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 3))},
    "a norm in it": {"fc": nn.Sequential(nn.BatchNorm1d(512), nn.Linear(512, 3))},
    "fastai's": {
        "1": nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(512), nn.Linear(512, 512),
            nn.ReLU(), nn.BatchNorm1d(512), nn.Linear(512, 3),
        )
    },
    "a norm before it": {"neck": nn.BatchNorm1d(512), "classifier": nn.Linear(512, 3)},
    "a layer after it": {"fc": nn.Linear(512, 100), "classifier": nn.Linear(100, 3)},
    "a weight norm": {"fc": nn.utils.parametrizations.weight_norm(nn.Linear(512, 3))},
    "a factor": {"head": nn.ParameterDict({"scale": torch.ones(3), "weight": torch.ones(3, 512)})},
}  # fmt: skip


@pytest.mark.parametrize("kind", MORE)
@pytest.mark.parametrize("place", ["", "backbone."])
def test_a_head_of_several_layers_raises_but_the_body_loads(net, x, kind, place):
    state = {f"{place}{n}": t for n, t in _with_head(net).items()}
    state |= {n: t for n, t in _with_head(net, **MORE[kind]).items() if n not in net.state_dict()}
    if "fc" in MORE[kind]:
        state |= {f"fc.{n}": t for n, t in MORE[kind]["fc"].state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        recognise(state)
    if place:
        assert "--head none" in str(caught.value)
        found = recognise(state, head="none")
        assert found.options["num_classes"] == 0
        with torch.no_grad():
            body = nn.Sequential(*list(net.children())[:-1])(x).flatten(1)
        assert torch.equal(_logits(found, x), body)


def test_two_heads_raise_in_every_format(net, x, tmp_path):
    used = nn.Linear(512, 3)
    state = {**net.state_dict(), **{f"classifier.{n}": t for n, t in used.state_dict().items()}}
    torch.save(state, tmp_path / "a.pth")
    torch.save(dict(reversed(state.items())), tmp_path / "b.pth")
    save_file(state, tmp_path / "a.safetensors")
    asked = set()
    for name in ("a.pth", "b.pth", "a.safetensors"):
        with pytest.raises(WeightsError, match="2 layers that could be the head") as caught:
            convert(tmp_path / name, tmp_path / "m.safetensors")
        asked.add(str(caught.value).partition(" has ")[2])
        convert(tmp_path / name, tmp_path / f"{name}.model", head="classifier")
        model, header = read(tmp_path / f"{name}.model")
        assert len(header.classes) == 3
        with torch.no_grad():
            assert torch.allclose(model(x), _head_answers(net, used, x), atol=1e-5)
    assert len(asked) == 1
    assert "'classifier' (3, 512), 'fc' (5, 512)" in asked.pop()
    with pytest.raises(WeightsError, match=r"has no head 'fd'; linear layers .*'classifier', 'fc'"):
        recognise(state, head="fd")


# Layouts of other libraries


class HFConv(nn.Module):
    """The layer ``ResNetConvLayer`` of transformers, with its parameter names."""

    def __init__(self, inside, outside, kernel=3, stride=1, active=True):
        super().__init__()
        self.convolution = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.normalization = nn.BatchNorm2d(outside)
        self.activation = nn.ReLU() if active else nn.Identity()

    def forward(self, x):
        return self.activation(self.normalization(self.convolution(x)))


class HFBlock(nn.Module):
    def __init__(self, inside, outside, stride, basic, in_bottleneck=False):
        super().__init__()
        changes = inside != outside or stride != 1
        self.shortcut = HFConv(inside, outside, 1, stride, False) if changes else nn.Identity()
        inner, first = outside // 4, stride if in_bottleneck else 1
        self.layer = (
            nn.Sequential(HFConv(inside, outside, 3, stride), HFConv(outside, outside, 3, 1, False))
            if basic
            else nn.Sequential(
                HFConv(inside, inner, 1, first),
                HFConv(inner, inner, 3, stride // first),
                HFConv(inner, outside, 1, 1, False),
            )
        )

    def forward(self, x):
        return torch.relu(self.layer(x) + self.shortcut(x))


class HFResNet(nn.Module):
    """The network ``ResNetForImageClassification``, with its public parameter names."""

    def __init__(self, depths, widths, basic, classes, **options):
        super().__init__()
        self.resnet = nn.Module()
        self.resnet.embedder = nn.Module()
        self.resnet.embedder.embedder = HFConv(3, 64, 7, 2)
        self.resnet.encoder = nn.Module()
        stages, before = [], 64
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stage = nn.Module()
            blocks = []
            for j in range(depth):
                stride = 2 if j == 0 and i > 0 else 1
                blocks.append(HFBlock(before, width, stride, basic, **options))
                before = width
            stage.layers = nn.Sequential(*blocks)
            stages.append(stage)
        self.resnet.encoder.stages = nn.ModuleList(stages)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(widths[-1], classes))

    def forward(self, x):
        x = nn.functional.max_pool2d(self.resnet.embedder.embedder(x), 3, 2, 1)
        for stage in self.resnet.encoder.stages:
            x = stage.layers(x)
        return self.classifier(nn.functional.adaptive_avg_pool2d(x, 1))


@pytest.mark.parametrize(
    ("depths", "widths", "basic", "name"),
    [
        ([2, 2, 2, 2], [64, 128, 256, 512], True, "resnet18"),
        pytest.param(
            [3, 4, 6, 3], [256, 512, 1024, 2048], False, "resnet50", marks=pytest.mark.slow
        ),
    ],
)
def test_hugging_face_names_give_the_same_logits(depths, widths, basic, name, x):
    torch.manual_seed(1)
    theirs = _trained(HFResNet(depths, widths, basic, classes=4))
    assert "resnet.encoder.stages.1.layers.0.layer.0.convolution.weight" in theirs.state_dict()
    found = recognise(theirs.state_dict())
    assert (found.architecture, found.options) == (name, {"num_classes": 4})
    assert _same(found, theirs, x, atol=1e-4 * float(theirs(x).detach().abs().max()))
    alone = recognise(theirs.resnet.state_dict())
    assert alone.options == {"num_classes": 0}


def _cifar_with_stem_in_sequence(net):
    renamed = {"conv1.": "layer0.0.", "bn1.": "layer0.1."}
    return {
        next((r + n.removeprefix(o) for o, r in renamed.items() if n.startswith(o)), n): t
        for n, t in net.state_dict().items()
    }


LAYOUTS = {
    "children in sequence": lambda net: nn.Sequential(*net.children()).state_dict(),
    "fastai's body": lambda net: {
        **nn.Sequential(nn.Sequential(*list(net.children())[:-2])).state_dict(),
        **{f"1.2.{n}": t for n, t in net.fc.state_dict().items()},
    },
    "children without the head, and a head": lambda net: {
        **nn.ModuleDict({"features": nn.Sequential(*list(net.children())[:-1])}).state_dict(),
        **{f"out.{n}": t for n, t in net.fc.state_dict().items()},
    },
    "stem in a sequence": _cifar_with_stem_in_sequence,
    "stages in a list": lambda net: {
        n.replace("layer1.", "stages.0.").replace("layer2.", "stages.1.")
        .replace("layer3.", "stages.2.").replace("layer4.", "stages.3."): t
        for n, t in net.state_dict().items()
    },
    "other names of shortcuts": lambda net: {
        n.replace("downsample", "skip"): t for n, t in net.state_dict().items()
    },
    "under network": lambda net: {"epoch": 3, "network": net.state_dict()},
    "under best_state": lambda net: {"best": {"best_state": net.state_dict()}, "acc": 0.9},
    "in a list": lambda net: [net.state_dict(), {"optimizer": 1}],
    "a prefix of one's own": lambda net: {f"zebra.{n}": t for n, t in net.state_dict().items()},
    "body and head in two places": lambda net: {
        "encoder": {n: t for n, t in net.state_dict().items() if n[:2] != "fc"},
        "head": net.fc.state_dict(),
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(64, 3, 7, 7)}}},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_that_people_have_give_the_same_logits(kind, net, x):
    found = recognise(LAYOUTS[kind](net))
    assert (found.architecture, found.options) == ("resnet18", {"num_classes": 5})
    assert _same(found, net, x)


def test_other_networks_raise():
    for name in ("squeezenet1_0", "mobilenet_v2", "resnet18"):
        state = torchvision.models.get_model(name).state_dict()
        if name == "resnet18":  # each block has a layer that ours lack
            state = {n.replace("layer2.0.bn2", "layer2.0.se.bn2"): t for n, t in state.items()}
        with pytest.raises(WeightsError, match=r"is not a ResNet|is a ResNet of|is not a "):
            recognise(state)


# Files that hold something else


def test_modules_and_scripts_show_how_to_save_their_tensors(net, tmp_path):
    torch.save(net, tmp_path / "module.pth")
    with pytest.raises(
        WeightsError, match=r"(?s)load\('module.pth', weights_only=False.*torch.save"
    ):
        load_tensors(tmp_path / "module.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, but its files still exist
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), tmp_path / "script.pt")
    with pytest.raises(
        WeightsError, match=r"(?s)TorchScript.*torch.jit.load\('script.pt'\).*torch"
    ):
        load_tensors(tmp_path / "script.pt")


def test_an_archive_around_a_checkpoint_is_named(net, tmp_path):
    torch.save(net.fc.state_dict(), tmp_path / "best.pth")
    with zipfile.ZipFile(tmp_path / "best.zip", "w") as archive:
        archive.write(tmp_path / "best.pth", "run/best.pth")
    with pytest.raises(WeightsError, match=r"zip archive of other files \(run/best.pth\): unpack"):
        load_tensors(tmp_path / "best.zip")


@pytest.mark.parametrize("name", ["zip.pth", "old.pth", "a.safetensors"])
@pytest.mark.parametrize("share", [0.2, 0.7, 0.999])
def test_a_file_cut_anywhere_is_reported_as_cut(net, tmp_path, name, share):
    if name.endswith("pth"):
        torch.save(
            net.fc.state_dict(), tmp_path / name, _use_new_zipfile_serialization=name[0] == "z"
        )
    else:
        save_file(net.fc.state_dict(), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(WeightsError, match="cut short"):
        load_tensors(tmp_path / name)


@pytest.mark.parametrize("sums", [True, False])
def test_zeros_inside_a_file_are_reported(net, tmp_path, sums):
    """A broken download may have its full size. Files without checksums are read."""
    torch.serialization.set_crc32_options(sums)
    try:
        torch.save(net.state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    load_tensors(tmp_path / "a.pth")
    contents = bytearray((tmp_path / "a.pth").read_bytes())
    middle = len(contents) // 2
    contents[middle : middle + 5000] = bytes(5000)
    (tmp_path / "a.pth").write_bytes(contents)
    if sums:
        with pytest.raises(WeightsError, match=r"a\.pth is damaged: .*data/\d+ does not match"):
            load_tensors(tmp_path / "a.pth")
    else:
        load_tensors(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("start", "words"),
    [
        (b"\x08\x08\x12\x07pytorch\x1a\x052.9.0:", "an ONNX file. Convert the PyTorch checkpoint"),
        (b"\x08\x0e:\x03\x12\x01gB\x02\x10\x1c", "an ONNX file"),
        (b"\x08\x01\x12\x9e\xc9\x01\n", "a TensorFlow model"),
        (b'{"error": "not found"}', "JSON text"),
    ],
)
def test_files_of_other_programs_are_named(tmp_path, start, words):
    (tmp_path / "a.pth").write_bytes(start + bytes(600))
    with pytest.raises(WeightsError, match=f"a.pth is not a file of tensors: it is {words}"):
        load_tensors(tmp_path / "a.pth")


def test_a_checkpoint_in_several_files_is_named(net, tmp_path):
    tensors = list(net.state_dict().items())
    for number in (1, 2):
        part = dict(tensors[:60] if number == 1 else tensors[60:])
        save_file(part, tmp_path / f"model-0000{number}-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    for source in (tmp_path, *sorted(tmp_path.iterdir())):
        with pytest.raises(WeightsError, match=r"several files[^$]*load_file[^$]*save_file"):
            convert(source, tmp_path / "out" / "m.safetensors")


def test_a_network_in_a_callback_is_left_out_aloud(net, x):
    """Lightning callbacks may save a second, weight-averaged copy of the network."""
    average = torchvision.models.resnet18(num_classes=3).eval()
    content = {
        "state_dict": {f"net.{n}": t for n, t in net.state_dict().items()},
        "callbacks": {"EMA": {"ema_state_dict": average.state_dict()}},
    }
    found = recognise(content)
    assert _same(found, net, x, atol=1e-5)
    assert any("left out the network under 'callbacks.EMA.ema_state" in n for n in found.notes)
    found = recognise(content, prefix="ema_state_dict")
    assert _same(found, average, x, atol=1e-5)
    assert any("left out the network under 'state_dict.net'" in n for n in found.notes)


# Any wrapping, any order


PARTS = st.sampled_from(["module", "net", "backbone", "encoder_q", "x1", "4", "model", "_orig_mod"])
NESTS = st.lists(st.sampled_from(["state_dict", "model", "ema", "weights", "my"]), max_size=2)


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    prefix=st.lists(PARTS, max_size=3),
    nests=NESTS,
    head=st.sampled_from(["fc", "linear", "head.fc", "classifier.1", "out.0.3", "fc2"]),
    outside=st.booleans(),
    second=st.booleans(),
    order=st.randoms(use_true_random=False),
)
def test_any_wrapping_and_order_gives_equal_logits_or_an_error(
    prefix, nests, head, outside, second, order
):
    """Use networks of width 4, which are quick to build."""
    torch.manual_seed(0)
    small = _trained(get_model("resnet18", width=4, num_classes=3))
    x = torch.randn(1, 3, 32, 32)
    place = "".join(f"{part}." for part in prefix)
    state = {}
    for name, tensor in small.state_dict().items():
        if name.startswith("fc."):
            where = "" if outside else place
            state[f"{where}{head}.{name.removeprefix('fc.')}"] = tensor
        else:
            state[f"{place}{name}"] = tensor
    if second:
        state |= {f"other.{n}": t + 1 for n, t in small.state_dict().items()}
    answers = []
    for _ in range(2):
        names = list(state)
        order.shuffle(names)
        found = {name: state[name] for name in names}
        for nest in nests:
            found = {nest: found}
        try:
            answers.append(_logits(recognise(found), x))
        except WeightsError as error:
            answers.append(str(error))
    first, again = answers
    if second:
        assert first == again
        assert "holds 2 networks" in first
    else:
        assert torch.equal(first, again)
        with torch.no_grad():
            assert torch.equal(first, small(x))


def test_the_error_for_several_networks_does_not_depend_on_order():
    torch.manual_seed(0)
    small = get_model("resnet18", width=4, num_classes=3).state_dict()
    messages = set()
    for order in itertools.permutations(["a", "b", "c"]):
        state = {f"{p}.{n}": t + ord(p) for p in order for n, t in small.items()}
        with pytest.raises(WeightsError) as caught:
            recognise(state)
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("_fsdp_wrapped_module.", ""),
        ("_checkpoint_wrapped_module.", "module."),
        ("_orig_mod.", "model._orig_mod."),
    ],
)
def test_wrappers_around_single_modules_are_removed(net, x, tmp_path, inside, outside):
    """FSDP, activation checkpointing and torch.compile wrap blocks too, not only the network."""
    state = {}
    for name, tensor in net.state_dict().items():
        block = name.split(".")[:2]
        is_in_block = name.startswith("layer")
        wrapped = ".".join(block) + f".{inside}" + name.split(".", 2)[2] if is_in_block else name
        state[outside + wrapped] = tensor
    torch.save(state, tmp_path / "m.pth")
    assert _same(recognise(load_tensors(tmp_path / "m.pth")), net, x)


def test_class_names_in_capitals_are_taken(net, tmp_path):
    names = ["a", "b", "c", "d", "e"]
    torch.save({"state_dict": net.state_dict(), "meta": {"CLASSES": tuple(names)}}, tmp_path / "m")
    convert(tmp_path / "m", tmp_path / "o")
    assert list(read(tmp_path / "o")[1].classes) == names


def test_a_compressed_archive_is_refused_before_it_is_unpacked(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pth")
    with (
        zipfile.ZipFile(tmp_path / "net.pth") as old,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for info in old.infolist():
            zeros = bytes(40 * 2**20) if info.filename.endswith("/data/0") else None
            new.writestr(info.filename, zeros or old.read(info))
    tracemalloc.start()
    with pytest.raises(WeightsError, match="is compressed, which torch") as caught:
        load_tensors(tmp_path / "small.pth")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "torch.save(torch.load('small.pth', weights_only=True)" in str(caught.value)
    assert peak < 5 * 2**20


def test_an_archive_whose_members_overlap_is_refused(net, tmp_path):
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        entries = [info for info in archive.infolist() if "/data/" in info.filename]
    largest = max(entries, key=lambda info: info.file_size)
    at = content.index(b"PK\x01\x02")
    while content[at : at + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<3H", content, at + 28)
        if b"/data/" in content[at + 46 : at + 46 + lengths[0]]:
            struct.pack_into("<3I", content, at + 16, 0, largest.file_size, largest.file_size)
            struct.pack_into("<I", content, at + 42, largest.header_offset)
        at += 46 + sum(lengths)
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged: its parts would be larger than the file"):
        load_tensors(path)


def unusable(kind, tensor):
    if kind == "sparse":
        return tensor.to_sparse()
    if kind == "quantized":
        return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)
    if kind == "meta":
        return tensor.to("meta")
    if kind == "nested":
        return torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
    return tensor.to(getattr(torch, kind))


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize(
    "kind", ["int8", "bool", "complex64", "sparse", "quantized", "meta", "nested"]
)
def test_tensors_that_are_not_dense_real_floats_are_named(net, tmp_path, kind):
    name = "layer1.0.conv1.weight"
    state = net.state_dict()
    torch.save({**state, name: unusable(kind, state[name])}, tmp_path / "net.pth")
    calls = [
        lambda: convert(tmp_path / "net.pth", tmp_path / "model.safetensors"),
        lambda: resnet18(weights=tmp_path / "net.pth"),
    ]
    for call in calls:
        with pytest.raises(WeightsError, match=rf"{name} is {kind}.* expected .*float"):
            call()


def test_a_number_of_5000_digits_is_no_stage(net):
    state = {**net.state_dict(), f"layer{'9' * 5000}.0.conv1.weight": torch.zeros(4, 4, 3, 3)}
    with pytest.raises(WeightsError, match="1 is unknown here"):
        recognise(state)
