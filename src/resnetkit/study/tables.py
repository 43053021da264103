"""The paper's tables of shapes and costs: derived from built networks, next to the printed values.

Everything is counted by `models.summary` on PyTorch's ``meta`` device, where tensors have shapes
and no values.
"""

from __future__ import annotations

import torch
from torch import nn
from torchvision import models as torchvision_models

from ..models import BasicBlock, Bottleneck, Summary, summarize
from ..models.skeleton import ShapesOnly, get_skeleton
from . import published
from .table import Row, Table

SIDE = 224  # pixels; image side in all ImageNet tables of the paper


def tables() -> list[Table]:
    """Return table 1, the parameters of table 6, the costs of the two blocks, and figure 3."""
    return [table1_layers(), table1_macs(), table6_parameters(), blocks(), figure3()]


def structure(stage: nn.Module) -> str:
    """Return the convolutions of a stage's blocks and the number of blocks, as table 1 writes them.

    >>> structure(get_skeleton("resnet50").layer2)
    '1x1,128 3x3,128 1x1,512 x4'

    Raises:
        ValueError: the blocks differ.
    """
    forms = [_convolutions(block) for block in stage.children()]
    if len(set(forms)) != 1:
        raise ValueError(f"Expected blocks of one form; got {sorted(set(forms))}")
    return f"{forms[0]} x{len(forms)}"


def _convolutions(block: nn.Module) -> str:
    return " ".join(
        f"{module.kernel_size[0]}x{module.kernel_size[1]},{module.out_channels}"
        for name, module in block.named_modules()
        if isinstance(module, nn.Conv2d) and not name.startswith("downsample")
    )


def table1_layers() -> Table:
    """Return output sizes and blocks of conv2_x to conv5_x, and depth as the paper counts it."""
    rows = []
    for depth, counts in published.TABLE1_BLOCKS.items():
        network = get_skeleton(f"resnet{depth}")
        summary = summarize(network, SIDE)
        rows.append(Row(f"{depth}-layer: depth", summary.layers, str(depth)))
        stages = {stage.name: stage for stage in summary.stages}
        printed = published.TABLE1_BASIC if depth < 50 else published.TABLE1_BOTTLENECK
        for i, name in enumerate(("layer1", "layer2", "layer3", "layer4")):
            side = published.TABLE1_SIDES[i]
            derived = f"{stages[name].output[-1]} px, {structure(getattr(network, name))}"
            expected = f"{side} px, {printed[i]} x{counts[i]}"
            rows.append(Row(f"{depth}-layer: conv{i + 2}_x", derived, expected))
    return Table("Table 1: output sizes and blocks, 224 px", tuple(rows))


def table1_macs() -> Table:
    """Return multiply-adds in billions: V1 with and without projections, and V1.5."""
    rows = []
    for depth, printed in published.TABLE1_GMACS.items():
        summary = _summarize(f"resnet{depth}", stride_on="1x1" if depth >= 50 else "3x3")
        rows.append(Row(f"{depth}-layer", summary.macs / 1e9, printed))
        without = summary.macs - _projection_macs(summary)
        rows.append(Row(f"{depth}-layer, without its projections", without / 1e9))
        if depth >= 50:
            rows.append(Row(f"{depth}-layer, V1.5", _summarize(f"resnet{depth}").macs / 1e9))
    notes = (
        "convolutions and the linear layer are counted; norms, ReLU and pooling are not. The "
        "bottleneck has its stride in the first 1x1 (V1), as in the paper.",
        "34-layer: the paper's number is for identity shortcuts (option A); the projections of "
        "option B are extra.",
        "50-layer: our number does not round to the printed one, with or without projections; with "
        "them, it truncates to it. The printed 101- and 152-layer numbers are rounded, and include "
        "the projections.",
    )
    return Table("Table 1: multiply-adds in billions, 224 px", tuple(rows), notes)


def table6_parameters() -> Table:
    """Return the parameters of the CIFAR nets in millions, with option A shortcuts."""
    rows = [
        Row(f"ResNet-{depth}", _summarize(f"cifar_resnet{depth}", 32).parameters / 1e6, printed)
        for depth, printed in published.TABLE6_PARAMETERS.items()
    ]
    title = "Table 6: parameters in millions, CIFAR-10, option A"
    note = "includes convolutions, the linear layer, and the scales and biases of the norms."
    return Table(title, tuple(rows), (note,), digits=6)


def blocks() -> Table:
    """Return the cost of a BasicBlock and of a Bottleneck on 56 x 56 maps: figure 5."""
    rows = []
    with torch.device("meta"), ShapesOnly():
        built: dict[str, nn.Module] = {
            "BasicBlock, 64 channels": BasicBlock(64, 64),
            "Bottleneck, 256 channels, 64 inside": Bottleneck(256, 64),
            "BasicBlock, 256 channels": BasicBlock(256, 256),
        }
    for name, block in built.items():
        summary = summarize(block, 56)
        rows.append(Row(f"{name}: millions of multiply-adds", summary.macs / 1e6))
        rows.append(Row(f"{name}: parameters", summary.parameters))
    note = (
        'the paper says that the first two "have similar time complexity" (figure 5), and prints '
        "no number."
    )
    return Table("Figure 5: the cost of a block on 56 x 56 maps", tuple(rows), (note,))


def figure3() -> Table:
    """Return multiply-adds in billions of VGG-19 and the 34-layer plain and residual nets."""
    with torch.device("meta"), ShapesOnly():
        vgg = {name: getattr(torchvision_models, name)() for name in ("vgg16", "vgg19")}
    summaries = {name: summarize(network, SIDE) for name, network in vgg.items()}
    plain = _summarize("plain34")
    residual = _summarize("resnet34", shortcut="A")
    printed = published.FIGURE3_GMACS
    rows = (
        Row("VGG-19", summaries["vgg19"].macs / 1e9, printed["VGG-19"]),
        Row("34-layer plain", plain.macs / 1e9, printed["34-layer plain"]),
        Row("34-layer residual, option A", residual.macs / 1e9, printed["34-layer residual"]),
        Row("34-layer residual, option B", _summarize("resnet34").macs / 1e9),
        Row("VGG-16", summaries["vgg16"].macs / 1e9, published.SECTION41_GMACS["VGG-16"]),
        Row("VGG-16, only convolutions", _convolution_macs(summaries["vgg16"]) / 1e9),
        Row("VGG-19, only convolutions", _convolution_macs(summaries["vgg19"]) / 1e9),
        Row("parameters: VGG-19, millions", summaries["vgg19"].parameters / 1e6),
        Row("parameters: 34-layer residual A, millions", residual.parameters / 1e6),
    )
    note = (
        "the paper's 19.6 for VGG-19 includes its linear layers; its 15.3 for VGG-16 (section 4.1) "
        "counts only the convolutions."
    )
    return Table("Figure 3: multiply-adds in billions, 224 px", rows, (note,))


def _summarize(name: str, size: int = SIDE, **options: str) -> Summary:
    return summarize(get_skeleton(name, **options), size)


def _projection_macs(summary: Summary) -> int:
    return sum(row.macs for row in summary.rows if "downsample" in row.name)


def _convolution_macs(summary: Summary) -> int:
    return sum(row.macs for row in summary.rows if row.type == "Conv2d")
