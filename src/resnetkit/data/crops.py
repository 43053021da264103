"""Working pixels -> the squares that a network sees."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from .resize import MAX_ASPECT, resize, with_shorter_side

if TYPE_CHECKING:
    from torch import Tensor


def center_crop(pixels: np.ndarray, resize_size: int, crop_size: int) -> np.ndarray:
    """Resize the shorter side to ``resize_size`` and crop the central square.

    Args:
        pixels: ``(H, W, C)`` uint8.
        resize_size: the shorter side after resizing, in pixels.
        crop_size: side of the square, in pixels.

    Returns:
        ``(crop_size, crop_size, C)`` uint8; black where the resized image is smaller.
    """
    pixels = _resize_and_pad(pixels, resize_size, crop_size)
    height, width = pixels.shape[:2]
    top = round((height - crop_size) / 2.0)
    left = round((width - crop_size) / 2.0)
    return square(pixels, top, left=left, size=crop_size)


def ten_crops(pixels: np.ndarray, resize_size: int, crop_size: int) -> list[np.ndarray]:
    """Resize like `center_crop`, and crop five squares each from the image and its mirror image.

    Returns:
        Top left, top right, bottom left, bottom right and center; then the same for the mirror
        image. Each is ``(crop_size, crop_size, C)`` uint8.
    """
    pixels = _resize_and_pad(pixels, resize_size, crop_size)
    bottom = pixels.shape[0] - crop_size
    right = pixels.shape[1] - crop_size
    center = (round(bottom / 2.0), round(right / 2.0))
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), center)
    mirror = np.ascontiguousarray(pixels[:, ::-1])
    return [
        square(image, top, left=left, size=crop_size)
        for image in (pixels, mirror)
        for top, left in corners
    ]


def _resize_and_pad(pixels: np.ndarray, resize_size: int, crop_size: int) -> np.ndarray:
    """Resize the shorter side to ``resize_size``; pad with black if a crop would not fit."""
    height, width = pixels.shape[:2]
    if max(height, width) > MAX_ASPECT * min(height, width):  # resize only what the crop can show
        window = 2 * math.ceil(min(height, width) * max(1.0, crop_size / resize_size))
        top = max(0, (height - window) // 2)
        left = max(0, (width - window) // 2)
        pixels = pixels[top : top + window, left : left + window]
        height, width = pixels.shape[:2]
    target = with_shorter_side(width, height, resize_size)
    if target != (width, height):
        pixels = resize(pixels, target)
    width, height = target
    if min(target) < crop_size:
        missing_x = max(0, crop_size - width)
        missing_y = max(0, crop_size - height)
        padding = (
            (missing_y // 2, (missing_y + 1) // 2),
            (missing_x // 2, (missing_x + 1) // 2),
            (0, 0),
        )
        pixels = np.pad(pixels, padding)
    return pixels


def square(pixels: np.ndarray, top: int, *, left: int, size: int) -> np.ndarray:
    """Crop a square from ``(H, W, C)`` pixels, and return it as ``(size, size, C)``."""
    return pixels[top : top + size, left : left + size]


def to_tensor(pixels: np.ndarray) -> Tensor:
    """Return ``(H, W, C)`` uint8 pixels as ``(C, H, W)``, without copying them."""
    import torch

    return torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)
