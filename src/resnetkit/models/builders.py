"""The architectures: a name and its numbers.

Each builder makes a `ResNet`. Its keyword options are those of `ResNet`, and win over the numbers
that stand here, except groups and widths, which are what the name means.

>>> resnet18(num_classes=10).fc
Linear(in_features=512, out_features=10, bias=True)
"""

from __future__ import annotations

import difflib
import inspect
from typing import Any, NamedTuple

from .blocks import BasicBlock, Bottleneck
from .pretrained import with_weights
from .registry import Builder, register_model
from .resnet import ResNet
from .weights import WeightsEnum


class Architecture(NamedTuple):
    """The arguments that `ResNet` gets from a builder."""

    block: type[BasicBlock | Bottleneck]
    layers: list[int]
    numbers: dict[str, Any]


ARCHITECTURES: dict[str, Architecture] = {}
_PUBLISHED = {enum.__name__.lower(): enum for enum in WeightsEnum.__subclasses__()}
_FIXED = ("groups", "width_per_group")
_OPTIONS = list(inspect.signature(ResNet).parameters)[2:]


def _builder(
    name: str, block: type[BasicBlock | Bottleneck], layers: list[int], **numbers: Any
) -> Builder:
    def construct(**options: Any) -> ResNet:
        _check(name, numbers, options)
        return ResNet(block, layers, **{**numbers, **options})

    weights = _PUBLISHED.get(f"{name}_weights")
    extras = "".join(f", {key}={value!r}" for key, value in numbers.items())
    construct.__name__ = construct.__qualname__ = name
    construct.__doc__ = (
        f"``ResNet({block.__name__}, {layers}{extras})``; see `ResNet` for the options.\n\n"
        "    Args:\n"
        f"        weights: {f'a member of `{weights.__name__}`, its name, ' if weights else ''}a "
        "file, ``https://...`` or ``hf://owner/name``.\n"
        "        progress: show a bar while they are downloaded.\n"
    )
    ARCHITECTURES[name] = Architecture(block, layers, numbers)
    return register_model(name)(with_weights(construct, weights))


def _check(name: str, numbers: dict[str, Any], options: dict[str, Any]) -> None:
    for key, value in options.items():
        if key not in _OPTIONS:
            nearest = difflib.get_close_matches(key, [*_OPTIONS, "weights", "progress"], n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"it has {', '.join(_OPTIONS)}"
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}; {hint}")
        if key in _FIXED and numbers.get(key, value) != value:
            raise ValueError(
                f"{name} means {key}={numbers[key]}; got {value!r}. Other values belong to the "
                "builder without them in its name, such as resnet50"
            )


# Table 1 of the paper.
resnet18 = _builder("resnet18", BasicBlock, [2, 2, 2, 2])
resnet34 = _builder("resnet34", BasicBlock, [3, 4, 6, 3])
resnet50 = _builder("resnet50", Bottleneck, [3, 4, 6, 3])
resnet101 = _builder("resnet101", Bottleneck, [3, 4, 23, 3])
resnet152 = _builder("resnet152", Bottleneck, [3, 8, 36, 3])

# Many thin groups instead of one 3x3: ResNeXt, arXiv:1611.05431.
_32x4d, _32x8d, _64x4d = (
    {"groups": groups, "width_per_group": width} for groups, width in ((32, 4), (32, 8), (64, 4))
)
resnext50_32x4d = _builder("resnext50_32x4d", Bottleneck, [3, 4, 6, 3], **_32x4d)
resnext101_32x8d = _builder("resnext101_32x8d", Bottleneck, [3, 4, 23, 3], **_32x8d)
resnext101_64x4d = _builder("resnext101_64x4d", Bottleneck, [3, 4, 23, 3], **_64x4d)

# A 3x3 of twice the channels: Wide ResNet, arXiv:1605.07146.
wide_resnet50_2 = _builder("wide_resnet50_2", Bottleneck, [3, 4, 6, 3], width_per_group=128)
wide_resnet101_2 = _builder("wide_resnet101_2", Bottleneck, [3, 4, 23, 3], width_per_group=128)

# The plain nets that residual nets are measured against: table 2.
plain18 = _builder("plain18", BasicBlock, [2, 2, 2, 2], shortcut="none")
plain34 = _builder("plain34", BasicBlock, [3, 4, 6, 3], shortcut="none")

# Section 4.2: 6n + 2 layers for pictures of 32 px, three stages of 16, 32 and 64 channels.
_CIFAR: dict[str, Any] = {"num_classes": 10, "stem": "small", "width": 16}
cifar_resnet20 = _builder("cifar_resnet20", BasicBlock, [3] * 3, shortcut="A", **_CIFAR)
cifar_resnet32 = _builder("cifar_resnet32", BasicBlock, [5] * 3, shortcut="A", **_CIFAR)
cifar_resnet44 = _builder("cifar_resnet44", BasicBlock, [7] * 3, shortcut="A", **_CIFAR)
cifar_resnet56 = _builder("cifar_resnet56", BasicBlock, [9] * 3, shortcut="A", **_CIFAR)
cifar_resnet110 = _builder("cifar_resnet110", BasicBlock, [18] * 3, shortcut="A", **_CIFAR)
cifar_resnet1202 = _builder("cifar_resnet1202", BasicBlock, [200] * 3, shortcut="A", **_CIFAR)
cifar_plain20 = _builder("cifar_plain20", BasicBlock, [3] * 3, shortcut="none", **_CIFAR)
cifar_plain32 = _builder("cifar_plain32", BasicBlock, [5] * 3, shortcut="none", **_CIFAR)
cifar_plain44 = _builder("cifar_plain44", BasicBlock, [7] * 3, shortcut="none", **_CIFAR)
cifar_plain56 = _builder("cifar_plain56", BasicBlock, [9] * 3, shortcut="none", **_CIFAR)
cifar_plain110 = _builder("cifar_plain110", BasicBlock, [18] * 3, shortcut="none", **_CIFAR)
