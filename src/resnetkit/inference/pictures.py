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
from ..errors import PictureError


class Unreadable(NamedTuple):
    """A source that gives no picture, such as an empty folder, and what is wrong with it."""

    source: str
    error: str


Picture = str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor | Unreadable
"""A path; the bytes of a file; a PIL picture; pixels as an array ``(H, W, 3)``, ``(H, W)`` in grey
or ``(H, W, 4)`` with transparency, or as a tensor ``(C, H, W)``: uint8 in 0..255 or floats in
0..1."""


def is_picture(value: object) -> TypeGuard[Picture]:
    """Whether it is one picture; arrays and tensors of four dimensions are several."""
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim < 4
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Unreadable)
    return isinstance(value, kinds) or not hasattr(value, "__iter__")


def name_of(picture: Picture) -> str:
    """The path, or the kind of picture."""
    if isinstance(picture, Unreadable):
        return picture.source
    if isinstance(picture, str | os.PathLike):
        return os.fspath(picture)
    return f"<{type(picture).__name__}>"


def working_pixels(picture: Picture, preprocessing: Preprocessing) -> np.ndarray:
    """``(H, W, C)`` uint8 in the working size: the same for a file and for its pixels.

    Raises:
        PictureError: it is no picture, or cannot be read.
    """
    return _pixels(picture, preprocessing)


def full_pixels(picture: Picture) -> np.ndarray:
    """``(H, W, 3)`` uint8, every pixel, to look at.

    Raises:
        PictureError: it is no picture, or cannot be read.
    """
    return _pixels(picture, None)


def thumbnail(picture: Picture, side: int = 160) -> bytes:
    """A JPEG of at most ``side`` pixels, a few kilobytes.

    Raises:
        PictureError: it is no picture, or cannot be read.
    """
    if isinstance(picture, bytes | bytearray | memoryview):  # scaled while it is decoded
        small = Image.fromarray(decode.decode(bytes(picture), side, value_range="image"))
    else:
        small = Image.fromarray(full_pixels(picture))
    small.thumbnail((side, side))
    packed = io.BytesIO()
    small.save(packed, "JPEG", quality=90)
    return packed.getvalue()


def _pixels(picture: Any, preprocessing: Preprocessing | None) -> np.ndarray:
    if isinstance(picture, Unreadable):
        raise PictureError(picture.error)
    try:
        if isinstance(picture, bytes | bytearray | memoryview):
            picture = bytes(picture)
        elif isinstance(picture, str | os.PathLike):
            picture = Path(picture)
        elif isinstance(picture, Tensor):
            picture = _uint8(_channels_last(picture))
        elif isinstance(picture, np.ndarray):
            picture = _uint8(picture)
        if isinstance(picture, bytes | Path | Image.Image | np.ndarray):
            if preprocessing is not None:
                return preprocessing.pixels(picture)
            if isinstance(picture, bytes | Path):
                return decode.decode(picture, None, value_range="image")
            return decode.from_memory(picture, value_range="image")
    except PictureError:
        raise
    except (OSError, TypeError, ValueError) as error:  # a path with NUL, a PIL picture cut short
        raise PictureError(f"{name_of(picture)!r}: cannot be read ({error})") from error
    raise PictureError(
        f"expected a path, bytes, a PIL picture, an array or a tensor; got {type(picture).__name__}"
    )


def _channels_last(picture: Tensor) -> np.ndarray:
    """``(C, H, W)`` -> ``(H, W, C)``; one channel -> ``(H, W)``."""
    if picture.ndim == 3 and picture.shape[0] not in (1, 3, 4):
        raise PictureError(
            "a tensor is (3, H, W), (1, H, W) in grey or (4, H, W) with transparency; got "
            f"{tuple(picture.shape)}"
        )
    picture = picture.detach().cpu()
    picture = picture.permute(1, 2, 0) if picture.ndim == 3 else picture
    return (picture.float() if picture.dtype == torch.bfloat16 else picture).numpy()


def _uint8(pixels: np.ndarray) -> np.ndarray:
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0:
        raise PictureError(f"a picture without pixels: {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise PictureError(
                f"pixels as floats are in 0..1; got {low:.3g} to {high:.3g}. Give the picture as "
                "it is before it is normalised, or as uint8 in 0..255"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels)
