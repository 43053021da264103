"""Count the layers, parameters and multiply-adds of a network, module by module."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .skeleton import ShapesOnly


@dataclass(frozen=True)
class Row:
    """One run of a leaf module.

    Args:
        name: the module's name.
        type: its class.
        output: shape ``(1, ...)`` of its output.
        parameters: number of its parameters that are not in an earlier row.
        macs: multiply-adds for one image.
        stage: the part of the network it belongs to, such as ``stem`` or ``layer1``.
    """

    name: str
    type: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    stage: str

    @property
    def is_layer(self) -> bool:
        """Whether the paper counts this row: a convolution or linear layer, not in a shortcut."""
        computes = self.type.startswith(("Conv", "Linear"))
        return computes and "downsample" not in self.name.split(".")


@dataclass(frozen=True)
class Stage:
    """A part of the network, such as the stem or ``layer1``.

    Args:
        name: its name.
        output: shape ``(1, ...)`` of its output.
        layers: layers as the paper counts them.
        parameters: number of parameters.
        macs: multiply-adds for one image.
    """

    name: str
    output: tuple[int, ...]
    layers: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """The size and cost of a network.

    Args:
        parameters: number of parameters.
        macs: multiply-adds for one image.
        rows: the leaf modules in the order they run.
    """

    parameters: int
    macs: int
    rows: tuple[Row, ...]

    @property
    def layers(self) -> int:
        """Depth as the paper counts it: 101 for ResNet-101 (1 + 9 + 12 + 69 + 9 + 1)."""
        return sum(row.is_layer for row in self.rows)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stem, the stages and the head, in the order they run."""
        names = list(dict.fromkeys(row.stage for row in self.rows))
        return tuple(_make_stage(n, [r for r in self.rows if r.stage == n]) for n in names)

    def __str__(self) -> str:
        total = Stage(
            name="total",
            output=(),
            layers=self.layers,
            parameters=self.parameters,
            macs=self.macs,
        )
        lines = [f"{'stage':8} {'output':>18} {'layers':>6} {'parameters':>11} {'GMACs':>7}"]
        for stage in (*self.stages, total):
            shape = " x ".join(map(str, stage.output[1:]))
            numbers = f"{stage.layers:6} {stage.parameters:11,} {stage.macs / 1e9:7.3f}"
            lines.append(f"{stage.name:8} {shape:>18} {numbers}")
        return "\n".join(lines)


def _make_stage(name: str, rows: list[Row]) -> Stage:
    return Stage(
        name=name,
        output=rows[-1].output,
        layers=sum(row.is_layer for row in rows),
        parameters=sum(row.parameters for row in rows),
        macs=sum(row.macs for row in rows),
    )


def summarize(model: nn.Module, image_size: int | tuple[int, int] = 224) -> Summary:
    """Return the parameters and multiply-adds of ``model`` for one image.

    Multiply-adds are counted for convolutions and linear layers, as in the paper's tables. The
    model runs once on PyTorch's ``meta`` device, which has shapes without values. Shared parameters
    are counted once, where they first run; multiply-adds are counted at every run.

    Args:
        model: a network that begins with a convolution.
        image_size: side of the image in pixels, or (H, W).

    Raises:
        ValueError: the network has no convolution, so its number of input channels is unknown.

    >>> from resnetkit.models import resnet50
    >>> summary = summarize(resnet50(), image_size=224)
    >>> summary.parameters, round(summary.macs / 1e9, 3)
    (25557032, 4.089)
    >>> print(summary)
    stage                output layers  parameters   GMACs
    stem           64 x 56 x 56      1       9,536   0.118
    layer1        256 x 56 x 56      9     215,808   0.668
    layer2        512 x 28 x 28     12   1,219,584   1.028
    layer3       1024 x 14 x 14     18   7,098,368   1.464
    layer4         2048 x 7 x 7      9  14,964,736   0.809
    head                   1000      1   2,049,000   0.002
    total                           50  25,557,032   4.089
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    model = deepcopy(model).to("meta").eval()
    stages = getattr(model, "stages", [])
    rows: list[Row] = []
    counted: set[int] = set()  # ids of parameters, which modules may share

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        new = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, new))
        row = Row(
            name=name,
            type=type(module).__name__,
            output=tuple(output.shape),
            parameters=sum(p.numel() for p in new),
            macs=_count_macs(module, inputs, output=output),
            stage=_stage_of(name, stages, after_stages=any(r.stage in stages for r in rows)),
        )
        rows.append(row)

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(partial(hook, name))
    with torch.no_grad(), ShapesOnly():
        model(torch.empty(1, in_channels(model), *size, device="meta"))
    parameters = sum(p.numel() for p in model.parameters())
    return Summary(parameters, macs=sum(row.macs for row in rows), rows=tuple(rows))


def _stage_of(name: str, stages: list[str], *, after_stages: bool) -> str:
    """Return the stage of a module: stem before the stages, head after them."""
    first = name.partition(".")[0]
    if first in stages or not stages:
        return first
    return "head" if after_stages else "stem"


def in_channels(model: nn.Module) -> int:
    """Return the number of input channels of a network's first convolution.

    Raises:
        ValueError: the network has no convolution.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return module.in_channels
    raise ValueError(
        f"expected a network for images, which begins with a Conv2d; got a "
        f"{type(model).__name__} without one"
    )


def _count_macs(module: nn.Module, inputs: tuple[Tensor, ...], *, output: Tensor) -> int:
    """Return the multiply-adds of one run; 0 for modules that the paper does not count."""
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # Each input value is multiplied by a whole kernel.
        fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
        return inputs[0].numel() * fan_out
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        # Each output value is one dot product.
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0
