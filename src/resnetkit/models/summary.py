"""Layer table, parameters and multiply-adds of a network, counted from its real modules."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .registry import ShapesOnly


@dataclass(frozen=True)
class Row:
    """One module that computes: its name, type, output shape ``(N, ...)``, parameters and
    multiply-adds for one picture."""

    name: str
    type: str
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """``parameters`` and multiply-adds (``macs``) of a network, for one picture; ``rows`` lists
    its leaf modules in the order in which they run."""

    parameters: int
    macs: int
    rows: tuple[Row, ...]


def summarize(model: nn.Module, image_size: int | tuple[int, int] = 224) -> Summary:
    """Count what ``model`` computes for one picture of ``image_size`` pixels (or (H, W)).

    Multiply-adds are those of convolutions and linear layers, as in the paper's tables; the model
    runs once on PyTorch's ``meta`` device, which has shapes and no numbers.

    >>> from resnetkit.models import resnet50
    >>> summary = summarize(resnet50(), image_size=224)
    >>> summary.parameters, round(summary.macs / 1e9, 3)
    (25557032, 4.089)
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    model = deepcopy(model).to("meta").eval()
    rows: list[Row] = []

    def hook(name: str, module: nn.Module, output: Tensor) -> None:
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        kind = type(module).__name__
        rows.append(Row(name, kind, tuple(output.shape), parameters, _macs(module, output)))

    for name, module in model.named_modules():
        if not any(True for _ in module.children()):
            module.register_forward_hook(lambda m, _, out, name=name: hook(name, m, out))
    with torch.no_grad(), ShapesOnly():
        model(torch.empty(1, _in_channels(model), *size, device="meta"))
    parameters = sum(p.numel() for p in model.parameters())
    return Summary(parameters, sum(row.macs for row in rows), tuple(rows))


def _in_channels(model: nn.Module) -> int:
    return next(m.in_channels for m in model.modules() if isinstance(m, nn.Conv2d))


def _macs(module: nn.Module, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):  # one dot product for each number that comes out
        return output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0
