"""ResNet: the network of He et al., "Deep Residual Learning for Image Recognition".

Every network in the family is this one class with its own numbers: see `builders`. Sections, tables
and figures are those of arXiv:1512.03385. Parameter names must match published files, so
``downsample`` keeps its name even where it only changes the number of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .blocks import (
    BasicBlock,
    Bottleneck,
    DilatedBasicBlock,
    NormLayer,
    check_option,
    check_positive,
    conv3x3,
    dilatable,
    make_shortcut,
)
from .blocks import conv1x1 as conv1x1  # other code imports it from here


class ResNet(nn.Module):
    """A stem, stages of residual blocks, and a head (table 1).

    Args:
        block: `BasicBlock` or `Bottleneck`.
        layers: number of blocks in each of 1 to 4 stages; ResNet-50 is ``Bottleneck`` with
            ``[3, 4, 6, 3]``. Missing stages are the identity.
        num_classes: number of logits; 0 returns the pooled vector ``(N, C)`` instead.
        zero_init_residual: initialize every block to its shortcut alone (arXiv:1706.02677, section
            5.1); torchvision's authors put the gain at 0.2 to 0.3 points of accuracy.
        groups, width_per_group: groups and width of the 3x3 in a `Bottleneck`.
        replace_stride_with_dilation: for each stage but the first, whether to keep the size of
            the map and dilate the kernels: same weights, same field of view (arXiv:1511.07122).
        norm_layer: makes a norm for a given number of channels; BatchNorm2d by default.
        shortcut: ``"A"``, ``"B"``, ``"C"`` or ``"none"``: see `make_shortcut` and table 3.
        stride_on: ``"3x3"`` (V1.5) or ``"1x1"`` (V1, the paper's): see `Bottleneck`.
        stem: ``"imagenet"`` quarters H and W; ``"small"`` (section 4.2) keeps them, for 32 px
            images.
        width: channels of the first stage; each later stage has twice as many as the one before.
        in_channels: channels of the input.
        include_top: False omits pooling and the head, and returns the last map ``(N, C, h, w)``.

    Shape:
        Input ``(N, in_channels, H, W)``, any size from 1x1 up; output ``(N, num_classes)``, logits.

    Raises:
        ValueError: an argument is not among the values above.
        NotImplementedError: strides are replaced, and block is a custom `BasicBlock` that cannot
            dilate.
    """

    __constants__ = ("include_top",)  # TorchScript compiles only the branch that is taken

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
        is_basic = issubclass(block, BasicBlock)  # it has no 1x1
        check_option("shortcut", shortcut, ("A", "B", "C", "none"))
        check_option("stride_on", stride_on, ("3x3",) if is_basic else ("3x3", "1x1"))
        check_option("stem", stem, ("imagenet", "small"))
        check_option("the number of stages", len(layers), (1, 2, 3, 4))
        check_positive("width", width)
        check_positive("in_channels", in_channels)
        later_stages = len(layers) - 1
        dilate = replace_stride_with_dilation
        if dilate is None:
            dilate = [False] * later_stages
        if len(dilate) != later_stages:
            raise ValueError(
                f"replace_stride_with_dilation must have {later_stages} values, one for each "
                f"stage but the first; got {dilate!r}"
            )
        if any(dilate):
            block = dilatable(block)
        self._norm_layer = norm_layer or nn.BatchNorm2d
        self.groups = groups
        self.base_width = width_per_group
        self.shortcut = shortcut
        self.stride_on = stride_on
        self.include_top = include_top

        # Stem: (N, in_channels, H, W) -> (N, width, H/4, W/4); the small stem keeps H and W.
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = conv3x3(in_channels, width)
        self.bn1 = self._norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if stem == "imagenet" else nn.Identity()

        # Stages: each but the first halves H and W and doubles the channels, which preserves the
        # time per layer (section 3.3). If its stride is replaced, it dilates its kernels instead.
        inplanes = width
        dilation = 1
        built: list[nn.Module] = []
        for i, blocks in enumerate(layers):
            planes = width * 2**i
            stride = 1 if i == 0 else 2
            first_dilation = dilation
            if i > 0 and dilate[i - 1]:
                dilation *= stride
                stride = 1
            built.append(
                self._make_layer(block, inplanes, planes, blocks, stride, dilation, first_dilation)
            )
            inplanes = planes * block.expansion
        built += [nn.Identity() for _ in range(4 - len(layers))]
        # Assigned by name: `forward` can then be read, and published weights have these names.
        self.layer1 = built[0]
        self.layer2 = built[1]
        self.layer3 = built[2]
        self.layer4 = built[3]
        self.stages = [f"layer{i + 1}" for i in range(len(layers))]
        self.inplanes = inplanes  # channels of the last map

        # Head: (N, C, h, w) -> (N, C) -> (N, num_classes). One linear layer; no dropout, as in the
        # batch norm paper (section 3.4).
        if include_top:
            self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
            self.fc = nn.Identity() if num_classes == 0 else nn.Linear(inplanes, num_classes)

        self._init_weights(zero_init_residual)

    def _make_layer(
        self,
        block: type[BasicBlock | Bottleneck],
        inplanes: int,
        planes: int,
        blocks: int,
        stride: int,
        dilation: int,
        first_dilation: int,
    ) -> nn.Sequential:
        """Return one stage: (N, inplanes, H, W) -> (N, planes * expansion, H/stride, W/stride).

        Only its first block has a stride and changes the number of channels. If the stride was
        replaced, the convolution that had it keeps the dilation of the stage before, because it
        still sees that stage's map. All later convolutions have the new dilation.
        """
        if self.stride_on == "1x1":
            first_dilation = dilation  # the 3x3 follows the 1x1 that lost its stride
        make_block = self._block_maker(block, dilation)
        outplanes = planes * block.expansion
        shortcut = make_shortcut(self.shortcut, inplanes, outplanes, stride, self._norm_layer)
        first = make_block(inplanes, planes, stride, shortcut, dilation=first_dilation)
        stage = nn.Sequential(first)
        for _ in range(1, blocks):
            shortcut = make_shortcut(self.shortcut, outplanes, outplanes, 1, self._norm_layer)
            stage.append(make_block(outplanes, planes, 1, shortcut, dilation=dilation))
        return stage

    def _block_maker(
        self, block: type[BasicBlock | Bottleneck], dilation: int
    ) -> Callable[..., BasicBlock | Bottleneck]:
        """Return ``block`` with the arguments that all blocks in a stage share.

        Our own arguments are passed only if used, because torchvision's blocks lack them.
        """
        make_block = partial(
            block, groups=self.groups, base_width=self.base_width, norm_layer=self._norm_layer
        )
        if self.shortcut == "none":
            make_block = partial(make_block, residual=False)
        if self.stride_on == "1x1":
            make_block = partial(make_block, stride_on="1x1")
        if issubclass(block, DilatedBasicBlock):
            make_block = partial(make_block, inner_dilation=dilation)
        return make_block

    def _init_weights(self, zero_init_residual: bool) -> None:
        # He initialization (arXiv:1502.01852): a ReLU halves the mean square, so a variance of
        # 2/fan_in preserves the scale of the signal; 2/fan_out, used here, that of the gradient.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
                nn.init.constant_(module.weight, 1)
                nn.init.constant_(module.bias, 0)

        # The last norm of a block scales F: if its weight is zero, y = F(x) + x starts as y = x.
        if zero_init_residual:
            for name in self.stages:
                for block in getattr(self, name):
                    last_norm = block.bn3 if hasattr(block, "bn3") else block.bn2
                    if getattr(last_norm, "weight", None) is not None:
                        nn.init.constant_(last_norm.weight, 0)

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the feature map of each stage.

        Without dilation, strides are 4, 8, 16 and 32, or 1, 2, 4 and 8 with the small stem.

        Args:
            x: images ``(N, in_channels, H, W)``.
        """
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for name in self.stages:
            x = getattr(self, name)(x)
            maps.append(x)
        return maps

    # Not in forward because subclasses of torchvision's ResNet override one and call the other.
    # Shapes are for the default stem and width, without dilation.
    def _forward_impl(self, x: Tensor) -> Tensor:
        x = self.conv1(x)  # (N, 64, H/2, W/2)
        x = self.bn1(x)
        x = self.relu(x)
        x = self.maxpool(x)  # (N, 64, H/4, W/4)

        x = self.layer1(x)  # (N, 64 * expansion, H/4, W/4)
        x = self.layer2(x)  # (N, 128 * expansion, H/8, W/8)
        x = self.layer3(x)  # (N, 256 * expansion, H/16, W/16)
        x = self.layer4(x)  # (N, 512 * expansion, H/32, W/32)

        if self.include_top:
            x = self.avgpool(x)  # (N, 512 * expansion, 1, 1)
            x = torch.flatten(x, 1)  # (N, 512 * expansion)
            x = self.fc(x)  # (N, num_classes)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``(N, num_classes)`` of images ``(N, in_channels, H, W)``."""
        return self._forward_impl(x)
