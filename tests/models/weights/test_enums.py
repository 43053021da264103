import copy
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
import torchvision

from resnetkit import models
from resnetkit.errors import UnknownWeightsError
from resnetkit.models import (
    ResNet18_Weights,
    ResNet50_Weights,
    Starter_Weights,
    WeightsEnum,
    imagenet_classes,
)

ENUMS = [name for name in torchvision.models.resnet.__all__ if name.endswith("_Weights")]
ROWS = [
    (name, member) for name in ENUMS for member in getattr(torchvision.models, name).__members__
]


def both(enum, member):
    return (getattr(module, enum)[member] for module in (models, torchvision.models))


@pytest.mark.parametrize(("enum", "member"), ROWS)
def test_a_row_is_the_published_one(enum, member):
    ours, theirs = both(enum, member)
    assert (ours.name, repr(ours), ours.url) == (theirs.name, repr(theirs), theirs.url)
    assert repr(ours.transforms()) == repr(theirs.transforms())
    assert ours.transforms().antialias == theirs.transforms().antialias
    assert set(ours.meta) == set(theirs.meta)
    for key in set(theirs.meta) - {"_docs"}:
        assert ours.meta[key] == theirs.meta[key], key
    assert ours.meta["_docs"] != theirs.meta["_docs"]


def test_there_are_seventeen_published_files():
    enums = set(WeightsEnum.__subclasses__()) - {Starter_Weights}
    files = {enum[member].url for enum in enums for member in enum.__members__}
    assert len(files) == 17
    assert len(ROWS) == 17 + 10  # DEFAULT is an alias in each of the ten
    assert ResNet50_Weights.DEFAULT is ResNet50_Weights.IMAGENET1K_V2
    assert len(imagenet_classes()) == 1000


@pytest.mark.parametrize(
    "again",
    [copy.copy, copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w)), lambda w: type(w)(w.value)],
)
def test_identity_is_kept(again):
    for enum in WeightsEnum.__subclasses__():
        for member in enum:
            assert again(member) is member
            assert len(pickle.dumps(member)) < 150  # its name only: the facts may be corrected


def test_values_that_are_equal_compare_equal():
    value = ResNet18_Weights.DEFAULT.value
    assert copy.deepcopy(value) == value
    assert value != ResNet50_Weights.DEFAULT.value
    changed = copy.deepcopy(value)
    changed.transforms = partial(models.ImageClassification, crop_size=99)
    assert changed != value
    assert (value == 3) is False


def test_verify_takes_members_and_names():
    best = ResNet50_Weights.IMAGENET1K_V2
    for given in (best, "IMAGENET1K_V2", "DEFAULT", "ResNet50_Weights.IMAGENET1K_V2"):
        assert ResNet50_Weights.verify(given) is best
    assert ResNet50_Weights.verify(None) is None


@pytest.mark.parametrize("module", [models, torchvision.models])
def test_verify_raises_the_same_types(module):
    with pytest.raises(KeyError):
        module.ResNet50_Weights.verify("IMAGENET1K_V3")
    with pytest.raises(TypeError):
        module.ResNet50_Weights.verify(module.ResNet18_Weights.DEFAULT)
    with pytest.raises(TypeError):
        module.ResNet50_Weights.verify(3)


def test_an_unknown_member_raises():
    expected = "ResNet50_Weights has no member 'IMAGENET1K_V3'. Did you mean 'IMAGENET1K_V"
    with pytest.raises(UnknownWeightsError) as caught:
        ResNet50_Weights.verify("IMAGENET1K_V3")
    assert str(caught.value).startswith(expected)


def test_importing_the_models_imports_neither_torchvision_nor_pillow():
    code = "import sys, resnetkit.models; print({'torchvision', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "location",
    [
        None,
        "cpu",
        torch.device("cpu"),
        {"cuda:0": "cpu"},
        lambda s, place: s,
        "meta",
        {"cpu": "meta"},
    ],
)
def test_locations_are_those_of_torch_load(location, tmp_path):
    state = Starter_Weights.DEFAULT.get_state_dict()
    torch.save(state, tmp_path / "net.pth")
    expected = torch.load(tmp_path / "net.pth", map_location=location)
    found = Starter_Weights.DEFAULT.get_state_dict(map_location=location)
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].device == tensor.device
        assert tensor.device.type == "meta" or torch.equal(found[name], tensor)
