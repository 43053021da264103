"""Drawings show the modules of a block as they run."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch
from torch import nn

from resnetkit.errors import RecipeError
from resnetkit.models import BasicBlock, Bottleneck, PadShortcut, conv1x1
from resnetkit.study.diagrams import draw, named_blocks, paper_blocks, trace


def texts(svg):
    return [e.text for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_the_blocks_of_figure_5():
    path = trace(BasicBlock(64, 64))
    assert path.channels == 64
    assert [label for _, label in path.main] == [
        "3x3 conv, 64",
        "BatchNorm",
        "ReLU",
        "3x3 conv, 64",
        "BatchNorm",
    ]
    assert path.shortcut == ()
    assert path.after == (("act", "ReLU"),)
    path = trace(Bottleneck(256, 64))
    assert [label for kind, label in path.main if kind == "conv"] == [
        "1x1 conv, 64",
        "3x3 conv, 64",
        "1x1 conv, 256",
    ]


def test_projections_strides_and_groups():
    down = nn.Sequential(conv1x1(256, 512, 2), nn.BatchNorm2d(512))
    path = trace(Bottleneck(256, 128, 2, down, groups=32, base_width=4))
    assert path.shortcut == (("conv", "1x1 conv, 512, /2"), ("norm", "BatchNorm"))
    assert ("conv", "3x3 conv, 256, /2, 32 groups") in path.main
    v1 = trace(Bottleneck(256, 128, 2, down, stride_on="1x1"))
    assert v1.main[0] == ("conv", "1x1 conv, 128, /2")
    path = trace(BasicBlock(16, 32, 2, PadShortcut(16, 32, 2)))
    assert path.shortcut == (("pad", "zeros, +16, /2"),)


def test_a_plain_block_has_no_sum():
    path = trace(BasicBlock(8, 8, residual=False))
    assert path.shortcut is None
    assert path.after == ()
    assert [label for _, label in path.main][-1] == "ReLU"
    assert "+" not in texts(draw([("plain", BasicBlock(8, 8, residual=False))]))


def test_the_drawing_labels_the_modules():
    svg = draw([("a < b", BasicBlock(5, 5)), ("two", BasicBlock(7, 7))])
    found = texts(svg)
    assert found.count("3x3 conv, 5") == found.count("3x3 conv, 7") == 2
    assert found.count("+") == found.count("identity") == 2
    assert "a < b" in found
    assert svg == draw([("a < b", BasicBlock(5, 5)), ("two", BasicBlock(7, 7))])


def test_the_papers_four():
    labels = texts(draw(paper_blocks()))
    assert [label for label in labels if label.startswith("x:")] == [
        "x: 64 channels",
        "x: 64 channels",
        "x: 256 channels",
        "x: 256 channels",
    ]
    assert "1x1 conv, 512, /2" in labels


def test_named_networks_and_options():
    titles = [title for title, _ in named_blocks("cifar_resnet20", {"width": 8})]
    assert titles == [f"cifar_resnet20: {b}" for b in ("layer1.0", "layer2.0", "layer2.1")]
    assert trace(named_blocks("cifar_resnet20", {"width": 8})[0][1]).channels == 8
    darknet = [trace(block) for _, block in named_blocks("darknet53", {})]
    assert darknet[0].after == ()  # nothing comes after the sum
    for name, options in (("resnet5", {}), ("resnet50", {"widht": 3}), ("resnet18", {"stem": 1})):
        with pytest.raises(RecipeError):
            named_blocks(name, options)


def test_a_block_that_is_not_a_chain_is_refused():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 1, 1)

        def forward(self, x):
            return self.conv(x) + x + x

    with pytest.raises(ValueError, match="one sum"):
        trace(Twice())

    class Other(Twice):
        def forward(self, x):
            return torch.sin(self.conv(x))

    with pytest.raises(ValueError, match="sin"):
        trace(Other())
