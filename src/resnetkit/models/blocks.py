"""The residual block in its two forms, and the shortcuts that carry the signal past it.

A block computes ``y = F(x) + x`` (equation 1 of He et al., arXiv:1512.03385): ``F`` is a short
stack of convolutions, ``+ x`` the shortcut. If the best a block can do is nothing, it only has to
drive ``F`` to zero, which is easier than to learn the identity with nonlinear layers (section 3.1).
Shapes are ``(N, C, H, W)``: pictures, channels, height, width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[[int], nn.Module]


# Neither convolution has a bias: the norm behind it subtracts the mean and adds a bias of its own.
def conv3x3(
    in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """A 3x3 convolution that keeps H and W (stride 1) or halves them, rounding up (stride 2)."""
    # The padding is the reach of the kernel to each side: 1, or the dilation.
    return nn.Conv2d(in_planes, out_planes, 3, stride, dilation, dilation, groups, bias=False)


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution: the same linear map of the channels at every pixel."""
    return nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left): the block of ResNet-18 and 34.

    Maps ``(N, inplanes, H, W)`` to ``(N, planes, H/stride, W/stride)``.

    Args:
        inplanes, planes: channels that come in; channels inside. ``planes * expansion`` go out.
        stride: of the first convolution, and of the shortcut.
        downsample: the shortcut where shapes differ; None is the identity.
        groups, base_width: only 1 and 64 here, else ValueError; they belong to the bottleneck.
        dilation: spacing of the kernels' taps, where a stride was replaced by it.
        norm_layer: makes the normalisation from a number of channels; BatchNorm2d by default.
        inner_dilation: dilation behind the convolution that carries the stride, if another.
        residual: False leaves the shortcut out: a block of the paper's plain nets.
    """

    expansion: int = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
        *,
        inner_dilation: int | None = None,
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_option("groups of a BasicBlock", groups, (1,))
        check_option("base_width of a BasicBlock", base_width, (64,))
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = conv3x3(inplanes, planes, stride, dilation=dilation)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)  # overwrites its input, which nothing needs again
        self.conv2 = conv3x3(planes, planes, dilation=inner_dilation or dilation)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))  # (N, planes, H/stride, W/stride)
        out = self.bn2(self.conv2(out))
        identity = x if self.downsample is None else self.downsample(x)
        if self.residual:
            out += identity  # before the ReLU, so that F can subtract as well as add (figure 2)
        return self.relu(out)  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut (figure 5, right): the block of ResNet-50 and deeper.

    Maps ``(N, inplanes, H, W)`` to ``(N, 4 * planes, H/stride, W/stride)``. The 3x3 works on few
    channels, so that it costs about what a BasicBlock with a quarter of its output does.

    Args (those of `BasicBlock`, and):
        groups, base_width: the 3x3 has ``planes * base_width / 64 * groups`` channels in ``groups``
            groups: (32, 4) is ResNeXt 32x4d (arXiv:1611.05431), (1, 128) Wide ResNet-50-2.
        stride_on: ``"3x3"`` is V1.5, the form of all published weights; ``"1x1"`` is V1, the
            paper's, which drops three of four pixels before the 3x3 has seen them.
    """

    expansion: int = 4

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: NormLayer | None = None,
        *,
        inner_dilation: int | None = None,
        residual: bool = True,
        stride_on: str = "3x3",
    ) -> None:
        super().__init__()
        check_option("stride_on", stride_on, ("3x3", "1x1"))
        norm_layer = norm_layer or nn.BatchNorm2d
        middle = int(planes * (base_width / 64.0)) * groups  # channels of the 3x3
        on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
        if stride_on == "1x1":  # then the 3x3 stands behind the stride
            dilation = inner_dilation or dilation
        self.conv1 = conv1x1(inplanes, middle, on_1x1)
        self.bn1 = norm_layer(middle)
        self.conv2 = conv3x3(middle, middle, on_3x3, groups, dilation)
        self.bn2 = norm_layer(middle)
        self.conv3 = conv1x1(middle, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))  # (N, middle, H, W)
        out = self.relu(self.bn2(self.conv2(out)))  # (N, middle, H/stride, W/stride)
        out = self.bn3(self.conv3(out))  # (N, 4 * planes, H/stride, W/stride)
        identity = x if self.downsample is None else self.downsample(x)
        if self.residual:
            out += identity
        return self.relu(out)  # type: ignore[no-any-return]


class PadShortcut(nn.Module):
    """Option A (section 3.3): the identity, subsampled, with zeros for the new channels: no
    parameters. The paper's CIFAR nets use it. Where the zeros stand it does not say; half of them
    before and half behind the old channels is the common code's choice."""

    def __init__(self, inplanes: int, outplanes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (outplanes - inplanes) // 2
        self.behind = outplanes - inplanes - self.before

    def forward(self, x: Tensor) -> Tensor:
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind))


def make_shortcut(
    option: str, inplanes: int, outplanes: int, stride: int, norm_layer: NormLayer
) -> nn.Module | None:
    """The ``downsample`` of a block: (N, inplanes, H, W) -> (N, outplanes, H/stride, W/stride).

    Where shapes differ, A pads with zeros and B projects (section 3.3); C projects everywhere
    (section 4.1, table 3); ``"none"`` is the plain net. None stands for the identity, or nothing.
    """
    same_shape = stride == 1 and inplanes == outplanes
    if option == "none" or (same_shape and option != "C"):
        return None
    if option == "A":
        return PadShortcut(inplanes, outplanes, stride)
    return nn.Sequential(conv1x1(inplanes, outplanes, stride), norm_layer(outplanes))


def check_option(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is one of {', '.join(map(repr, allowed))}; got {value!r}")
