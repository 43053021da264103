"""DarkNet-53 (Redmon and Farhadi, "YOLOv3", arXiv:1804.02767, table 1).

A residual network whose design differs from that of ResNet. Strided 3x3 convolutions between blocks
change the shape, so every shortcut is an identity. Each block squeezes its input to half the
channels. Nothing follows the addition. The 53 layers are 52 convolutions and one linear layer.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import NormLayer, check_positive
from .legacy import accept_legacy_calls
from .registry import register_model
from .weights.resolve import build_network


class ConvNormAct(nn.Sequential):
    """Convolution, norm, leaky ReLU: (N, inplanes, H, W) -> (N, planes, H/stride, W/stride)."""

    def __init__(
        self, inplanes: int, planes: int, kernel: int, stride: int, norm_layer: NormLayer
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inplanes, planes, kernel, stride=stride, padding=kernel // 2, bias=False
        )
        self.bn = norm_layer(planes)
        self.act = nn.LeakyReLU(0.1, inplace=True)


class DarkBlock(nn.Module):
    """A 1x1 to half the channels, a 3x3 back, and a shortcut; keeps (N, planes, H, W)."""

    def __init__(self, planes: int, norm_layer: NormLayer) -> None:
        super().__init__()
        self.squeeze = ConvNormAct(planes, planes // 2, kernel=1, stride=1, norm_layer=norm_layer)
        self.expand = ConvNormAct(planes // 2, planes, kernel=3, stride=1, norm_layer=norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """Return ``F(x) + x``."""
        out: Tensor = self.expand(self.squeeze(x))
        return x + out


class DarkNet(nn.Module):
    """A 3x3 stem, five stages that halve H and W and double the channels, and a head.

    Args:
        layers: number of blocks in each stage.
        num_classes: number of logits; 0 returns the pooled vector ``(N, 1024)`` instead.
        norm_layer: makes a norm for a given number of channels; BatchNorm2d by default.
        in_channels: channels of the input.
        include_top: False omits pooling and the head, and returns the last map ``(N, C, h, w)``.

    Shape:
        Input ``(N, in_channels, H, W)``; output ``(N, num_classes)``, logits. The paper uses
        images of 256 px.
    """

    def __init__(
        self,
        layers: Sequence[int],
        num_classes: int = 1000,
        norm_layer: NormLayer | None = None,
        *,
        in_channels: int = 3,
        include_top: bool = True,
    ) -> None:
        super().__init__()
        check_positive("in_channels", in_channels)
        norm_layer = norm_layer or nn.BatchNorm2d
        planes = 32
        self.conv1 = nn.Conv2d(in_channels, planes, 3, padding=1, bias=False)
        self.bn1 = norm_layer(planes)
        self.act = nn.LeakyReLU(0.1, inplace=True)
        self.stages = [f"layer{i}" for i in range(1, len(layers) + 1)]
        for name, blocks in zip(self.stages, layers, strict=True):
            stage = nn.Sequential(
                ConvNormAct(planes, 2 * planes, kernel=3, stride=2, norm_layer=norm_layer)
            )
            planes *= 2
            stage.extend(DarkBlock(planes, norm_layer) for _ in range(blocks))
            self.add_module(name, stage)
        self.include_top = include_top
        if include_top:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.fc = nn.Linear(planes, num_classes) if num_classes else nn.Identity()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=0.1, mode="fan_out")

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature map of each stage, at strides 2, 4, 8, 16 and 32.

        Args:
            x: images ``(N, in_channels, H, W)``.
        """
        x = self.act(self.bn1(self.conv1(x)))  # (N, 32, H, W)
        maps = []
        for name in self.stages:
            x = getattr(self, name)(x)  # (N, 64, H/2, W/2), (N, 128, H/4, W/4), ...
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, in_channels, H, W)``."""
        x = self.features(x)[-1]  # (N, 1024, H/32, W/32)
        if not self.include_top:
            return x
        x = torch.flatten(self.avgpool(x), 1)  # (N, 1024)
        x = self.fc(x)
        return x


@register_model()
@accept_legacy_calls(None)
def darknet53(
    *, weights: os.PathLike[str] | str | None = None, progress: bool = True, **options: Any
) -> DarkNet:
    """DarkNet-53: 41.6 million parameters, 7.1 G multiply-adds at 224 px.

    Args:
        weights: a file, ``https://...`` or ``hf://owner/name``; None for random weights.
        progress: show a bar while weights are downloaded.
        options: keyword arguments of `DarkNet`.
    """

    def construct(**resolved: Any) -> DarkNet:
        return DarkNet([1, 2, 8, 8, 4], **resolved)

    return build_network(construct, options, weights=weights, progress=progress)
