"""docs/differences.md is complete and true."""

import inspect
import re
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
    """The cells of a section's table, without its head."""
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
    """Names of the parameters that are not the same in both, wherever ours has them."""
    before, after = parameters(theirs), parameters(ours)
    return {name for name in after if before.get(name) != after[name]} | (
        before.keys() - after.keys() - {"args"}
    )


def test_the_names_that_we_add_are_all_listed():
    listed = set().union(*(ticked(row[0]) for row in table("Names that we add")))
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


def grey_and_transparent():
    for mode in ("L", "RGBA"):
        picture = Image.new(mode, (9, 9))
        with pytest.raises(RuntimeError):
            TheirPreset(crop_size=8)(picture)
        assert models.ImageClassification(crop_size=8)(picture).shape == (3, 8, 8)


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
    with pytest.raises(TypeError):
        models.resnet18(weights={"a": 1})


def hash_check():
    defaults = inspect.signature(models.WeightsEnum.get_state_dict).parameters
    assert defaults["check_hash"].default is True
    theirs = inspect.signature(torch.hub.load_state_dict_from_url).parameters
    assert theirs["check_hash"].default is False


def list_models_takes_patterns_first():
    assert models.list_models("resnet18") == ["resnet18"]
    assert THEIRS.list_models(include="resnet18") == ["resnet18"]


def scripting():
    script = torch.jit.script
    with pytest.warns((DeprecationWarning, FutureWarning)):
        script(THEIRS.resnet18())
    with (
        pytest.warns((DeprecationWarning, FutureWarning)),
        pytest.raises((RuntimeError, torch.jit.frontend.FrontendError)),
    ):
        script(models.resnet18())


def private_parts():
    ours, theirs = models.resnet18(), THEIRS.resnet18()
    gone = {n for n in dir(theirs) if not hasattr(ours, n)}
    assert gone == {"_forward_impl", "dilation"}
    assert parameters(models.ResNet._make_layer) != parameters(THEIRS.ResNet._make_layer)


BEHAVIOURS = {
    "dilated-basic-block": dilated_basic_block,
    "other-classes": other_classes,
    "grey-and-transparent": grey_and_transparent,
    "weights-from-anywhere": weights_from_anywhere,
    "strange-weights": strange_weights,
    "hash-check": hash_check,
    "list-models": list_models_takes_patterns_first,
    "scripting": scripting,
    "private-parts": private_parts,
}


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_a_behaviour_differs_as_written(name, request):
    check = BEHAVIOURS[name]
    wanted = inspect.signature(check).parameters
    check(**{fixture: request.getfixturevalue(fixture) for fixture in wanted})


def test_the_behaviours_are_all_listed():
    rows = table("Answers where the original raises") + table("Behaves in another way")
    assert [row[0].strip("` |") for row in rows] == list(BEHAVIOURS)
