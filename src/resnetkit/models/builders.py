"""One function per network, which sets its block, the blocks per stage, and a few options.

All of them return a `ResNet`. Options are keyword arguments for `ResNet` and override the numbers
given here, except ``groups`` and ``width_per_group`` if they are part of the network's name.

>>> resnet18(num_classes=10).fc
Linear(in_features=512, out_features=10, bias=True)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import did_you_mean
from .blocks import BasicBlock, Bottleneck
from .legacy import accept_legacy_calls
from .registry import register_model
from .resnet import ResNet
from .weights import (
    ResNet18_Weights,
    ResNet34_Weights,
    ResNet50_Weights,
    ResNet101_Weights,
    ResNet152_Weights,
    ResNeXt50_32X4D_Weights,
    ResNeXt101_32X8D_Weights,
    ResNeXt101_64X4D_Weights,
    Starter_Weights,
    WeightsEnum,
    Wide_ResNet50_2_Weights,
    Wide_ResNet101_2_Weights,
)
from .weights.resolve import build_network

__all__ = [
    "cifar_plain20",
    "cifar_plain32",
    "cifar_plain44",
    "cifar_plain56",
    "cifar_plain110",
    "cifar_resnet20",
    "cifar_resnet32",
    "cifar_resnet44",
    "cifar_resnet56",
    "cifar_resnet110",
    "cifar_resnet1202",
    "plain18",
    "plain34",
    "resnet18",
    "resnet18_starter",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

_OPTIONS = list(inspect.signature(ResNet).parameters)[2:]  # all but block and layers


def _resnet(
    name: str,
    block: type[BasicBlock | Bottleneck],
    *,
    layers: Sequence[int],
    published: type[WeightsEnum] | None = None,
    weights: WeightsEnum | os.PathLike[str] | str | None,
    progress: bool,
    options: Mapping[str, Any],
    **defaults: Any,
) -> ResNet:
    """Return ``ResNet(block, layers)`` with the defaults, the caller's options and weights.

    Args:
        name: the builder's name.
        block, layers: as in `ResNet`.
        published: the enum of the network's published weights, if any.
        weights: what to load; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet` from the caller.
        defaults: keyword arguments for `ResNet` that belong to the network.

    Raises:
        TypeError: `ResNet` has no such option.
        ValueError: an option contradicts the name.
    """
    for key, value in options.items():
        if key not in _OPTIONS:
            hint = did_you_mean(key, [*_OPTIONS, "weights", "progress"])
            hint = hint or f"It accepts {', '.join(_OPTIONS)}"
            raise TypeError(f"{name}() got an unexpected keyword argument {key!r}. {hint}")
        if key in ("groups", "width_per_group") and defaults.get(key, value) != value:
            raise ValueError(
                f"{name} means {key}={defaults[key]}; got {value!r}. For other values, use a "
                "builder whose name does not set them, such as resnet50"
            )

    def construct(**resolved: Any) -> ResNet:
        return ResNet(block, layers, **{**defaults, **resolved})

    return build_network(
        construct, options, weights=weights, published=published, progress=progress
    )


# The networks of table 1.
@register_model()
@accept_legacy_calls(ResNet18_Weights)
def resnet18(
    *,
    weights: ResNet18_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-18: 11.7 million parameters, 1.8 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNet18_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnet18",
        BasicBlock,
        layers=[2, 2, 2, 2],
        published=ResNet18_Weights,
        weights=weights,
        progress=progress,
        options=options,
    )


@register_model()
def resnet18_starter(
    *,
    weights: Starter_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-18 at half the width: 3.1 million parameters, 0.5 G multiply-adds at 224 px.

    Args:
        weights: a member of `Starter_Weights`, which needs no download, or its name, a file,
            ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnet18_starter",
        BasicBlock,
        layers=[2, 2, 2, 2],
        published=Starter_Weights,
        weights=weights,
        progress=progress,
        options=options,
        width=32,
    )


@register_model()
@accept_legacy_calls(ResNet34_Weights)
def resnet34(
    *,
    weights: ResNet34_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-34: 21.8 million parameters, 3.7 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNet34_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnet34",
        BasicBlock,
        layers=[3, 4, 6, 3],
        published=ResNet34_Weights,
        weights=weights,
        progress=progress,
        options=options,
    )


@register_model()
@accept_legacy_calls(ResNet50_Weights)
def resnet50(
    *,
    weights: ResNet50_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-50: 25.6 million parameters, 4.1 G multiply-adds at 224 px.

    Strides are on the 3x3 (V1.5), as in all deeper networks; ``stride_on="1x1"`` is the paper's
    version.

    Args:
        weights: a member of `ResNet50_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnet50",
        Bottleneck,
        layers=[3, 4, 6, 3],
        published=ResNet50_Weights,
        weights=weights,
        progress=progress,
        options=options,
    )


@register_model()
@accept_legacy_calls(ResNet101_Weights)
def resnet101(
    *,
    weights: ResNet101_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-101: 44.5 million parameters, 7.8 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNet101_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnet101",
        Bottleneck,
        layers=[3, 4, 23, 3],
        published=ResNet101_Weights,
        weights=weights,
        progress=progress,
        options=options,
    )


@register_model()
@accept_legacy_calls(ResNet152_Weights)
def resnet152(
    *,
    weights: ResNet152_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-152: 60.2 million parameters, 11.5 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNet152_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnet152",
        Bottleneck,
        layers=[3, 8, 36, 3],
        published=ResNet152_Weights,
        weights=weights,
        progress=progress,
        options=options,
    )


# ResNeXt (arXiv:1611.05431): the 3x3 is split into many thin groups.
@register_model()
@accept_legacy_calls(ResNeXt50_32X4D_Weights)
def resnext50_32x4d(
    *,
    weights: ResNeXt50_32X4D_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNeXt-50 with 32 groups of 4 channels.

    25.0 million parameters, 4.2 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNeXt50_32X4D_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnext50_32x4d",
        Bottleneck,
        layers=[3, 4, 6, 3],
        published=ResNeXt50_32X4D_Weights,
        weights=weights,
        progress=progress,
        options=options,
        groups=32,
        width_per_group=4,
    )


@register_model()
@accept_legacy_calls(ResNeXt101_32X8D_Weights)
def resnext101_32x8d(
    *,
    weights: ResNeXt101_32X8D_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNeXt-101 with 32 groups of 8 channels.

    88.8 million parameters, 16.4 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNeXt101_32X8D_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnext101_32x8d",
        Bottleneck,
        layers=[3, 4, 23, 3],
        published=ResNeXt101_32X8D_Weights,
        weights=weights,
        progress=progress,
        options=options,
        groups=32,
        width_per_group=8,
    )


@register_model()
@accept_legacy_calls(ResNeXt101_64X4D_Weights)
def resnext101_64x4d(
    *,
    weights: ResNeXt101_64X4D_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNeXt-101 with 64 groups of 4 channels.

    83.5 million parameters, 15.5 G multiply-adds at 224 px.

    Args:
        weights: a member of `ResNeXt101_64X4D_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "resnext101_64x4d",
        Bottleneck,
        layers=[3, 4, 23, 3],
        published=ResNeXt101_64X4D_Weights,
        weights=weights,
        progress=progress,
        options=options,
        groups=64,
        width_per_group=4,
    )


# Wide ResNet (arXiv:1605.07146): the 3x3 has twice the channels.
@register_model()
@accept_legacy_calls(Wide_ResNet50_2_Weights)
def wide_resnet50_2(
    *,
    weights: Wide_ResNet50_2_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """Wide ResNet-50-2: 68.9 million parameters, 11.4 G multiply-adds at 224 px.

    Args:
        weights: a member of `Wide_ResNet50_2_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "wide_resnet50_2",
        Bottleneck,
        layers=[3, 4, 6, 3],
        published=Wide_ResNet50_2_Weights,
        weights=weights,
        progress=progress,
        options=options,
        width_per_group=128,
    )


@register_model()
@accept_legacy_calls(Wide_ResNet101_2_Weights)
def wide_resnet101_2(
    *,
    weights: Wide_ResNet101_2_Weights | os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """Wide ResNet-101-2: 126.9 million parameters, 22.8 G multiply-adds at 224 px.

    Args:
        weights: a member of `Wide_ResNet101_2_Weights` or its name, a file, ``https://...`` or
            ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "wide_resnet101_2",
        Bottleneck,
        layers=[3, 4, 23, 3],
        published=Wide_ResNet101_2_Weights,
        weights=weights,
        progress=progress,
        options=options,
        width_per_group=128,
    )


# The plain nets that the paper compares with residual nets (table 2).
@register_model()
@accept_legacy_calls(None)
def plain18(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 18-layer plain net: `resnet18` without its shortcuts.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "plain18",
        BasicBlock,
        layers=[2, 2, 2, 2],
        weights=weights,
        progress=progress,
        options=options,
        shortcut="none",
    )


@register_model()
@accept_legacy_calls(None)
def plain34(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 34-layer plain net.

    `resnet34` without its shortcuts. In the paper, its error is higher than that of `plain18`.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _resnet(
        "plain34",
        BasicBlock,
        layers=[3, 4, 6, 3],
        weights=weights,
        progress=progress,
        options=options,
        shortcut="none",
    )


def _cifar(
    name: str,
    n: int,
    *,
    shortcut: str,
    weights: os.PathLike[str] | str | None,
    progress: bool,
    options: Mapping[str, Any],
) -> ResNet:
    """Return a network from section 4.2, with 6n + 2 layers, for 32 px images.

    Its three stages have 16, 32 and 64 channels.
    """
    return _resnet(
        name,
        BasicBlock,
        layers=[n, n, n],
        weights=weights,
        progress=progress,
        options=options,
        num_classes=10,
        stem="small",
        width=16,
        shortcut=shortcut,
    )


@register_model()
@accept_legacy_calls(None)
def cifar_resnet20(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-20 for CIFAR-10.

    0.27 million parameters (table 6), option A shortcuts, 10 classes by default.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_resnet20", 3, shortcut="A", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_resnet32(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-32 for CIFAR-10.

    0.46 million parameters (table 6), option A shortcuts, 10 classes by default.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_resnet32", 5, shortcut="A", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_resnet44(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-44 for CIFAR-10.

    0.66 million parameters (table 6), option A shortcuts, 10 classes by default.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_resnet44", 7, shortcut="A", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_resnet56(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-56 for CIFAR-10.

    0.85 million parameters (table 6), option A shortcuts, 10 classes by default.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_resnet56", 9, shortcut="A", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_resnet110(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-110 for CIFAR-10.

    1.7 million parameters (table 6), option A shortcuts, 10 classes by default.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_resnet110", 18, shortcut="A", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_resnet1202(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """ResNet-1202 for CIFAR-10.

    19.4 million parameters (table 6), option A shortcuts, 10 classes by default.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_resnet1202", 200, shortcut="A", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_plain20(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 20-layer plain net for CIFAR-10: `cifar_resnet20` without its shortcuts.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_plain20", 3, shortcut="none", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_plain32(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 32-layer plain net for CIFAR-10: `cifar_resnet32` without its shortcuts.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_plain32", 5, shortcut="none", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_plain44(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 44-layer plain net for CIFAR-10: `cifar_resnet44` without its shortcuts.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_plain44", 7, shortcut="none", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_plain56(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 56-layer plain net for CIFAR-10: `cifar_resnet56` without its shortcuts.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_plain56", 9, shortcut="none", weights=weights, progress=progress, options=options
    )


@register_model()
@accept_legacy_calls(None)
def cifar_plain110(
    *,
    weights: os.PathLike[str] | str | None = None,
    progress: bool = True,
    **options: Any,
) -> ResNet:
    """The 110-layer plain net for CIFAR-10: `cifar_resnet110` without its shortcuts.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a progress bar while weights are downloaded.
        options: keyword arguments for `ResNet`.
    """
    return _cifar(
        "cifar_plain110", 18, shortcut="none", weights=weights, progress=progress, options=options
    )
