"""The numbers of each architecture, used to recognize a checkpoint by its tensor shapes.

The builders repeat these numbers; a test compares the two.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from .blocks import BasicBlock, Bottleneck


class Architecture(NamedTuple):
    """The arguments that a builder passes to `ResNet`."""

    block: type[BasicBlock | Bottleneck]
    layers: list[int]
    numbers: dict[str, Any]


_CIFAR = {"num_classes": 10, "stem": "small", "width": 16}
_PLAIN = {"shortcut": "none"}
_PADDED = {"shortcut": "A"}

ARCHITECTURES = {
    "resnet18": Architecture(BasicBlock, [2, 2, 2, 2], {}),
    "resnet18_starter": Architecture(BasicBlock, [2, 2, 2, 2], {"width": 32}),
    "resnet34": Architecture(BasicBlock, [3, 4, 6, 3], {}),
    "resnet50": Architecture(Bottleneck, [3, 4, 6, 3], {}),
    "resnet101": Architecture(Bottleneck, [3, 4, 23, 3], {}),
    "resnet152": Architecture(Bottleneck, [3, 8, 36, 3], {}),
    "resnext50_32x4d": Architecture(Bottleneck, [3, 4, 6, 3], {"groups": 32, "width_per_group": 4}),
    "resnext101_32x8d": Architecture(
        Bottleneck, [3, 4, 23, 3], {"groups": 32, "width_per_group": 8}
    ),
    "resnext101_64x4d": Architecture(
        Bottleneck, [3, 4, 23, 3], {"groups": 64, "width_per_group": 4}
    ),
    "wide_resnet50_2": Architecture(Bottleneck, [3, 4, 6, 3], {"width_per_group": 128}),
    "wide_resnet101_2": Architecture(Bottleneck, [3, 4, 23, 3], {"width_per_group": 128}),
    "plain18": Architecture(BasicBlock, [2, 2, 2, 2], _PLAIN),
    "plain34": Architecture(BasicBlock, [3, 4, 6, 3], _PLAIN),
    "cifar_resnet20": Architecture(BasicBlock, [3, 3, 3], {**_CIFAR, **_PADDED}),
    "cifar_resnet32": Architecture(BasicBlock, [5, 5, 5], {**_CIFAR, **_PADDED}),
    "cifar_resnet44": Architecture(BasicBlock, [7, 7, 7], {**_CIFAR, **_PADDED}),
    "cifar_resnet56": Architecture(BasicBlock, [9, 9, 9], {**_CIFAR, **_PADDED}),
    "cifar_resnet110": Architecture(BasicBlock, [18, 18, 18], {**_CIFAR, **_PADDED}),
    "cifar_resnet1202": Architecture(BasicBlock, [200, 200, 200], {**_CIFAR, **_PADDED}),
    "cifar_plain20": Architecture(BasicBlock, [3, 3, 3], {**_CIFAR, **_PLAIN}),
    "cifar_plain32": Architecture(BasicBlock, [5, 5, 5], {**_CIFAR, **_PLAIN}),
    "cifar_plain44": Architecture(BasicBlock, [7, 7, 7], {**_CIFAR, **_PLAIN}),
    "cifar_plain56": Architecture(BasicBlock, [9, 9, 9], {**_CIFAR, **_PLAIN}),
    "cifar_plain110": Architecture(BasicBlock, [18, 18, 18], {**_CIFAR, **_PLAIN}),
}
