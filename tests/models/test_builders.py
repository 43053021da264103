import inspect
import pickle
import re

import pytest
import torchvision
from torch import nn

from resnetkit import models
from resnetkit.models import (
    ResNet18_Weights,
    ResNet34_Weights,
    WeightsEnum,
    builders,
    get_model,
    get_model_builder,
    get_model_weights,
    get_weight,
    list_models,
    list_weights,
    register_model,
    registry,
    resnet18,
    summarize,
)
from resnetkit.models import weights as weights_module
from resnetkit.models.architectures import ARCHITECTURES
from resnetkit.models.skeleton import get_skeleton

PUBLISHED = sorted(
    {n.removesuffix("_Weights").lower() for n in weights_module.__all__} - {"starter"}
)


@pytest.fixture(params=["ours", "theirs"])
def module(request, monkeypatch):
    """Our module and torchvision's, with downloads faked; ``.asked`` lists the members loaded."""
    chosen = models if request.param == "ours" else torchvision.models
    asked = []

    def get_state_dict(self, *args, **kwargs):
        asked.append(self.name)
        return torchvision.models.resnet18().state_dict()

    monkeypatch.setattr(chosen.WeightsEnum, "get_state_dict", get_state_dict)
    monkeypatch.setattr(chosen, "asked", asked, raising=False)
    return chosen


@pytest.mark.parametrize(
    ("args", "given", "warnings", "asked"),
    [
        ((), {}, 0, []),
        ((), {"weights": None}, 0, []),
        ((), {"weights": "IMAGENET1K_V1"}, 0, ["IMAGENET1K_V1"]),
        ((), {"weights": "DEFAULT", "progress": False}, 0, ["IMAGENET1K_V1"]),
        ((None,), {}, 1, []),
        ((None, False), {}, 1, []),
        (("DEFAULT",), {}, 1, ["IMAGENET1K_V1"]),
        ((True,), {}, 2, ["IMAGENET1K_V1"]),
        ((False,), {}, 2, []),
        ((True, False), {}, 2, ["IMAGENET1K_V1"]),
        ((), {"pretrained": True}, 2, ["IMAGENET1K_V1"]),
        ((), {"pretrained": False}, 2, []),
        ((), {"weights": True}, 1, ["IMAGENET1K_V1"]),
        ((), {"weights": "legacy"}, 1, ["IMAGENET1K_V1"]),
    ],
)
def test_old_and_new_calls_mean_and_warn_the_same(module, args, given, warnings, asked, recwarn):
    assert isinstance(module.resnet18(*args, **given), module.ResNet)
    assert module.asked == asked
    assert [w.category for w in recwarn.list] == [UserWarning] * warnings
    recwarn.clear()


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_old_interface_means_the_first_weights(monkeypatch):
    for module in (models, torchvision.models):
        asked = []
        monkeypatch.setattr(
            module.WeightsEnum, "get_state_dict", lambda m, a=asked, **_: a.append(m)
        )
        with pytest.raises((TypeError, AttributeError)):  # because no tensors were returned
            module.resnet50(pretrained=True)
        assert repr(asked) == "[ResNet50_Weights.IMAGENET1K_V1]"


def test_a_warning_points_at_the_call(recwarn):
    resnet18(None)
    assert recwarn.pop(UserWarning).filename == __file__


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (TypeError, lambda m: m.resnet18(weights=m.ResNet50_Weights.DEFAULT)),
        (KeyError, lambda m: m.resnet18(weights="IMAGENET1K_V7")),
        (TypeError, lambda m: m.resnet18(number_of_classes=3)),
        (TypeError, lambda m: m.resnet18(weights=None, pretrained=True)),
        (ValueError, lambda m: m.resnext50_32x4d(groups=1)),
        (ValueError, lambda m: m.wide_resnet50_2(width_per_group=64)),
        (ValueError, lambda m: m.resnet18(groups=2)),
        (ValueError, lambda m: m.resnet50(replace_stride_with_dilation=[True])),
        (ValueError, lambda m: m.get_model("resnet51")),
        (ValueError, lambda m: m.get_model_builder("resnet51")),
        (ValueError, lambda m: m.get_model_weights("resnet51")),
        (ValueError, lambda m: m.get_model_weights(lambda: None)),
        (ValueError, lambda m: m.get_weight("ResNet50_Weights")),
        (ValueError, lambda m: m.get_weight("ResNet51_Weights.DEFAULT")),
        (KeyError, lambda m: m.get_weight("ResNet50_Weights.IMAGENET1K_V7")),
    ],
)
def test_mistakes_raise_the_same_types(module, error, call):
    with pytest.raises(error):
        call(module)


@pytest.mark.parametrize(
    ("words", "call"),
    [
        ("Did you mean 'resnet50", lambda: get_model("resnet5")),
        ("Did you mean 'num_classes", lambda: resnet18(num_clases=3)),
        ("Did you mean 'ResNet50_Weights", lambda: get_weight("Resnet50_Weights.DEFAULT")),
        ("resnet50 has no published|No weights", lambda: get_model_weights("cifar_resnet20")),
        ("means groups=32; got 1", lambda: models.resnext50_32x4d(groups=1)),
        ("by keyword only; got 3", lambda: resnet18(None, True, 10)),
        ("got a builtins.dict", lambda: resnet18(weights={"conv1.weight": 1})),
        ("No weights are published for plain18", lambda: models.plain18(weights=True)),
        (
            "got a torchvision.models.resnet.ResNet18_Weights",
            lambda: resnet18(weights=torchvision.models.ResNet18_Weights.DEFAULT),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_error_messages_help(words, call):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


@pytest.mark.parametrize("name", list_models())
def test_a_builder_says_what_it_takes_and_can_be_pickled(name):
    builder = getattr(models, name)
    assert get_model_builder(name.upper()) is builder
    assert pickle.loads(pickle.dumps(builder)) is builder
    assert builder.__name__ == builder.__qualname__ == name
    assert "options" in builder.__doc__
    parameters = inspect.signature(builder).parameters
    assert list(parameters) == ["weights", "progress", "options"]
    assert parameters["weights"].default is None
    assert parameters["progress"].default is True


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_finds_its_weights(name):
    enum = get_model_weights(name)
    assert enum is get_model_weights(getattr(models, name))
    theirs = torchvision.models.get_model_weights(name)
    assert [repr(m) for m in enum] == [repr(m) for m in theirs]
    for member in enum.__members__:
        assert repr(get_weight(f"{enum.__name__}.{member}")) == repr(theirs[member])


def test_the_weights_of_many_models_are_listed():
    found = list_weights("*resne*", exclude="*starter")
    assert sorted(found) == PUBLISHED
    assert sum(map(len, found.values())) == 17
    assert list_weights("cifar*") == {}


@pytest.mark.parametrize(
    ("include", "exclude"),
    [
        (None, None),
        ("resnext*", None),
        (["resnet1*", "wide*"], "*152"),
        ([], []),
        ("*", ["*n*"]),
        ("RESNET*", None),
    ],
)
def test_models_are_listed_as_in_torchvision(include, exclude):
    theirs = torchvision.models.list_models(torchvision.models, include, exclude)
    ours = list_models(include, exclude, module=models)
    assert [n for n in ours if n in PUBLISHED] == [n for n in theirs if n in PUBLISHED]


def test_patterns_may_come_from_a_generator():
    names = ["resnet18", "resnet34"]
    assert models.list_models(include=(name for name in names)) == names
    found = models.list_models("resnet[13]*", exclude=(name for name in names))
    assert found == ["resnet101", "resnet152", "resnet18_starter"]
    assert list(models.list_weights(name for name in names)) == names


def test_registered_builders_are_found(monkeypatch):
    monkeypatch.setattr("resnetkit.models.registry._BUILDERS", {})

    class Mine_Weights(WeightsEnum):
        ONE = ResNet18_Weights.DEFAULT.value

    @register_model()
    def mine(*, weights: Mine_Weights | None = None, size: int = 1) -> nn.Module:
        return nn.Linear(size, size)

    with pytest.raises(ValueError, match="already registered under the name 'mine'"):
        register_model("mine")(mine)
    assert list_models() == ["mine"]
    assert list_models(module=models) == []
    assert get_model("Mine", size=3).in_features == 3
    assert get_model_weights("mine") is Mine_Weights
    assert get_weight("Mine_Weights.ONE") is Mine_Weights.ONE


def test_a_model_is_made_from_its_own_options():
    assert isinstance(get_model("resnet34", num_classes=2).fc, nn.Linear)
    assert ResNet34_Weights.DEFAULT.meta["num_params"] == sum(
        p.numel() for p in models.resnet34().parameters()
    )


def test_other_builders_may_have_string_annotations():
    def mine(*, weights: "Nowhere" = None) -> "Elsewhere":  # noqa: F821
        raise NotImplementedError

    def published(*, weights: "models.ResNet18_Weights | None" = None) -> "Elsewhere":  # noqa: F821
        raise NotImplementedError

    try:
        for builder in (mine, published):
            models.register_model(f"test_{builder.__name__}")(builder)
        assert list(list_weights("test_*")) == ["test_published"]
        assert get_model_weights("test_published") is models.ResNet18_Weights
        with pytest.raises(ValueError, match="No weights are published"):
            get_model_weights("test_mine")
    finally:
        for builder in (mine, published):
            registry._BUILDERS.pop(f"test_{builder.__name__}", None)


def test_incomplete_weight_names_raise_the_same_types(module):
    with pytest.raises(KeyError):
        module.get_weight("ResNet50_Weights.")
    for name in ("x", "a.b.c"):
        with pytest.raises(ValueError, match="name"):
            module.get_weight(name)


@pytest.mark.parametrize(
    "call",
    [
        lambda: resnet18(False),
        lambda: resnet18(weights=False),
        lambda: resnet18(pretrained=False),
        lambda: get_model("resnet18", weights=False),
        lambda: get_model("resnet18", pretrained=False),
    ],
)
def test_warnings_point_at_the_callers_line(call, recwarn):
    call()
    assert {warning.filename for warning in recwarn} == {__file__}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_match_the_builders(name):
    block, layers, numbers = ARCHITECTURES[name]
    expected = models.ResNet(block, layers, **numbers) if "1202" not in name else None
    if expected is not None:
        assert str(get_model(name)) == str(expected)
    assert sorted(ARCHITECTURES) == sorted(builders.__all__)


@pytest.mark.parametrize("name", [*builders.__all__, "darknet53"])
def test_a_docstring_states_the_parameters_and_the_multiply_adds(name):
    doc = " ".join(getattr(models, name).__doc__.split())
    counted = summarize(get_skeleton(name), 32 if "cifar" in name else 224)
    found = re.search(r"([\d.]+) million parameters", doc)
    assert found or "without its shortcuts" in doc
    if found:
        digits = len(found[1].partition(".")[2])
        assert round(counted.parameters / 1e6, digits) == float(found[1])
    found = re.search(r"([\d.]+) G multiply-adds", doc)
    if found:
        assert round(counted.macs / 1e9, 1) == float(found[1])
