"""ResNet: the network of He et al., "Deep Residual Learning for Image Recognition".

Every architecture of the family is this one class with other numbers: those in `builders`.
Sections, tables and figures are those of arXiv:1512.03385. Parameter names are those of every
published ResNet file, so they stay, although a ``downsample`` may only change the channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .blocks import BasicBlock, Bottleneck, NormLayer, check_option, conv3x3, make_shortcut
from .blocks import conv1x1 as conv1x1  # other people's code looks for it here


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a head (table 1).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: blocks in each stage; ResNet-50 is ``Bottleneck`` with ``[3, 4, 6, 3]``.
        num_classes: logits of the head; 0 returns the pooled vector ``(N, C)`` instead.
        zero_init_residual: start every block as its shortcut alone (arXiv:1706.02677, section 5.1).
        groups, width_per_group: of the 3x3 in a `Bottleneck`.
        replace_stride_with_dilation: for each stage but the first, keep the map's size and spread
            the kernels instead: same weights, same field of view (arXiv:1511.07122).
        norm_layer: makes the normalisation from a number of channels; BatchNorm2d by default.
        shortcut: ``"A"``, ``"B"``, ``"C"`` or ``"none"``: see `make_shortcut` and table 3.
        stride_on: ``"3x3"`` (V1.5) or ``"1x1"`` (V1, the paper's): see `Bottleneck`.
        stem: ``"imagenet"`` quarters H and W; ``"small"`` (section 4.2) keeps them, for 32 px.
        width: channels of the first stage; each later stage has twice those of the one before.
        in_channels: channels of the input.
        include_top: False leaves pooling and head out and returns the last map ``(N, C, h, w)``.

    Shape:
        Input ``(N, in_channels, H, W)``, any size from 1x1; output ``(N, num_classes)``, logits.
        A value that is not among those above raises ValueError.
    """

    def __init__(
        self,
        block: type[BasicBlock | Bottleneck],
        layers: Sequence[int],
        num_classes: int = 1000,
        zero_init_residual: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        replace_stride_with_dilation: Sequence[bool] | None = None,
        norm_layer: NormLayer | None = None,
        *,
        shortcut: str = "B",
        stride_on: str = "3x3",
        stem: str = "imagenet",
        width: int = 64,
        in_channels: int = 3,
        include_top: bool = True,
    ) -> None:
        super().__init__()
        check_option("shortcut", shortcut, ("A", "B", "C", "none"))
        basic = issubclass(block, BasicBlock)  # which has no 1x1
        check_option("stride_on", stride_on, ("3x3",) if basic else ("3x3", "1x1"))
        check_option("stem", stem, ("imagenet", "small"))
        later, dilate = len(layers) - 1, replace_stride_with_dilation  # stages behind the first
        dilate = [False] * later if dilate is None else dilate
        if len(dilate) != later:
            raise ValueError(f"replace_stride_with_dilation has {later} values; got {dilate!r}")
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.groups, self.base_width = groups, width_per_group
        self.shortcut, self.stride_on, self.include_top = shortcut, stride_on, include_top

        # Stem: (N, 3, H, W) -> (N, 64, H/4, W/4); the small one keeps H and W.
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(in_channels, width)
        self.bn1 = self._norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()

        # Stages: each but the first halves H and W and doubles the channels, which preserves the
        # time per layer (section 3.3). One whose stride is replaced dilates its kernels instead.
        self.stages = [f"layer{i}" for i in range(1, len(layers) + 1)]
        inplanes, dilation = width, 1
        for i, name in enumerate(self.stages):
            planes, before = width * 2**i, dilation
            stride = 1 if i == 0 else 2
            if i > 0 and dilate[i - 1]:
                stride, dilation = 1, dilation * 2
            stage = self._make_layer(block, inplanes, planes, layers[i], stride, before, dilation)
            self.add_module(name, stage)
            inplanes = planes * block.expansion
        self.inplanes = inplanes  # channels of the last map

        # Head: (N, C, h, w) -> (N, C) -> (N, num_classes). No hidden layers, and no dropout,
        # following the practice of batch norm (section 3.4).
        if include_top:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.fc = nn.Identity() if num_classes == 0 else nn.Linear(inplanes, num_classes)

        self._initialise(zero_init_residual)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        inplanes: int,
        planes: int,
        blocks: int,
        stride: int,
        dilation: int,
        new_dilation: int,
    ) -> nn.Sequential:
        """One stage: (N, inplanes, H, W) -> (N, planes * expansion, H/stride, W/stride).

        Only its first block strides and changes the number of channels. Where the stride was
        replaced, its kernels have the old dilation up to there, and all others the new one.
        """
        options: dict[str, Any] = {}  # only what differs, so that other people's blocks fit too
        if self.shortcut == "none":
            options["residual"] = False
        if self.stride_on != "3x3":
            options["stride_on"] = self.stride_on
        if issubclass(block, BasicBlock) or self.stride_on != "3x3":  # a 3x3 behind the stride
            options["inner_dilation"] = new_dilation

        outplanes, norm_layer = planes * block.expansion, self._norm_layer
        stage = nn.Sequential()
        for _ in range(blocks):
            downsample = make_shortcut(self.shortcut, inplanes, outplanes, stride, norm_layer)
            args = inplanes, planes, stride, downsample, self.groups, self.base_width, dilation
            stage.append(block(*args, norm_layer, **options))
            inplanes, stride, dilation = outplanes, 1, new_dilation  # for all but the first
        return stage

    def _initialise(self, zero_init_residual: bool) -> None:
        # He initialisation (arXiv:1502.01852): a ReLU halves the variance of what passes, so
        # weights of variance 2/fan keep it from layer to layer; fan_out keeps the gradient's.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.constant_(module.weight, 1)
                nn.init.constant_(module.bias, 0)

        # The last norm of a block scales F: at zero, y = F(x) + x starts as y = x.
        for name in self.stages if zero_init_residual else ():
            for block in getattr(self, name):
                last: Any = getattr(block, "bn3", getattr(block, "bn2", None))
                if getattr(last, "weight", None) is not None:
                    nn.init.constant_(last.weight, 0)

    def features(self, x: Tensor) -> list[Tensor]:
        """The stages' maps: strides 4, 8, 16, 32 (small stem: 1, 2, 4, 8) if none is dilated."""
        x = self.relu(self.bn1(self.conv1(x)))  # (N, 64, H/2, W/2)
        x = self.maxpool(x)  # (N, 64, H/4, W/4)
        maps = []
        for name in self.stages:
            x = getattr(self, name)(x)  # (N, 64 * expansion, H/4, W/4), (N, 128 * ..., H/8, ...
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)[-1]  # (N, 512 * expansion, H/32, W/32)
        if not self.include_top:
            return x
        x = torch.flatten(self.avgpool(x), 1)  # (N, 512 * expansion)
        return self.fc(x)  # type: ignore[no-any-return]
