"""Pixels -> pixels of a different size or orientation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
"""The interpolations that `resize_by_pillow` supports, by Pillow's names."""

MAX_ASPECT = 20
"""If an image is more than this many times as long as wide, only its middle is resized."""


def shrunk(size: tuple[int, int], shorter: int | None) -> tuple[int, int]:
    """Return ``size`` reduced so that its shorter side is ``shorter``; never enlarged.

    >>> shrunk((500, 375), 128), shrunk((100, 100), 128)
    ((170, 128), (100, 100))
    """
    width, height = size
    if shorter is None or min(size) <= shorter:
        return size
    if width < height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def with_shorter_side(width: int, height: int, side: int) -> tuple[int, int]:
    """Return the width and height for a shorter side of ``side``, rounded as in torchvision."""
    longer = int(side * max(height, width) / min(height, width))
    return (side, longer) if width <= height else (longer, side)


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize ``(H, W, C)`` uint8 to ``(h, w, C)``; ``size`` is (w, h). Bilinear, antialiased."""
    return resize_tensor(pixels, size)[0].permute(1, 2, 0).numpy()


def resize_tensor(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Resize like `resize`, but return a ``(1, C, h, w)`` tensor in channels_last order.

    The input's strides are channels_last even for a batch of one, so that neither PyTorch nor the
    caller has to reorder the channels in memory, which took longer than the resizing itself.
    """
    import torch

    height, width, channels = pixels.shape
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # (H, W, C)
    strides = (pixels.size, 1, width * channels, channels)
    batch = image.as_strided((1, channels, height, width), strides)
    return torch.nn.functional.interpolate(
        batch, (size[1], size[0]), mode="bilinear", antialias=True
    )


def can_resize(decoder: str, interpolation: object, squash: object) -> bool:
    """Return whether a decoder supports an interpolation, with or without squashing."""
    default = interpolation == "bilinear" and squash is False
    valid = interpolation in INTERPOLATIONS and type(squash) is bool
    return valid and (default or decoder == "full")


def resize_by_pillow(
    pixels: np.ndarray, side: int, *, interpolation: str, squash: bool = False
) -> np.ndarray:
    """Resize ``(H, W, C)`` uint8 to a shorter side of ``side`` pixels, with antialiasing.

    The result has the same bits as torchvision's ``Resize(side)`` on a PIL image with Pillow 12.
    With ``squash``, it is a square, as with ``Resize((side, side))``. Without it, only the middle
    of an image more than `MAX_ASPECT` times as long as wide is resized.

    The width is always resized first. Otherwise, Pillow 13 would resize the height of tall images
    first, which changes a tenth of the values by one.
    """
    height, width, channels = pixels.shape
    if not squash:
        longest = MAX_ASPECT * min(width, height)
        left = max(0, (width - longest) // 2)
        top = max(0, (height - longest) // 2)
        pixels = pixels[top : top + longest, left : left + longest]
    image = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    target = (side, side) if squash else with_shorter_side(*image.size, side)
    resampling = Image.Resampling[interpolation.upper()]
    if resampling is Image.Resampling.NEAREST or target == image.size:
        resized = image.resize(target, resampling)
    else:
        # Transparent pixels have no color, so colors are multiplied by the opacity for resizing.
        first = image.convert("RGBa") if channels == 4 else image
        for size in ((target[0], first.height), target):
            first = first.resize(size, resampling)
        resized = first.convert("RGBA") if channels == 4 else first
    return np.require(resized, np.uint8, ["C", "W"]).reshape(target[1], target[0], channels)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate and mirror pixels as the EXIF orientation specifies."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=["C", "W"])
