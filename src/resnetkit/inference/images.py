"""Whatever stands for a picture -> its pixels."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import decode
from ..data.transforms import Preprocessing
from ..errors import ImageError


class Unreadable(NamedTuple):
    """A source that gives no picture, such as an empty folder, and what is wrong with it."""

    source: str
    error: str


ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor | Unreadable
"""A path; the bytes of a file; a PIL picture; pixels as an array ``(H, W, 3)``, ``(H, W)`` in grey
or ``(H, W, 4)`` with transparency, or as a tensor ``(C, H, W)``: uint8 in 0..255 or floats in
0..1."""


def is_image(value: object) -> TypeGuard[ImageLike]:
    """Whether it is one picture; arrays and tensors of four dimensions are several."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim < 4
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Unreadable)
    return isinstance(value, kinds) or not hasattr(value, "__iter__")


def name_of(image: ImageLike) -> str:
    """The path, or the kind of picture."""
    if isinstance(image, Unreadable):
        return image.source
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return f"<{type(image).__name__}>"


def working_pixels(image: ImageLike, preprocessing: Preprocessing) -> np.ndarray:
    """``(H, W, C)`` uint8 in the working size: the same for a file and for its pixels.

    Raises:
        PictureError: it is no picture, or cannot be read.
    """
    return _pixels(image, preprocessing)


def full_pixels(image: ImageLike) -> np.ndarray:
    """``(H, W, 3)`` uint8, every pixel, to look at.

    Raises:
        PictureError: it is no picture, or cannot be read.
    """
    return _pixels(image, None)


def thumbnail(image: ImageLike, side: int = 160) -> bytes:
    """A JPEG of at most ``side`` pixels, a few kilobytes.

    Raises:
        PictureError: it is no picture, or cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):  # scaled while it is decoded
        small = Image.fromarray(decode.decode(bytes(image), side, value_range="image"))
    else:
        small = Image.fromarray(full_pixels(image))
    small.thumbnail((side, side))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=90)
    return packed.getvalue()


def _pixels(image: Any, preprocessing: Preprocessing | None) -> np.ndarray:
    if isinstance(image, Unreadable):
        raise ImageError(image.error)
    try:
        if isinstance(image, bytes | bytearray | memoryview):
            image = bytes(image)
        elif isinstance(image, str | os.PathLike):
            image = Path(image)
        elif isinstance(image, Tensor):
            image = _uint8(_channels_last(image))
        elif isinstance(image, np.ndarray):
            image = _uint8(image)
        if isinstance(image, bytes | Path | Image.Image | np.ndarray):
            if preprocessing is not None:
                return preprocessing.pixels(image)
            if isinstance(image, bytes | Path):
                return decode.decode(image, None, value_range="image")
            return decode.pixels_from_memory(image, value_range="image")
    except ImageError:
        raise
    except (OSError, TypeError, ValueError) as error:  # a path with NUL, a PIL picture cut short
        raise ImageError(f"{name_of(image)!r}: cannot be read ({error})") from error
    raise ImageError(
        f"expected a path, bytes, a PIL picture, an array or a tensor; got {type(image).__name__}"
    )


def _channels_last(image: Tensor) -> np.ndarray:
    """``(C, H, W)`` -> ``(H, W, C)``; one channel -> ``(H, W)``."""
    if image.ndim == 3 and image.shape[0] not in (1, 3, 4):
        raise ImageError(
            "a tensor is (3, H, W), (1, H, W) in grey or (4, H, W) with transparency; got "
            f"{tuple(image.shape)}"
        )
    image = image.detach().cpu()
    image = image.permute(1, 2, 0) if image.ndim == 3 else image
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy()


def _uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0:
        raise ImageError(f"a picture without pixels: {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ImageError(
                f"pixels as floats are in 0..1; got {low:.3g} to {high:.3g}. Give the picture as "
                "it is before it is normalised, or as uint8 in 0..255"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels)
