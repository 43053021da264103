"""The residual block in its two forms, and the shortcuts that carry the signal past it.

A block computes ``y = F(x) + x`` (equation 1 of He et al., arXiv:1512.03385): ``F`` is a short
stack of convolutions, and ``+ x`` is the shortcut. If a block is best left as the identity, it only
has to drive ``F`` to zero, which is easier than learning the identity with nonlinear layers
(section 3.1).
No convolution has a bias: the norm after it subtracts the mean and adds its own bias. Shapes are
``(N, C, H, W)``: images, channels, height, width.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

NormLayer = Callable[[int], nn.Module]


def conv3x3(
    in_planes: int, out_planes: int, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    """Return a 3x3 convolution: stride 1 keeps H and W, stride 2 halves them, rounding up."""
    # The padding equals the reach of the kernel on each side, which is the dilation.
    return nn.Conv2d(
        in_planes,
        out_planes,
        kernel_size=3,
        stride=stride,
        padding=dilation,
        dilation=dilation,
        groups=groups,
        bias=False,
    )


def conv1x1(in_planes: int, out_planes: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1x1 convolution: the same linear map of the channels at every pixel."""
    return nn.Conv2d(in_planes, out_planes, 1, stride=stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left): the block of ResNet-18 and 34.

    Maps ``(N, inplanes, H, W)`` to ``(N, planes, H/stride, W/stride)``.

    Args:
        inplanes: input channels.
        planes: channels inside the block; it outputs ``planes * expansion``.
        stride: stride of the first convolution and of the shortcut.
        downsample: the shortcut to use if shapes differ; None means the identity.
        groups, base_width: only 1 and 64 are valid here; they belong to `Bottleneck`.
        dilation: only 1 is valid here; see `DilatedBasicBlock`.
        norm_layer: makes a norm for a given number of channels; BatchNorm2d by default.
        residual: False omits the shortcut, as in the paper's plain nets.

    Raises:
        ValueError: groups or base_width is not valid.
        NotImplementedError: dilation is not 1.
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
        residual: bool = True,
    ) -> None:
        super().__init__()
        check_option("groups of a BasicBlock", groups, (1,))
        check_option("base_width of a BasicBlock", base_width, (64,))
        if dilation != 1:
            raise NotImplementedError("BasicBlock is not dilated; use DilatedBasicBlock")
        norm_layer = norm_layer or nn.BatchNorm2d
        self.conv1 = conv3x3(inplanes, planes, stride)
        self.bn1 = norm_layer(planes)
        self.relu = nn.ReLU(inplace=True)  # overwrites its input, which is not needed again
        self.conv2 = conv3x3(planes, planes)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample
        self.stride = stride
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(F(x) + x)``; a plain block omits ``+ x``."""
        identity = x

        out: Tensor = self.conv1(x)  # (N, planes, H/stride, W/stride)
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)
        out = self.bn2(out)

        if self.downsample is not None:
            identity = self.downsample(x)
        if self.residual:
            out += identity  # before the ReLU, so that F can subtract as well as add (figure 2)
        out = self.relu(out)
        return out


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut (figure 5, right): the block of ResNet-50 and deeper.

    Maps ``(N, inplanes, H, W)`` to ``(N, 4 * planes, H/stride, W/stride)``. The 3x3 works on few
    channels, so the block costs about as much as a BasicBlock with a quarter of its output
    channels.

    Args:
        inplanes, planes, stride, downsample, norm_layer, residual: as in `BasicBlock`.
        groups, base_width: the 3x3 has ``planes * base_width / 64 * groups`` channels in ``groups``
            groups: (32, 4) is ResNeXt 32x4d (arXiv:1611.05431), (1, 128) is Wide ResNet-50-2.
        dilation: spacing of the 3x3 kernel's taps.
        stride_on: ``"3x3"`` (V1.5, used by all published weights) or ``"1x1"`` (V1, the paper's),
            which drops three of every four pixels before the 3x3 sees them. NVIDIA's ResNet-50 V1.5
            is about 0.5 points more accurate than V1.

    Raises:
        ValueError: stride_on is neither ``"3x3"`` nor ``"1x1"``.
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
        residual: bool = True,
        stride_on: str = "3x3",
    ) -> None:
        super().__init__()
        check_option("stride_on", stride_on, ("3x3", "1x1"))
        norm_layer = norm_layer or nn.BatchNorm2d
        width = int(planes * (base_width / 64.0)) * groups  # channels of the 3x3
        check_positive("the number of channels of a 3x3", width)
        stride_1x1 = stride if stride_on == "1x1" else 1
        stride_3x3 = stride if stride_on == "3x3" else 1
        self.conv1 = conv1x1(inplanes, width, stride_1x1)
        self.bn1 = norm_layer(width)
        self.conv2 = conv3x3(width, width, stride_3x3, groups=groups, dilation=dilation)
        self.bn2 = norm_layer(width)
        self.conv3 = conv1x1(width, planes * self.expansion)
        self.bn3 = norm_layer(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample
        self.stride = stride
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Return ``relu(F(x) + x)``; a plain block omits ``+ x``."""
        identity = x

        out: Tensor = self.conv1(x)  # (N, width, H, W); H/stride, W/stride if stride_on="1x1"
        out = self.bn1(out)
        out = self.relu(out)

        out = self.conv2(out)  # (N, width, H/stride, W/stride)
        out = self.bn2(out)
        out = self.relu(out)

        out = self.conv3(out)  # (N, 4 * planes, H/stride, W/stride)
        out = self.bn3(out)

        if self.downsample is not None:
            identity = self.downsample(x)
        if self.residual:
            out += identity
        out = self.relu(out)
        return out


class PadShortcut(nn.Module):
    """A shortcut without parameters: the subsampled identity, with zeros for the new channels.

    This is option A (section 3.3), which the paper's CIFAR nets use. The paper does not say where
    the zeros go; the usual choice is half before and half after the old channels.
    """

    def __init__(self, inplanes: int, outplanes: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.pad_front = (outplanes - inplanes) // 2
        self.pad_back = outplanes - inplanes - self.pad_front

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, inplanes, H, W)`` to ``(N, outplanes, H/stride, W/stride)``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.pad_front, self.pad_back))


def make_shortcut(
    option: str, inplanes: int, outplanes: int, stride: int, norm_layer: NormLayer
) -> nn.Module | None:
    """Return a block's ``downsample``: (N, inplanes, H, W) -> (N, outplanes, H/stride, W/stride).

    If shapes differ, A pads with zeros and B projects (section 3.3). C always projects (section
    4.1, table 3). ``"none"`` is for plain nets. If None is returned, the block adds x itself, or
    nothing if its ``residual`` is False.
    """
    same_shape = stride == 1 and inplanes == outplanes
    if option == "none" or (same_shape and option != "C"):
        return None
    if option == "A":
        return PadShortcut(inplanes, outplanes, stride)
    return nn.Sequential(conv1x1(inplanes, outplanes, stride), norm_layer(outplanes))


def check_option(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise ValueError unless ``value`` is one of the allowed values."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def check_positive(name: str, value: int) -> None:
    """Raise ValueError unless ``value`` is 1 or more."""
    if value < 1:
        raise ValueError(f"{name} must be 1 or more; got {value!r}")


# Dilation: only for networks whose strides are replaced. Skip it on a first reading.


class DilatedBasicBlock(BasicBlock):
    """A `BasicBlock` with dilated kernels: same weights, wider field of view.

    Replaces `BasicBlock` in a ResNet whose strides are replaced by dilation (arXiv:1511.07122).

    Args:
        inplanes, planes, stride, downsample: as in `BasicBlock`.
        groups, base_width, norm_layer, residual: as in `BasicBlock`.
        dilation: spacing of the taps of the first convolution, which carries the stride.
        inner_dilation: spacing of the taps of the second convolution; the same by default.
    """

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
        residual: bool = True,
        inner_dilation: int | None = None,
    ) -> None:
        super().__init__(
            inplanes,
            planes,
            stride,
            downsample,
            groups=groups,
            base_width=base_width,
            norm_layer=norm_layer,
            residual=residual,
        )
        # Changed in place: the same seed must give the same weights with and without dilation.
        set_dilation(self.conv1, dilation)
        set_dilation(self.conv2, inner_dilation or dilation)


def dilatable(block: type[BasicBlock | Bottleneck]) -> type[BasicBlock | Bottleneck]:
    """Return the block to use in a network whose strides are replaced by dilation.

    Raises:
        NotImplementedError: ``block`` is a subclass of `BasicBlock` whose kernels do not dilate.
    """
    if block is BasicBlock:
        return DilatedBasicBlock
    if issubclass(block, BasicBlock) and not issubclass(block, DilatedBasicBlock):
        raise NotImplementedError(
            f"{block.__name__} must be a DilatedBasicBlock to replace strides"
        )
    return block


def set_dilation(conv: nn.Conv2d, dilation: int) -> None:
    """Set the dilation of a 3x3 convolution, and the padding that keeps H and W."""
    conv.dilation = (dilation, dilation)
    conv.padding = (dilation, dilation)
