import json

import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from resnetkit import models
from resnetkit.errors import OutputError, WeightsError
from resnetkit.models import convert, get_model, list_models, recognise
from resnetkit.models.weights.modelfile import read

QUICK = [n for n in list_models() if n != "cifar_resnet1202"]
SAME_TENSORS = {n: n.replace("plain", "resnet") for n in QUICK if "plain" in n}
SAME_TENSORS["resnet18_starter"] = "resnet18"


def shapes(name, **options):
    """Return a network's state dict with expanded tensors, which take no memory."""
    with torch.device("meta"):
        state = get_model(name, **options).state_dict()
    return {n: torch.zeros((), dtype=t.dtype).expand(t.shape) for n, t in state.items()}


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("classes", [1, 10, 1000])
def test_every_architecture_is_recognised_with_any_number_of_classes(name, classes):
    state = {f"module.{n}": t for n, t in shapes(name, num_classes=classes).items()}
    found = recognise({"state_dict": state})
    expected = {"num_classes": classes}
    if name in ("plain18", "plain34"):  # a residual net with option A has the same tensors
        expected["shortcut"] = "A"
    if name == "resnet18_starter":
        expected["width"] = 32
    assert found.architecture == SAME_TENSORS.get(name, name)
    assert found.options == expected
    assert list(found.tensors) == [n.removeprefix("module.") for n in state]


@pytest.mark.slow
def test_the_deepest_is_recognised():
    found = recognise(shapes("cifar_resnet1202"))
    assert (found.architecture, found.options) == ("cifar_resnet1202", {"num_classes": 10})


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"num_classes": 10, "stem": "small"}),
        ("resnet18", {"num_classes": 5, "in_channels": 1}),
        ("resnet50", {"num_classes": 0}),
        ("resnet50", {"num_classes": 5, "shortcut": "C"}),
        ("resnet50", {"num_classes": 5, "shortcut": "A"}),
        ("resnet34", {"num_classes": 5, "width": 32}),
        ("cifar_resnet20", {"num_classes": 100, "shortcut": "B"}),
        ("cifar_resnet56", {"num_classes": 10, "width": 32}),
        ("resnext50_32x4d", {"num_classes": 5, "stem": "small", "in_channels": 4}),
        ("wide_resnet50_2", {"num_classes": 5, "shortcut": "C"}),
    ],
)
def test_options_are_inferred_from_shapes(name, options):
    found = recognise(shapes(name, **options))
    assert (found.architecture, found.options) == (name, options)
    assert json.loads(json.dumps(found.options)) == options
    get_model(name, **found.options).load_state_dict(found.tensors)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"num_classes": 10, "stem": "small"}),
        ("cifar_resnet20", {"num_classes": 10, "shortcut": "B"}),
    ],
)
def test_the_usual_names_of_code_for_cifar_are_known(name, options):
    ours = shapes(name, **options)
    renamed = {n.replace("downsample", "shortcut").replace("fc.", "linear."): n for n in ours}
    assert "layer2.0.shortcut.0.weight" in renamed
    assert "linear.bias" in renamed
    found = recognise({theirs: ours[n] for theirs, n in renamed.items()})
    assert (found.architecture, found.options) == (name, options)


@pytest.mark.parametrize("prefix", ["backbone.", "module.encoder_q."])
def test_a_network_among_others_is_found(prefix):
    state = {f"{prefix}{n}": t for n, t in shapes("resnet50").items() if n[:3] != "fc."}
    head = {"head.fc.weight": torch.zeros(7, 2048), "head.fc.bias": torch.zeros(7)}
    found = recognise({**state, **head, "neck.weight": torch.zeros(2, 2)})
    assert (found.architecture, found.options) == ("resnet50", {"num_classes": 7})
    assert notes_with(found, f"left out tensors outside '{prefix}': 1 in all, first neck.weight")
    twice = {f"teacher.{n}": t for n, t in shapes("resnet18").items()}
    both = {**twice, **state}
    with pytest.raises(WeightsError, match=r"holds 2 networks: .*--prefix"):
        recognise(both)
    assert recognise(both, prefix="teacher").architecture == "resnet18"
    assert (
        notes_with(recognise({**both, **head}, prefix=prefix), "the file also has 'teacher'") != []
    )


def notes_with(found, words):
    return [note for note in found.notes if words in note]


def test_assumptions_are_noted_and_can_be_overridden():
    bottleneck, flat = shapes("resnet50"), shapes("cifar_plain20")
    assert notes_with(recognise(bottleneck), "assumed V1.5")
    assert notes_with(recognise(bottleneck), "dilate instead of striding")
    assert notes_with(recognise(bottleneck), "timm's with a blur")
    v1 = recognise(bottleneck, options={"stride_on": "1x1"})
    assert (v1.options["stride_on"], notes_with(v1, "V1")) == ("1x1", [])
    assert notes_with(recognise(flat), "assumed a residual net with option A shortcuts")
    plain = recognise(flat, options={"shortcut": "none"})
    assert (plain.architecture, notes_with(plain, "residual")) == ("cifar_plain20", [])
    named = recognise(flat, architecture="cifar_plain20")
    assert (named.architecture, named.options) == ("cifar_plain20", {"num_classes": 10})
    assert notes_with(named, "residual") == []
    assert notes_with(recognise(shapes("resnet18", stem="small")), "no pooling")
    assert len(recognise(shapes("resnet18")).notes) == 1  # assumed strides and pooling


def test_unused_tensors_are_noted_and_dropped():
    state = shapes("cifar_resnet20")
    state["layer1.0.conv3.weight"] = torch.zeros(64, 16, 1, 1)
    state["layer1.0.bn3.weight"] = torch.zeros(64)
    state["layer1.0.bn3.num_batches_tracked"] = torch.tensor(0)
    found = recognise(state)
    dropped = "layer1.0.conv3.weight, layer1.0.bn3.weight, layer1.0.bn3.num_batches_tracked"
    assert notes_with(found, "dropped") == [
        f"dropped, because no layer of cifar_resnet20 uses them: {dropped}"
    ]
    assert "layer1.0.conv3.weight" not in found.tensors


@pytest.mark.parametrize(
    ("changed", "shape", "words"),
    [
        ("layer1.0.se.weight", (3,), r"1 is unknown here, first layer1.0.se.weight \(3,\)"),
        ("layer2.1.bn1.bias", None, r"1 tensor is missing, first layer2.1.bn1.bias \(128,\)"),
        ("layer3.1.conv1.weight", (256, 9, 3, 3), r"9, 3, 3\), expected \(256, 256, 3, 3\)"),
        ("layer3.1.conv1.weight", None, r"\[2, 2, 1, 2\] layers.*Compared with resnet18: "),
        ("layer1.0.conv1.weight", None, r"is not a ResNet: its first tensors are conv1.weight"),
        ("layer1.0.conv2.bias", (64,), r"1 is unknown here, first layer1.0.conv2.bias"),
        ("fc.weight", (1000,), r"fc.weight is \(1000,\), expected \(1000, 512\)"),
    ],
)
def test_a_mismatch_shows_the_first_difference(changed, shape, words):
    state = shapes("resnet18")
    if shape is None:
        del state[changed]
    else:
        state[changed] = torch.zeros(shape)
    with pytest.raises(WeightsError, match=words):
        recognise(state)


def test_a_named_architecture_that_does_not_fit_raises():
    with pytest.raises(WeightsError, match=r"is not a resnet34 .*missing, first layer1\.2\.conv1"):
        recognise(shapes("resnet18"), architecture="resnet34")
    with pytest.raises(WeightsError, match="Did you mean 'resnet50' or 'resnet34'"):
        recognise(shapes("resnet18"), architecture="resnet35")
    with pytest.raises(WeightsError, match="stride_on must be one of '3x3', '1x1'; got '2x2'"):
        recognise(shapes("resnet50"), options={"stride_on": "2x2"})
    with pytest.raises(WeightsError, match="Did you mean 'stride_on"):
        recognise(shapes("resnet50"), options={"stride": "1x1"})


class LambdaLayer(nn.Module):
    def __init__(self, planes):
        super().__init__()
        self.planes = planes

    def forward(self, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4))


class Block(nn.Module):
    """A CIFAR block as people write it from the paper, with layers it never calls."""

    def __init__(self, inplanes, planes, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.shortcut = LambdaLayer(planes) if stride != 1 else nn.Sequential()

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class CifarNet(nn.Module):
    """An independent implementation of the nets of section 4.2, with option A."""

    def __init__(self, n, classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*[Block(16, 16, 1) for _ in range(n)])
        self.layer2 = nn.Sequential(*[Block(32 if i else 16, 32, 1 if i else 2) for i in range(n)])
        self.layer3 = nn.Sequential(*[Block(64 if i else 32, 64, 1 if i else 2) for i in range(n)])
        self.linear = nn.Linear(64, classes)

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(F.adaptive_avg_pool2d(out, 1).flatten(1))


@pytest.mark.parametrize(("n", "name"), [(3, "cifar_resnet20"), (5, "cifar_resnet32")])
def test_another_persons_cifar_net_gives_the_same_logits(n, name, tmp_path):
    torch.manual_seed(n)
    theirs = CifarNet(n, classes=7)
    x = torch.randn(4, 3, 32, 32)
    theirs(x)  # moves the norms' statistics away from their initial values
    theirs.eval()
    state = {f"module.{key}": tensor for key, tensor in theirs.state_dict().items()}
    torch.save({"state_dict": state, "best_prec1": 91.2}, tmp_path / "model.th")
    found = convert(tmp_path / "model.th", tmp_path / "model.safetensors")
    assert (found.architecture, found.options) == (name, {"num_classes": 7})
    model, header = read(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert torch.equal(model(x), theirs(x))
    assert header.classes == tuple("0123456")
    assert header.preprocessing.crop_size == 32
    assert [
        notes_with(found, w) != [] for w in ("dropped", "option A", "--classes", "prepared")
    ] == [True] * 4


@pytest.fixture
def file(tmp_path):
    torch.manual_seed(0)
    save_file(models.resnet18(num_classes=3).half().state_dict(), tmp_path / "a.safetensors")
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"0": "ant", "1": "bee", "2": "cat"}'),
        ("a.json", '{"bee": 1, "ant": 0, "cat": 2}'),
        ("a.json", '["ant", "bee", "cat"]'),
        ("a.txt", "ant\nbee\n\ncat\n"),
    ],
)
def test_class_names_come_from_a_file(file, tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = convert(file, tmp_path / "m.safetensors", classes=tmp_path / name)
    model, header = read(tmp_path / "m.safetensors")
    assert header.classes == ("ant", "bee", "cat")
    assert model.conv1.weight.dtype == torch.float32
    assert notes_with(found, "converted torch.float16 to the network's dtype")
    assert notes_with(found, "--classes") == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('["ant", "bee"]', "2 class names for 3 logits"),
        ('{"1": "ant", "2": "bee", "3": "cat"}', "expected the indices 0 to 2; got"),
        ('{"one": "ant"}', "expected class names by index"),
        ("3", "expected class names by index"),
        ('["ant", "bee", "ant"]', "classes 0 and 2 are both called 'ant'"),
        ("{", "expected class names by index"),
    ],
)
def test_class_names_that_do_not_fit_raise(file, tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(WeightsError, match=words):
        convert(file, tmp_path / "m.safetensors", classes=tmp_path / "a.json")
    assert not (tmp_path / "m.safetensors").exists()
    with pytest.raises(WeightsError, match="is not a file"):
        convert(file, tmp_path / "m.safetensors", classes=tmp_path / "b.json")


def test_names_and_preprocessing_can_be_given(file, tmp_path):
    sizes = {"resize_size": 70, "crop_size": 64}
    target = tmp_path / "m.safetensors"
    found = convert(file, target, classes=["a", "b", "c"], preprocessing=sizes)
    header = read(target)[1]
    assert (header.preprocessing.resize_size, header.preprocessing.crop_size) == (70, 64)
    assert notes_with(found, "prepared") == []
    with pytest.raises(WeightsError, match="1,000 class names for 3 logits"):
        convert(file, target, classes="imagenet")


def test_invalid_options_and_targets_raise(file, tmp_path):
    for options, words in (
        ({"num_classes": -1}, r"cannot be built with .*=-1"),
        ({"width": -1}, r"width must be 1 or more; got -1"),
    ):
        with pytest.raises(WeightsError, match=words):
            convert(file, tmp_path / "m.safetensors", options=options)
    with pytest.raises(OutputError, match=r"below cannot be written .*Choose a path"):
        convert(file, file / "below")


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pt2"])
def test_a_model_file_is_not_named_as_an_exported_one(file, tmp_path, ending):
    with pytest.raises(OutputError, match="To export a model file: resnet export"):
        convert(file, tmp_path / f"model{ending}")
    assert not (tmp_path / f"model{ending}").exists()


def test_prefixes_and_other_names_in_safetensors_are_known(tmp_path):
    ours = models.cifar_resnet20(shortcut="B").state_dict()
    renamed = {n.replace("downsample", "shortcut").replace("fc.", "linear."): n for n in ours}
    save_file({f"module.{n}": ours[o] for n, o in renamed.items()}, tmp_path / "a.safetensors")
    found = convert(tmp_path / "a.safetensors", tmp_path / "m.safetensors")
    assert (found.architecture, found.options["shortcut"]) == ("cifar_resnet20", "B")


def test_one_logit_with_a_sigmoid_becomes_two_with_the_same_probability(tmp_path):
    torch.manual_seed(1)
    theirs = torchvision.models.resnet18(num_classes=1).eval()
    torch.save({"model": theirs.state_dict()}, tmp_path / "a.pth")
    for classes in (None, ["dog"], ["a", "b", "c"]):
        with pytest.raises(WeightsError, match=r"one logit.*Name both classes, the one for 0"):
            convert(tmp_path / "a.pth", tmp_path / "m.safetensors", classes=classes)
    found = convert(tmp_path / "a.pth", tmp_path / "m.safetensors", classes=["cat", "dog"])
    assert notes_with(found, "0 for 'cat' and z for 'dog'")
    model, header = read(tmp_path / "m.safetensors")
    assert header.classes == ("cat", "dog")
    x = 3 * torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        probability = torch.softmax(model(x).double(), 1)[:, 1:]
        expected = torch.sigmoid(theirs(x).double())
    assert torch.allclose(probability, expected, rtol=0, atol=1e-6)
    torch.save({"net": theirs.state_dict(), "class_to_idx": {"b": 1, "a": 0}}, tmp_path / "b.pth")
    convert(tmp_path / "b.pth", tmp_path / "n.safetensors")
    assert read(tmp_path / "n.safetensors")[1].classes == ("a", "b")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["fc.bias", "layer3.0.conv1.weight", "bn1.running_var"])
def test_nan_and_infinite_values_raise(tmp_path, value, name):
    state = models.resnet18(num_classes=3).state_dict()
    state[name].view(-1)[1] = value
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"a.pth has NaN or infinite values in {name}\. "):
        convert(tmp_path / "a.pth", tmp_path / "m.safetensors")
    assert not (tmp_path / "m.safetensors").exists()


def test_values_that_overflow_in_the_networks_dtype_raise(tmp_path):
    state = {n: t.double() for n, t in models.resnet18(num_classes=3).state_dict().items()}
    state["fc.bias"][0] = 1e300
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"infinite values in fc.bias"):
        convert(tmp_path / "a.pth", tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    "saved",
    [
        {"class_to_idx": {"bee": 1, "ant": 0, "cat": 2}},
        {"classes": ["ant", "bee", "cat"]},
        {"idx_to_class": {2: "cat", 0: "ant", 1: "bee"}},
        {"hyper_parameters": {"id2label": {"0": "ant", "1": "bee", "2": "cat"}}},
        {"class_to_idx": {"bee": 1, "ant": 0, "cat": 2}, "classes": ("ant", "bee", "cat")},
    ],
)
def test_class_names_in_the_checkpoint_are_used(tmp_path, saved):
    torch.save({"model": models.resnet18(num_classes=3).state_dict(), **saved}, tmp_path / "a.pth")
    found = convert(tmp_path / "a.pth", tmp_path / "m.safetensors")
    assert read(tmp_path / "m.safetensors")[1].classes == ("ant", "bee", "cat")
    assert notes_with(found, "used the class names under")
    given = ["x", "y", "z"]
    convert(tmp_path / "a.pth", tmp_path / "n.safetensors", classes=given)
    assert read(tmp_path / "n.safetensors")[1].classes == ("x", "y", "z")


def test_class_names_in_the_checkpoint_that_do_not_fit_are_noted(tmp_path):
    state = models.resnet18(num_classes=3).state_dict()
    torch.save({"model": state, "classes": ["a", "b"]}, tmp_path / "a.pth")
    found = convert(tmp_path / "a.pth", tmp_path / "m.safetensors")
    assert notes_with(found, "'classes' names 2 classes, not 3: left out")
    two = {"classes": ["a", "b", "c"], "class_to_idx": {"b": 0, "a": 1, "c": 2}}
    torch.save({"model": state, **two}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match="classes and class_to_idx name the classes differently"):
        convert(tmp_path / "b.pth", tmp_path / "n.safetensors")


def test_generated_names_match_no_folder(tmp_path):
    """ImageFolder sorts 0 to 11 as text, so logit 2 of its network is folder 10."""
    torch.save(models.resnet18(num_classes=12).state_dict(), tmp_path / "a.pth")
    found = convert(tmp_path / "a.pth", tmp_path / "m.safetensors")
    assert read(tmp_path / "m.safetensors")[1].classes[:2] == ("class 0", "class 1")
    assert notes_with(found, "ImageFolder, which sorts as text")
    for i in range(12):
        (tmp_path / "photos" / "train" / str(i)).mkdir(parents=True)
        (tmp_path / "photos" / "val" / str(i)).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "train" / str(i) / "a.png")
    theirs = torchvision.datasets.ImageFolder(tmp_path / "photos" / "train").classes
    for name, folder in (("n", "photos/train"), ("o", "photos")):
        convert(tmp_path / "a.pth", tmp_path / name, classes=tmp_path / folder)
        assert list(read(tmp_path / name)[1].classes) == theirs


def test_a_file_without_head_is_converted(tmp_path):
    state = models.resnet18(num_classes=0).state_dict()
    save_file(state, tmp_path / "a.safetensors")
    found = convert(tmp_path / "a.safetensors", tmp_path / "m.safetensors")
    assert notes_with(found, "no head")
    assert read(tmp_path / "m.safetensors")[0](torch.zeros(1, 3, 32, 32)).shape == (1, 512)


def test_the_same_source_gives_the_same_bytes(file, tmp_path):
    for name in ("one", "two"):
        convert(file, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_published_file_is_known_whatever_its_name(tmp_path, monkeypatch):
    member = models.ResNet50_Weights.IMAGENET1K_V2
    torch.save(models.resnet50().state_dict(), tmp_path / "mine.pth")
    name = "resnetkit.models.weights.convert.sha256"
    monkeypatch.setattr(name, lambda path: "11ad3fa6" + "0" * 56)
    found = convert(tmp_path / "mine.pth", tmp_path / "m.safetensors")
    header = read(tmp_path / "m.safetensors")[1]
    assert header.classes == tuple(member.meta["categories"])
    assert (header.preprocessing.resize_size, header.preprocessing.crop_size) == (232, 224)
    assert notes_with(found, "this is ResNet50_Weights.IMAGENET1K_V2")
    assert not notes_with(found, "prepared") + notes_with(found, "--classes")


@pytest.mark.parametrize("before", ["", "module.backbone."])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_deep_stem_raises(name, before):
    """As in timm's resnet18d and resnet50d."""
    state = getattr(models, name)(num_classes=3).state_dict()
    state = {n: t for n, t in state.items() if n != "conv1.weight"}
    for place, shape in ((0, (32, 3, 3, 3)), (3, (32, 32, 3, 3)), (6, (64, 32, 3, 3))):
        state[f"conv1.{place}.weight"] = torch.zeros(shape)
        if place < 6:
            norm = nn.BatchNorm2d(32).state_dict()
            state |= {f"conv1.{place + 1}.{n}": t for n, t in norm.items()}
    with pytest.raises(
        WeightsError, match=r"several convolutions \(.*conv1\.0\.weight \(32, 3, 3, 3\)"
    ):
        recognise({f"{before}{n}": t for n, t in state.items()})


def test_assumptions_on_basic_blocks_are_noted():
    state = models.resnet18(num_classes=3).state_dict()
    assert any("resnetblur18" in note for note in recognise(state).notes)
    assert not any("resnetblur18" in n for n in recognise(state, architecture="resnet18").notes)
