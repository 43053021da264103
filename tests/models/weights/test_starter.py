"""The weights in the package match their model card and their enum, and need no download."""

from __future__ import annotations

import re

import pytest
import torch

from resnetkit import models
from resnetkit.models import Starter_Weights, get_model, summarize
from resnetkit.models.weights import download, modelfile
from resnetkit.storage import sha256

STARTER = Starter_Weights.TINY_IMAGENET
SHA256 = "bf82aac6385f98356bfb90bc7055ef4f3a9dea373b315351c0b18672efc781dc"


def test_the_file_is_the_one_that_was_measured():
    path = STARTER.file()
    assert sha256(path) == SHA256
    assert path.name == f"resnet18_starter-{SHA256[:8]}.safetensors"
    assert path.stat().st_size < 6e6
    assert round(path.stat().st_size / 2**20, 3) == STARTER.meta["_file_size"]


def test_the_file_says_what_the_enum_says():
    header = modelfile.read_header(STARTER.file())
    meta = STARTER.meta
    assert list(header.classes) == meta["categories"]
    assert len(set(header.classes)) == 200
    preset = STARTER.transforms()
    assert (preset.resize_size, preset.crop_size) == ([112], [112])
    assert (header.preprocessing.resize_size, header.preprocessing.crop_size) == (112, 112)
    network = get_model("resnet18_starter", num_classes=200)
    assert summarize(network, 224).parameters == meta["num_params"]
    assert round(summarize(network, 224).macs / 1e9, 3) == meta["_ops"]
    assert round(100 * header.metrics["accuracy"], 2) == meta["_metrics"]["Tiny-ImageNet"]["acc@1"]


def test_the_card_states_the_accuracy_and_the_hash():
    card = (STARTER.file().parent / "README.md").read_text(encoding="utf-8")
    assert SHA256 in card
    assert f"{STARTER.meta['_metrics']['Tiny-ImageNet']['acc@1']:.2f}%" in card
    for heading in ("Data", "License", "Training", "Accuracy", "Not for"):
        assert re.search(rf"^## .*{heading}", card, re.M), heading


@pytest.mark.parametrize("weights", ["DEFAULT", "TINY_IMAGENET", STARTER])
def test_a_network_gets_them_without_a_download(weights, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("nothing may be downloaded")

    monkeypatch.setattr(download, "fetch", refuse)
    network = models.resnet18_starter(weights=weights).eval()
    expected, _ = modelfile.read(STARTER.file())
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network(x), expected(x))
    assert network.conv1.weight.dtype == torch.float32
    adapted = models.resnet18_starter(weights=weights, num_classes=3, in_channels=1)
    assert adapted(x[:, :1]).shape == (2, 3)


def test_they_are_named_like_other_weights():
    assert models.get_weight("Starter_Weights.TINY_IMAGENET") is STARTER
    assert models.get_model_weights("resnet18_starter") is Starter_Weights
    with pytest.raises(TypeError, match="ResNet18_Weights"):
        models.resnet18(weights=STARTER)  # a network of a different width
