"""docs/differences.md is complete and correct."""

import importlib
import inspect
import re
import warnings
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torchvision.models import _api
from torchvision.transforms._presets import ImageClassification as TheirPreset

from resnetkit import models

THEIRS = torchvision.models
PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text(encoding="utf-8")


def table(title):
    """Return the cells of a section's table, without its header."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split(" | ") for line in section.splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in row] for row in rows[2:]]


def ticked(text):
    return set(re.findall(r"`([\w.]+)`", text))


def original(name):
    if name == "ImageClassification":
        return TheirPreset
    for place in (THEIRS.resnet, _api, THEIRS):
        if hasattr(place, name):
            return getattr(place, name)
    return None


def parameters(function):
    found = inspect.signature(function).parameters.values()
    return {p.name: (i, p.kind, p.default) for i, p in enumerate(found) if p.kind != p.VAR_KEYWORD}


def changed(ours, theirs):
    """Return the names of parameters that differ between the two signatures."""
    before, after = parameters(theirs), parameters(ours)
    return {name for name in after if before.get(name) != after[name]} | (
        before.keys() - after.keys() - {"args"}
    )


def test_the_names_that_we_add_are_all_listed():
    listed = set().union(*(ticked(row[0]) for row in table("Added names")))
    public = {n for n in models.__all__ if original(n) is None or n == "ImageClassification"}
    assert listed == public


def test_the_signatures_that_differ_are_all_listed():
    shared = [n for n in models.__all__ if callable(original(n)) and "eights" not in n]
    pairs = {n: (getattr(models, n), original(n)) for n in shared}
    for name in ("verify", "get_state_dict"):
        ours, theirs = getattr(models.WeightsEnum, name), getattr(THEIRS.WeightsEnum, name)
        pairs[f"WeightsEnum.{name}"] = ours, theirs
    pairs |= {n: (getattr(models, n), original(n)) for n in ("Weights", "get_weight")}
    differing = {name: changed(*pair) for name, pair in pairs.items()}
    differing = {name: names for name, names in differing.items() if names}
    rows = {ticked(row[0]).pop(): ticked(row[1]) for row in table("Signatures")}
    assert rows.keys() == differing.keys()
    for name, names in rows.items():
        expected = differing[name] if name != "list_models" else {"module"}
        assert names == expected, name


def dilated_basic_block():
    options = {"replace_stride_with_dilation": [False, False, True]}
    with pytest.raises(NotImplementedError):
        THEIRS.resnet18(**options)
    models.resnet18(**options)


def other_classes(monkeypatch):
    for module in (models, THEIRS):
        state = THEIRS.resnet18().state_dict()
        monkeypatch.setattr(module.WeightsEnum, "get_state_dict", lambda *a, s=state, **k: dict(s))
    with pytest.raises(ValueError, match="num_classes"):
        THEIRS.resnet18(weights="DEFAULT", num_classes=3)
    assert models.resnet18(weights="DEFAULT", num_classes=3).fc.out_features == 3


def gray_and_transparent():
    for mode in ("L", "RGBA", "LA", "CMYK", "I;16"):
        image = Image.new(mode, (9, 9))
        with pytest.raises(RuntimeError):
            TheirPreset(crop_size=8)(image)
        assert models.ImageClassification(crop_size=8)(image).shape == (3, 8, 8)


def weights_from_anywhere(tmp_path):
    file = str(tmp_path / "net.pth")
    torch.save(models.resnet18(num_classes=3).state_dict(), file)
    with pytest.raises(KeyError):
        THEIRS.resnet18(weights=file)
    assert models.resnet18(weights=file).fc.out_features == 3


def strange_weights(monkeypatch):
    state = THEIRS.resnet18().state_dict()
    monkeypatch.setattr(THEIRS.WeightsEnum, "get_state_dict", lambda *a, **k: state)
    with pytest.warns(UserWarning, match="IMAGENET1K_V1"):
        THEIRS.resnet18(weights={"a": 1})
    for odd in ({"a": 1}, {}, []):
        with pytest.raises(TypeError):
            models.resnet18(weights=odd)
        if not odd:
            with pytest.warns(UserWarning, match="weights"):
                THEIRS.resnet18(weights=odd)
    for module in (THEIRS, models):
        with pytest.warns(UserWarning, match="weights"):
            module.resnet18(weights=0)


def stages():
    net = models.ResNet(models.Bottleneck, [1, 1, 1], width=8)
    assert [m.shape[1] for m in net.features(torch.zeros(2, 3, 64, 64))] == [32, 64, 128]
    assert not any("layer4" in key for key in net.state_dict())
    with pytest.raises(IndexError):
        THEIRS.ResNet(THEIRS.resnet.Bottleneck, [1, 1, 1])
    assert not hasattr(THEIRS.ResNet(THEIRS.resnet.Bottleneck, [1] * 5), "layer5")
    with pytest.raises(ValueError, match="number of stages must be one of 1, 2, 3, 4; got 5"):
        models.ResNet(models.Bottleneck, [1] * 5)


def no_classes():
    x = torch.zeros(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a layer without elements
        assert THEIRS.resnet18(num_classes=0)(x).shape == (2, 0)
    assert models.resnet18(num_classes=0)(x).shape == (2, 512)


def zero_init():
    theirs = THEIRS.ResNet(models.BasicBlock, [1] * 4, zero_init_residual=True)
    ours = models.ResNet(THEIRS.resnet.BasicBlock, [1] * 4, zero_init_residual=True)
    assert theirs.layer1[0].bn2.weight.sum() == 64
    assert ours.layer1[0].bn2.weight.sum() == 0


def color_spaces():
    preset, theirs = models.ImageClassification(crop_size=8), TheirPreset(crop_size=8)
    photo = Image.new("RGB", (9, 9), (200, 100, 50))
    for mode in ("YCbCr", "HSV"):
        other = photo.convert(mode)
        assert (preset(other) - theirs(photo)).abs().max() < 0.1
        assert (theirs(other) - theirs(photo)).abs().max() > 0.5


def weights_only(monkeypatch):
    monkeypatch.setattr(_api, "load_state_dict_from_url", lambda *_, **given: given)
    assert THEIRS.ResNet18_Weights.DEFAULT.get_state_dict(weights_only=False) == {
        "weights_only": False
    }
    with pytest.raises(TypeError, match="weights_only"):
        models.ResNet18_Weights.DEFAULT.get_state_dict(weights_only=True)


def builders_beside_the_class():
    theirs = {n for n in dir(THEIRS.resnet) if "esnet" in n.lower() and n[0] != "_"}
    assert {"resnet18", "ResNet18_Weights", "ResNet"} <= theirs
    ours = importlib.import_module("resnetkit.models.resnet")
    names = {"ResNet", "BasicBlock", "Bottleneck", "conv1x1", "conv3x3"}
    assert {n for n in (theirs | names) if hasattr(ours, n)} == names


def hash_check():
    defaults = inspect.signature(models.WeightsEnum.get_state_dict).parameters
    assert defaults["check_hash"].default is True
    theirs = inspect.signature(torch.hub.load_state_dict_from_url).parameters
    assert theirs["check_hash"].default is False


def list_models_takes_patterns_first():
    assert models.list_models("resnet18") == ["resnet18"]
    assert THEIRS.list_models(include="resnet18") == ["resnet18"]


def make_layer():
    ours, theirs = models.resnet18(), THEIRS.resnet18()
    assert {n for n in dir(theirs) if not hasattr(ours, n)} == {"dilation"}
    assert parameters(models.ResNet._make_layer) != parameters(THEIRS.ResNet._make_layer)


def script_preset():
    warnings.simplefilter("ignore")  # pytest restores the filters
    assert torch.jit.script(TheirPreset(crop_size=8))(torch.zeros(3, 9, 9)).shape == (3, 8, 8)
    with pytest.raises(torch.jit.frontend.NotSupportedError):
        torch.jit.script(models.ImageClassification(crop_size=8))


BEHAVIORS = {
    "dilated-basic-block": dilated_basic_block,
    "other-classes": other_classes,
    "gray-and-transparent": gray_and_transparent,
    "stages": stages,
    "weights-from-anywhere": weights_from_anywhere,
    "strange-weights": strange_weights,
    "no-classes": no_classes,
    "zero-init": zero_init,
    "color-spaces": color_spaces,
    "weights-only": weights_only,
    "builders-beside-the-class": builders_beside_the_class,
    "hash-check": hash_check,
    "list-models": list_models_takes_patterns_first,
    "make-layer": make_layer,
    "script-preset": script_preset,
}


@pytest.mark.parametrize("name", BEHAVIORS)
def test_a_behavior_differs_as_written(name, request):
    check = BEHAVIORS[name]
    wanted = inspect.signature(check).parameters
    check(**{fixture: request.getfixturevalue(fixture) for fixture in wanted})


def test_the_behaviors_are_all_listed():
    rows = table("Works where torchvision raises") + table("Behaves differently")
    assert [row[0].strip("` |") for row in rows] == list(BEHAVIORS)
