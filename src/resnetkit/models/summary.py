"""Layer table, parameters and multiply-adds of a network, counted from its real modules."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from .registry import ShapesOnly


@dataclass(frozen=True)
class Row:
    """One module that computes: its name, type, output shape ``(N, ...)``, parameters and
    multiply-adds for one picture; ``stage`` is the part of the network that it belongs to."""

    name: str
    type: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    stage: str

    @property
    def is_layer(self) -> bool:
        """Whether the paper counts it: a convolution or linear layer that is on no shortcut."""
        computes = self.type.startswith(("Conv", "Linear"))
        return computes and "downsample" not in self.name.split(".")


@dataclass(frozen=True)
class Stage:
    """A part of the network: shape of its output, layers as the paper counts them, parameters and
    multiply-adds for one picture."""

    name: str
    output: tuple[int, ...]
    layers: int
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """``parameters`` and multiply-adds (``macs``) of a network, for one picture; ``rows`` lists
    its leaf modules in the order in which they run."""

    parameters: int
    macs: int
    rows: tuple[Row, ...]

    @property
    def layers(self) -> int:
        """Depth as the paper counts it: 101 for ResNet-101 (1 + 9 + 12 + 69 + 9 + 1)."""
        return sum(row.is_layer for row in self.rows)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stem, the stages and the head, in the order in which they run."""
        names = list(dict.fromkeys(row.stage for row in self.rows))
        return tuple(_stage(name, [r for r in self.rows if r.stage == name]) for name in names)

    def __str__(self) -> str:
        total = Stage("total", (), self.layers, self.parameters, self.macs)
        lines = [f"{'stage':8} {'output':>18} {'layers':>6} {'parameters':>11} {'GMACs':>7}"]
        for stage in (*self.stages, total):
            shape = " x ".join(map(str, stage.output[1:]))
            numbers = f"{stage.layers:6} {stage.parameters:11,} {stage.macs / 1e9:7.3f}"
            lines.append(f"{stage.name:8} {shape:>18} {numbers}")
        return "\n".join(lines)


def _stage(name: str, rows: list[Row]) -> Stage:
    layers = sum(row.is_layer for row in rows)
    parameters, macs = sum(row.parameters for row in rows), sum(row.macs for row in rows)
    return Stage(name, rows[-1].output, layers, parameters, macs)


def summarize(model: nn.Module, image_size: int | tuple[int, int] = 224) -> Summary:
    """Count what ``model`` computes for one picture of ``image_size`` pixels (or (H, W)).

    Multiply-adds are those of convolutions and linear layers, as in the paper's tables; the model
    runs once on PyTorch's ``meta`` device, which has shapes and no numbers. Parameters that modules
    share are counted once, where they first run; multiply-adds at every run.

    Raises:
        ValueError: the network has no convolution, which would tell its input channels.

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
    channels, stages = in_channels(model), getattr(model, "stages", [])
    rows: list[Row] = []
    counted: set[int] = set()  # parameters that several modules, or runs of one, share

    def hook(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        new = [p for p in module.parameters(recurse=False) if id(p) not in counted]
        counted.update(map(id, new))
        parameters, macs = sum(p.numel() for p in new), _macs(module, inputs, output)
        stage = _stage_of(name, stages, any(row.stage in stages for row in rows))
        rows.append(Row(name, type(module).__name__, tuple(output.shape), parameters, macs, stage))

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(partial(hook, name))
    with torch.no_grad(), ShapesOnly():
        model(torch.empty(1, channels, *size, device="meta"))
    parameters = sum(p.numel() for p in model.parameters())
    return Summary(parameters, sum(row.macs for row in rows), tuple(rows))


def _stage_of(name: str, stages: list[str], behind_a_stage: bool) -> str:
    first = name.partition(".")[0]
    if first in stages or not stages:
        return first
    return "head" if behind_a_stage else "stem"


def in_channels(model: nn.Module) -> int:
    """The channels that its first convolution takes.

    Raises:
        ValueError: it has none.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            return module.in_channels
    raise ValueError(
        f"expected a network for pictures, which begins with a Conv2d; got a "
        f"{type(model).__name__} without any"
    )


def _macs(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> int:
    if isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        # One multiple of the kernel for each number that goes in.
        fan_out = module.out_channels // module.groups * math.prod(module.kernel_size)
        return inputs[0].numel() * fan_out
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        # One dot product for each number that comes out.
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0
