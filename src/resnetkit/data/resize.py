"""Pixels -> pixels of another size, or turned."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


def shrunk(size: tuple[int, int], shorter: int | None) -> tuple[int, int]:
    """``size`` scaled down so that its shorter side is ``shorter``; as it is where it is smaller.

    >>> shrunk((500, 375), 128), shrunk((100, 100), 128)
    ((170, 128), (100, 100))
    """
    width, height = size
    if shorter is None or min(size) <= shorter:
        return size
    if width < height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(H, W, C)`` uint8 -> ``(h, w, C)`` uint8 for ``size = (w, h)``: bilinear, antialiased."""
    return resize_tensor(pixels, size)[0].permute(1, 2, 0).numpy()


def resize_tensor(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """`resize`, as a tensor ``(1, C, h, w)`` in channels_last order.

    The strides say channels_last also for the batch of one, so that neither PyTorch nor whoever
    takes the result has to turn the colours round in memory: that cost more than the resizing.
    """
    height, width, channels = pixels.shape
    image = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))  # (H, W, C)
    strides = (pixels.size, 1, width * channels, channels)
    batch = image.as_strided((1, channels, height, width), strides)
    return F.interpolate(batch, (size[1], size[0]), mode="bilinear", antialias=True)


INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


def can_resize(decoder: str, interpolation: object, squash: object) -> bool:
    """Whether files that are decoded so can be resized so."""
    usual = interpolation == "bilinear" and squash is False
    known = interpolation in INTERPOLATIONS and type(squash) is bool
    return known and (usual or decoder == "full")


def with_shorter_side(width: int, height: int, side: int) -> tuple[int, int]:
    """Width and height, scaled so that the shorter one is ``side``, as torchvision rounds them."""
    longer = int(side * max(height, width) / min(height, width))
    return (side, longer) if width <= height else (longer, side)


def resize_by_pillow(
    pixels: np.ndarray, side: int, interpolation: str, squash: bool = False
) -> np.ndarray:
    """Resize ``(H, W, C)`` uint8 to a shorter side of ``side`` pixels, or with ``squash`` to a
    square of it: the same bits as torchvision's ``Resize(side)`` or ``Resize((side, side))`` on a
    PIL image. Without ``squash``, only the middle of an image more than 20 times as long as wide
    is resized."""
    image = Image.fromarray(pixels)
    width, height = image.size
    longest = 20 * min(image.size)
    if not squash and max(image.size) > longest:
        left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
        image = image.crop((left, top, left + min(width, longest), top + min(height, longest)))
    target = (side, side) if squash else with_shorter_side(*image.size, side)
    resized = image.resize(target, Image.Resampling[interpolation.upper()])
    return np.require(resized, np.uint8, ["C", "W"])


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror as the EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=["C", "W"])
