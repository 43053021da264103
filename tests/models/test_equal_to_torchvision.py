"""The ten architectures match torchvision's, bit for bit."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import get_graph_node_names

from resnetkit import models

FACTS = json.loads(Path(__file__).with_name("published.json").read_text())
NAMES = sorted(FACTS["architectures"])
LARGE = {"resnet152", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet101_2"}
LARGE |= {"wide_resnet50_2", "resnet101"}
BY_COST = [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in NAMES]


def pair(name, seed=0, **options):
    """Return our network and torchvision's, built from the same seed."""
    made = []
    for module in (models, torchvision.models):
        torch.manual_seed(seed)
        made.append(getattr(module, name)(**options))
    return made


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("name", NAMES)
def test_names_shapes_and_counts_are_the_published_ones(name):
    with torch.device("meta"):
        model = getattr(models, name)()
    state = model.state_dict()
    lines = [f"{key} {tuple(t.shape)} {t.dtype}" for key, t in state.items()]
    facts = FACTS["architectures"][name]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == facts["digest"]
    assert len(state) == facts["tensors"]
    summary = models.summarize(model)
    assert summary.parameters == facts["parameters"]
    assert summary.macs == round(facts["gmacs"] * 1e9)


@pytest.mark.parametrize("name", BY_COST)
def test_weights_logits_gradients_and_buffers_are_equal(name):
    ours, theirs = pair(name, seed=3)
    assert_same(ours.state_dict(), theirs.state_dict())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(ours.eval()(x), theirs.eval()(x))
    steps = []
    for model in (ours, theirs):
        optimizer = torch.optim.SGD(model.train().parameters(), lr=0.1)
        logits = model(x)
        nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
        steps.append((logits, {n: p.grad.clone() for n, p in model.named_parameters()}))
        optimizer.step()
    assert torch.equal(steps[0][0], steps[1][0])
    assert_same(steps[0][1], steps[1][1])
    assert_same(ours.state_dict(), theirs.state_dict())  # buffers too


@pytest.mark.parametrize(
    "options",
    [
        {"num_classes": 7, "zero_init_residual": True},
        {"replace_stride_with_dilation": [False, True, True]},
        {"norm_layer": lambda channels: nn.GroupNorm(8, channels)},
        {"norm_layer": torchvision.ops.FrozenBatchNorm2d},
    ],
    ids=["classes", "dilation", "group norm", "frozen norm"],
)
def test_options_mean_the_same(options):
    ours, theirs = pair("resnet50", **options)
    assert_same(ours.state_dict(), theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours(x), theirs(x))


def test_positional_arguments_of_classes_mean_the_same():
    made = []
    for source in (models, torchvision.models.resnet):
        torch.manual_seed(0)
        block = source.Bottleneck(64, 16, 1, None, 2, 32, 2, nn.BatchNorm2d)
        net = source.ResNet(source.Bottleneck, [1, 1, 1, 1], 5, True, 2, 32, [False, False, True])
        made.append((block.state_dict(), net.state_dict()))
    for ours, theirs in zip(*made, strict=True):
        assert_same(ours, theirs)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_nodes_of_the_graph_have_the_same_names_in_the_same_order(name):
    ours, theirs = pair(name)
    assert get_graph_node_names(ours) == get_graph_node_names(theirs)
    attributes = {"conv1", "bn1", "relu", "maxpool", "layer4", "avgpool", "fc", "inplanes"}
    assert attributes <= set(dir(ours))


def test_the_module_has_every_public_name_of_torchvision():
    theirs = {n for n in torchvision.models.resnet.__all__ if not n.startswith("_")}
    api = {"Weights", "WeightsEnum", "get_model", "get_model_builder", "get_model_weights"}
    api |= {"get_weight", "list_models", "register_model", "BasicBlock", "Bottleneck"}
    assert theirs | api | {"conv3x3", "conv1x1"} <= set(models.__all__)
    assert all(hasattr(models, name) for name in models.__all__)
    assert len(set(models.__all__)) == len(models.__all__)
