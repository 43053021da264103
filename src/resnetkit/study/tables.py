"""The paper's tables of shapes and costs, derived from built networks beside what it prints.

Everything is counted on PyTorch's ``meta`` device, where networks have shapes and no numbers, in
the same way as `models.summary` does for any network.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models as torchvision_models

from ..models import BasicBlock, Bottleneck, Summary, summarize
from ..models.registry import ShapesOnly, get_skeleton
from . import published
from .table import Row, Table

SIDE = 224  # pixels of the pictures in all of the paper's ImageNet tables


def tables() -> list[Table]:
    """Table 1, the parameters of table 6, the costs of the two blocks, and figure 3."""
    return [table1_layers(), table1_macs(), table6_parameters(), blocks(), figure3()]


def structure(stage: nn.Module) -> str:
    """The convolutions of a stage's blocks and their number, as table 1 writes them.

    >>> structure(get_skeleton("resnet50").layer2)
    '1x1,128 3x3,128 1x1,512 x4'

    Raises:
        ValueError: its blocks differ.
    """
    found = [_convolutions(block) for block in stage.children()]
    if len(set(found)) != 1:
        raise ValueError(f"expected blocks of one form; got {sorted(set(found))}")
    return f"{found[0]} x{len(found)}"


def _convolutions(block: nn.Module) -> str:
    return " ".join(
        f"{module.kernel_size[0]}x{module.kernel_size[1]},{module.out_channels}"
        for name, module in block.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith("downsample")
    )


def table1_layers() -> Table:
    """Output sizes and blocks of the stages conv2_x to conv5_x; depth as the paper counts it."""
    rows = []
    for depth, counts in published.TABLE1_BLOCKS.items():
        network = get_skeleton(f"resnet{depth}")
        counted = summarize(network, SIDE)
        rows.append(Row(f"{depth}-layer: depth", counted.layers, str(depth)))
        stages = {stage.name: stage for stage in counted.stages}
        printed = published.TABLE1_BASIC if depth < 50 else published.TABLE1_BOTTLENECK
        for i, name in enumerate(("layer1", "layer2", "layer3", "layer4")):
            side = published.TABLE1_SIDES[i]
            derived = f"{stages[name].output[-1]} px, {structure(getattr(network, name))}"
            expected = f"{side} px, {printed[i]} x{counts[i]}"
            rows.append(Row(f"{depth}-layer: conv{i + 2}_x", derived, expected))
    return Table("Table 1: output sizes and blocks, 224 px", tuple(rows))


def table1_macs() -> Table:
    """Multiply-adds in billions: as published (V1), with and without projections, and V1.5."""
    rows = []
    for depth, printed in published.TABLE1_GMACS.items():
        counted = _count(f"resnet{depth}", stride_on="1x1" if depth >= 50 else "3x3")
        rows.append(Row(f"{depth}-layer", counted.macs / 1e9, printed))
        without = counted.macs - _projections(counted)
        rows.append(Row(f"{depth}-layer, without its projections", without / 1e9))
        if depth >= 50:
            rows.append(Row(f"{depth}-layer, V1.5", _count(f"resnet{depth}").macs / 1e9))
    notes = (
        "counted are convolutions and the linear layer; norms, ReLU and pooling are not. The "
        "bottleneck strides in its first 1x1 (V1), as in the paper.",
        "34-layer: the paper's number is that of identity shortcuts (option A); the projections "
        "of option B come on top.",
        "50-layer: neither with nor without projections does it round to the printed number; with "
        "them it is cut off to it. The 101- and 152-layer numbers are rounded, projections "
        "included.",
    )
    return Table("Table 1: multiply-adds in billions, 224 px", tuple(rows), notes)


def table6_parameters() -> Table:
    """Parameters of the CIFAR nets in millions, with shortcuts of option A."""
    rows = [
        Row(f"ResNet-{depth}", _count(f"cifar_resnet{depth}", 32).parameters / 1e6, printed)
        for depth, printed in published.TABLE6_PARAMETERS.items()
    ]
    title = "Table 6: parameters in millions, CIFAR-10, option A"
    note = "weights of convolutions and of the linear layer, and scales and biases of the norms."
    return Table(title, tuple(rows), (note,), digits=6)


def blocks() -> Table:
    """A BasicBlock against a Bottleneck on maps of 56 x 56: figure 5."""
    rows = []
    with torch.device("meta"), ShapesOnly():
        built: dict[str, nn.Module] = {
            "BasicBlock, 64 channels": BasicBlock(64, 64),
            "Bottleneck, 256 channels, 64 inside": Bottleneck(256, 64),
            "BasicBlock, 256 channels": BasicBlock(256, 256),
        }
    for name, block in built.items():
        counted = summarize(block, 56)
        rows.append(Row(f"{name}: millions of multiply-adds", counted.macs / 1e6))
        rows.append(Row(f"{name}: parameters", counted.parameters))
    note = (
        'the paper says of the first two that they "have similar time complexity" (figure 5), and '
        "prints no number."
    )
    return Table("Figure 5: the cost of a block on maps of 56 x 56", tuple(rows), (note,))


def figure3() -> Table:
    """VGG-19, the plain and the residual net of 34 layers: multiply-adds in billions."""
    with torch.device("meta"), ShapesOnly():
        vgg = {name: getattr(torchvision_models, name)() for name in ("vgg16", "vgg19")}
    counted = {name: summarize(network, SIDE) for name, network in vgg.items()}
    plain, residual = _count("plain34"), _count("resnet34", shortcut="A")
    printed = published.FIGURE3_GMACS
    rows = (
        Row("VGG-19", counted["vgg19"].macs / 1e9, printed["VGG-19"]),
        Row("34-layer plain", plain.macs / 1e9, printed["34-layer plain"]),
        Row("34-layer residual, option A", residual.macs / 1e9, printed["34-layer residual"]),
        Row("34-layer residual, option B", _count("resnet34").macs / 1e9),
        Row("VGG-16", counted["vgg16"].macs / 1e9, published.SECTION41_GMACS["VGG-16"]),
        Row("VGG-16, convolutions alone", _convolutional(counted["vgg16"]) / 1e9),
        Row("VGG-19, convolutions alone", _convolutional(counted["vgg19"]) / 1e9),
        Row("parameters: VGG-19, millions", counted["vgg19"].parameters / 1e6),
        Row("parameters: 34-layer residual A, millions", residual.parameters / 1e6),
    )
    note = (
        "the paper's 19.6 for VGG-19 counts its linear layers, its 15.3 for VGG-16 (section 4.1) "
        "only the convolutions."
    )
    return Table("Figure 3: multiply-adds in billions, 224 px", rows, (note,))


def _count(name: str, size: int = SIDE, **options: str) -> Summary:
    return summarize(get_skeleton(name, **options), size)


def _projections(counted: Summary) -> int:
    return sum(row.macs for row in counted.rows if "downsample" in row.name)


def _convolutional(counted: Summary) -> int:
    return sum(row.macs for row in counted.rows if row.type == "Conv2d")
