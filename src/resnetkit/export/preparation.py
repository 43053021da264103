"""Prepare an image as the input to an exported model, without PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from ..data.crops import center_crop
from ..data.decode import decode, pixels_from_memory
from ..data.preprocessing import Preprocessing
from ..data.resize import resize_by_pillow
from .artefact import Manifest

Source = Path | bytes | Image | np.ndarray
"""A file, its bytes, a PIL image, or pixels."""


def prepare(manifest: Manifest, source: Source) -> np.ndarray:
    """Return an image as the input to an exported model, ``(H, W, C)`` uint8.

    Raises:
        ImageError: the file cannot be read as an image.
    """
    pixels = decode_for(manifest, source)
    return to_crop(pixels, manifest.preprocessing) if manifest.entrance == "crop" else pixels


def decode_for(manifest: Manifest, source: Source) -> np.ndarray:
    """Return an image at full size, upright: RGB, or RGBA if the network sees transparency.

    Raises:
        ImageError: the file cannot be read as an image.
    """
    preprocessing = manifest.preprocessing
    channels = 4 if preprocessing.channels == 4 else 3
    options: Any = {"channels": channels, "value_range": preprocessing.value_range}
    if isinstance(source, Path | bytes):
        return decode(source, **options)
    return pixels_from_memory(source, **options)


def to_crop(pixels: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Resize with Pillow and crop the middle: ``(S, S, C)`` uint8 with the network's channels.

    The crop is black where the resized image does not cover it.

    Args:
        pixels: the result of `decode_for`.
        preprocessing: the sizes and the filter.
    """
    if preprocessing.channels == 1:
        pixels = to_gray(pixels)
    pixels = resize_by_pillow(
        pixels,
        preprocessing.resize_size,
        interpolation=preprocessing.interpolation,
        squash=preprocessing.squash,
    )
    return center_crop(pixels, preprocessing.resize_size, preprocessing.crop_size)


def to_gray(pixels: np.ndarray) -> np.ndarray:
    """Return ``(H, W, 1)`` uint8: Pillow's mode ``L``, in its integer arithmetic."""
    weighted = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
    return ((weighted + 32768) >> 16).astype(np.uint8)[..., None]
