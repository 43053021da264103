"""The exported computation: images -> preprocessing -> network -> logits and probabilities.

Every runtime that has antialiased resizing computes it differently, and the web runtimes have none.
So the graph resizes with two matrix products: one for the width, one for the height. It computes
the matrices from the size of the images. They are the same as Pillow's, because
torchvision's published accuracies were measured with Pillow, but have only the rows for the center
crop.

Pillow computes with integers. The graph gets the same levels from float32, which every runtime has
and which holds integers up to 2^24: weights are multiples of 2^-22, and each is split into two
integers whose products with levels can be summed without rounding. With the filter ``bilinear``,
crops equal those from Pillow 12; the weights of the other filters are rounded from float32 instead
of float64.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..data.preprocessing import Preprocessing
from ..data.resize import MAX_ASPECT
from ..inference.engines import network_without_head


class ExportedModel(nn.Module):
    """A network with its preprocessing.

    Args:
        network: maps normalized images to logits; in eval mode.
        preprocessing: how images become the network's input.
        resizes: whether images of any size are resized and cropped. If False, they are already
            crops.
        stages: whether to return the intermediate values too.
    """

    channel_mean: Tensor  # (1, C, 1, 1); not "mean", a name that older exporters give to a result
    channel_std: Tensor

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        *,
        resizes: bool,
        stages: bool = False,
    ) -> None:
        super().__init__()
        self.body = network_without_head(network)
        self.head: nn.Module = network.fc  # type: ignore[assignment]
        self.preprocessing = preprocessing
        self.resizes = resizes
        self.stages = stages
        shape = (1, preprocessing.channels, 1, 1)
        self.register_buffer("channel_mean", torch.tensor(preprocessing.mean).reshape(shape))
        self.register_buffer("channel_std", torch.tensor(preprocessing.std).reshape(shape))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return `artefact.OUTPUTS`, and `artefact.STAGES` if they were requested.

        Args:
            image: ``(N, H, W, 3)`` uint8 RGB, upright; four channels if the network sees
                transparency. Crops are ``(N, S, S, C)`` with the network's own channels.
        """
        pixels = image.permute(0, 3, 1, 2)
        if self.resizes:
            if self.preprocessing.channels == 1:
                pixels = _to_gray(pixels)
            crop = resize_and_crop(pixels.float(), self.preprocessing)
        else:
            crop = pixels.float()
        normalized = (crop / 255 - self.channel_mean) / self.channel_std
        features = self.body(normalized)
        logits = self.head(features)
        outputs = (logits, logits.softmax(1))
        return (*outputs, crop, normalized, features) if self.stages else outputs


def resize_and_crop(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Resize and crop as `Preprocessing.crop` does after decoding with ``full``.

    Pillow resizes the width first, and rounds to whole levels after each of the two passes.

    Args:
        pixels: ``(N, C, H, W)`` float32 with values 0, 1, ..., 255.
        preprocessing: the sizes and the filter.

    Returns:
        ``(N, C, S, S)`` float32 with values 0, 1, ..., 255.
    """
    height, width = pixels.shape[2:]
    rows, columns = crop_weights(height, width, preprocessing)
    if pixels.shape[1] < 4:
        return _apply(rows, columns, pixels)
    colors, alpha = pixels[:, :3], pixels[:, 3:]
    opacity = torch.where(_keeps_size(height, width, preprocessing), 255.0, alpha)
    parts = torch.cat([_multiplied(colors, opacity), opacity, alpha], 1)
    crop = _apply(rows, columns, parts)
    return torch.cat([_divided(crop[:, :3], crop[:, 3:4]), crop[:, 4:]], 1)


def _keeps_size(height: int, width: int, preprocessing: Preprocessing) -> Tensor:
    """Return whether an image already has the size to resize to; Pillow then only copies it."""
    sides = torch.stack([torch.full((), side, dtype=torch.int64) for side in (height, width)])
    is_same = sides == preprocessing.resize_size
    return is_same.all(0) if preprocessing.squash else sides.amin(0) == preprocessing.resize_size


def _multiplied(colors: Tensor, opacity: Tensor) -> Tensor:
    """Return colors times opacity / 255, rounded as in Pillow's mode ``RGBa``.

    Pillow resizes images with transparency in this mode, so that hidden colors do not show.
    """
    product = (colors * opacity).int() + 128
    return ((product // 256 + product) // 256).float()


def _divided(colors: Tensor, opacity: Tensor) -> Tensor:
    """Undo `_multiplied`; leave fully transparent pixels unchanged."""
    whole = (255 * colors).int() // opacity.int().clamp(min=1)
    return torch.where(opacity == 0, colors, whole.float().clamp(max=255))


def _apply(rows: Tensor, columns: Tensor, pixels: Tensor) -> Tensor:
    high, low = _split(columns.T)
    narrow = _combine(pixels @ high, pixels @ low)  # (N, C, H, S)
    high, low = _split(rows)
    return _combine(high @ narrow, low @ narrow)  # (N, C, S, S)


def _split(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return integers with weight = 1024 high + low."""
    high = (weights / 1024).floor()
    return high, weights - 1024 * high


def _combine(high: Tensor, low: Tensor) -> Tensor:
    """Return (1024 high + low) / 2^22, rounded half up to the levels of an 8-bit image."""
    carry = ((low + 2**21) / 1024).floor()
    return ((high + carry) / 4096).floor().clamp(0, 255)


def crop_weights(height: int, width: int, preprocessing: Preprocessing) -> tuple[Tensor, Tensor]:
    """Return the matrices ``(S, H)`` and ``(S, W)`` that resize and crop an image.

    Each row has the weights of the pixels that contribute to one row or column of the crop, as
    multiples of 2^-22. It is zero where the crop extends beyond the resized image.
    """
    # Sizes are tensors, because an exported graph computes with them.
    sizes = [torch.full((), side, dtype=torch.int64) for side in (height, width)]
    shorter = torch.minimum(*sizes)
    resized = torch.full((), preprocessing.resize_size, dtype=torch.int64)
    matrices = []
    for side, size in zip((height, width), sizes, strict=True):
        if preprocessing.squash:
            shown, target = size, resized
        else:
            shown = torch.minimum(size, MAX_ASPECT * shorter)
            target = resized * shown // shorter  # rounded down, as in torchvision
        matrices.append(
            _axis_weights(
                side,
                shown,
                first=(size - shown) // 2,
                target=target,
                crop=preprocessing.crop_size,
                interpolation=preprocessing.interpolation,
            )
        )
    return matrices[0], matrices[1]


def _axis_weights(
    side: int, shown: Tensor, *, first: Tensor, target: Tensor, crop: int, interpolation: str
) -> Tensor:
    """Return ``(crop, side)``: the weights of one axis as multiples of 2^-22, integers in float32.

    Args:
        side: length of the image on this axis, in pixels.
        shown: number of these pixels that are resized.
        first: index of the first pixel that is resized.
        target: number of pixels after resizing.
        crop: length of the crop, in pixels.
        interpolation: Pillow's name for the filter.
    """
    spare = target - crop
    half = spare // 2
    odd = spare - 2 * half  # some runtimes lack %
    # The crop begins at round(spare / 2), where Python rounds half to even. If the crop is larger
    # than the image, the image is in the middle of it.
    offset = torch.where(spare < 0, -((-spare) // 2), half + odd * (half - 2 * (half // 2)))
    output = (torch.arange(crop) + offset).unsqueeze(1)  # (crop, 1)
    pixel = (torch.arange(side) - first).unsqueeze(0)  # (1, side)
    # The distance between the centers of an output and an input pixel is a fraction of integers,
    # so nothing is rounded before the division. Pillow widens the filter to shrink an image.
    numerator = (2 * pixel + 1) * target - (2 * output + 1) * shown
    denominator = 2 * torch.maximum(shown, target)
    is_inside = (pixel >= 0) & (pixel < shown) & (output >= 0) & (output < target)
    if interpolation == "bilinear":
        triangle = (denominator - numerator.abs()).clamp(min=0)
        return _exact_weights(torch.where(is_inside, triangle, torch.zeros_like(triangle)))
    weights = _filter(numerator.float() / denominator.float(), interpolation)
    weights = torch.where(is_inside, weights, torch.zeros(()))
    shares = weights / weights.sum(1, keepdim=True).abs().clamp(min=1e-6)
    return (shares * 2**22 + 0.5).floor()


def _exact_weights(parts: Tensor) -> Tensor:
    """Divide whole numbers by the sum of their row, and round to multiples of 2^-22.

    In float32, some quotients are off by one, which shows in images whose levels are halfway
    between two integers. The division's remainder, computed in 32-bit integers, corrects them.
    """
    total = parts.sum(1, keepdim=True)
    quotient = (parts.float() / total.clamp(min=1).float() * 2**22 + 0.5).floor()
    high = (quotient / 2048).floor()
    low = quotient - 2048 * high
    parts, total = parts.int(), total.int()
    # 2^22 parts - quotient * total, in an order that stays within 32 bits below the limit
    remainder = (2048 * parts - high.int() * total) * 2048 - low.int() * total
    correction = (2 * remainder >= total).float() - (2 * remainder < -total).float()
    is_exact = (total > 0) & (total < 2**19)  # larger only if a side exceeds 9,000 pixels
    return quotient + torch.where(is_exact, correction, torch.zeros(()))


def _filter(distance: Tensor, interpolation: str) -> Tensor:
    """Return Pillow's curved filters at a distance in pixels of the smaller of the two images."""
    x = distance.abs()
    if interpolation == "hamming":
        window = 0.54 + 0.46 * torch.cos(math.pi * x)
        return torch.where(x < 1, _sinc(x) * window, torch.zeros(()))
    if interpolation == "bicubic":  # Keys, with a = -0.5
        near = (1.5 * x - 2.5) * x * x + 1
        far = ((-0.5 * x + 2.5) * x - 4) * x + 2
        return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
    assert interpolation == "lanczos"
    return torch.where(x < 3, _sinc(x) * _sinc(x / 3), torch.zeros(()))


def _sinc(x: Tensor) -> Tensor:
    angle = math.pi * x
    return torch.where(angle > 0, torch.sin(angle) / angle.clamp(min=1e-6), torch.ones(()))


def _to_gray(pixels: Tensor) -> Tensor:
    """Return ``(N, 1, H, W)``: Pillow's mode ``L``, in its integer arithmetic."""
    levels = pixels.int()
    weighted = 19595 * levels[:, 0:1] + 38470 * levels[:, 1:2] + 7471 * levels[:, 2:3]
    return (weighted + 32768) // 65536
