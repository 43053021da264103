"""Read the pixels of an image in any accepted form."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from PIL import Image

from ..data import decode
from ..data.preprocessing import Preprocessing
from ..errors import ImageError, MissingPackageError

if TYPE_CHECKING:
    from torch import Tensor


class Unreadable(NamedTuple):
    """A source without an image, such as an empty folder, and the reason."""

    source: str
    error: str


ImageLike: TypeAlias = (
    "str | os.PathLike[str] | bytes | Image.Image | np.ndarray | Tensor | Unreadable"
)
"""An image in any accepted form.

- a path, or the bytes of a file;
- a PIL image;
- an array ``(H, W, 3)``, ``(H, W)`` for gray, or ``(H, W, 4)`` with transparency;
- a tensor ``(C, H, W)`` with 3, 1 or 4 channels.

Arrays and tensors are uint8 in 0..255 or floats in 0..1.
"""


def is_image(value: object) -> TypeGuard[ImageLike]:
    """Return whether a value is a single image; a 4-dimensional array or tensor is several."""
    if isinstance(value, np.ndarray) or _is_tensor(value):
        return value.ndim < 4
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Unreadable)
    return isinstance(value, kinds) or not hasattr(value, "__iter__")


def source_name(image: ImageLike) -> str:
    """Return the path of an image, or its type if it is in memory, such as ``<ndarray>``."""
    if isinstance(image, Unreadable):
        return image.source
    if isinstance(image, str | os.PathLike):
        return os.fspath(image)
    return f"<{type(image).__name__}>"


def working_pixels(image: ImageLike, preprocessing: Preprocessing) -> np.ndarray:
    """Return ``(H, W, C)`` uint8 at the working size, the same for a file and for its pixels.

    Raises:
        ImageError: ``image`` is not an image, or cannot be read.
    """
    return read_pixels(image, preprocessing.pixels)


def full_pixels(image: ImageLike) -> np.ndarray:
    """Return ``(H, W, 3)`` uint8 at full size, for display.

    Raises:
        ImageError: ``image`` is not an image, or cannot be read.
    """
    return read_pixels(image, _display_pixels)


def thumbnail(image: ImageLike, side: int = 160) -> bytes:
    """Return a JPEG of a few kilobytes whose longer side is at most ``side`` pixels.

    Raises:
        ImageError: ``image`` is not an image, or cannot be read.
    """
    if isinstance(image, bytes | bytearray | memoryview):  # the decoder scales it down
        small = Image.fromarray(decode.decode(bytes(image), side, value_range="image"))
    else:
        small = Image.fromarray(full_pixels(image))
    small.thumbnail((side, side))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def read_pixels(
    image: Any, read: Callable[[Path | bytes | Image.Image | np.ndarray], np.ndarray]
) -> np.ndarray:
    """Return the result of ``read`` for an image in any accepted form.

    Args:
        image: the image.
        read: turns a file, its bytes, a PIL image or an array into pixels.

    Raises:
        ImageError: ``image`` is not an image, or cannot be read.
    """
    if isinstance(image, Unreadable):
        raise ImageError(image.error)
    try:
        if isinstance(image, bytes | bytearray | memoryview):
            image = bytes(image)
        elif isinstance(image, str | os.PathLike):
            image = Path(image)
        elif _is_tensor(image):
            image = _to_uint8(_to_array(image))
        elif isinstance(image, np.ndarray):
            image = _to_uint8(image)
        if isinstance(image, bytes | Path | Image.Image | np.ndarray):
            return read(image)
    except (ImageError, MissingPackageError):
        raise
    except Exception as error:  # a path with NUL; Pillow reads late and may raise even SyntaxError
        out_of_memory = isinstance(error, MemoryError | RuntimeError)  # PyTorch raises the latter
        reason = str(error) or type(error).__name__
        message = f"{source_name(image)!r}: cannot be read ({reason})"
        raise ImageError(message, passing=out_of_memory) from error
    raise ImageError(
        f"expected a path, bytes, a PIL image, an array or a tensor; got {type(image).__name__}"
    )


def _display_pixels(source: Path | bytes | Image.Image | np.ndarray) -> np.ndarray:
    if isinstance(source, bytes | Path):
        return decode.decode(source, None, value_range="image")
    return decode.pixels_from_memory(source, value_range="image")


def _is_tensor(value: object) -> TypeGuard[Tensor]:
    """Return whether a value is a tensor. There are none until the caller imports PyTorch."""
    return isinstance(value, getattr(sys.modules.get("torch"), "Tensor", ()))


def _to_array(image: Tensor) -> np.ndarray:
    """Convert ``(C, H, W)`` to ``(H, W, C)``; leave ``(H, W)`` unchanged."""
    if image.ndim == 3 and image.shape[0] not in (1, 3, 4):
        raise ImageError(
            "a tensor must be (3, H, W), (1, H, W) for gray or (4, H, W) with transparency; got "
            f"{tuple(image.shape)}"
        )
    import torch

    image = image.detach().cpu()
    image = image.permute(1, 2, 0) if image.ndim == 3 else image
    return (image.float() if image.dtype == torch.bfloat16 else image).numpy()


def _to_uint8(pixels: np.ndarray) -> np.ndarray:
    """Convert floats in 0..1 to uint8 and drop a single channel; leave other types unchanged."""
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    if pixels.size == 0:
        raise ImageError(f"an image without pixels: {pixels.shape}")
    if np.issubdtype(pixels.dtype, np.floating):
        low = float(pixels.min())
        high = float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise ImageError(
                f"float pixels must be in 0..1; got {low:.3g} to {high:.3g}. Pass the image "
                "before it is normalized, or as uint8 in 0..255"
            )
        pixels = (pixels * 255).round().astype(np.uint8)
    return np.ascontiguousarray(pixels)
