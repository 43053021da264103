"""Any of Pillow's modes -> 8 bits a channel: grey, RGB, or RGB with transparency."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import ImageError

STRIP = 4_000_000
"""Pixels that are converted at once: a large picture is never there in two modes."""

ValueRange = tuple[float, float] | Literal["image"] | None
"""What becomes 0 and 255 in an image of 16 or 32 bits a pixel of grey.

None stands for 0 to 65,535 in 16 bits; 32 bits and fractions are refused, because nothing says what
is white in them. ``"image"`` guesses for each image: a model file made before there were ranges is
read so."""


def pixels_of(image: Image.Image, channels: int = 3, value_range: ValueRange = None) -> np.ndarray:
    """Any mode as ``(H, W, channels)`` uint8: 1 is grey, 3 is RGB, 4 is RGB and transparency.
    With 1 or 3 channels, transparency is laid over white.

    Of a 16-bit value the upper 8 bits count (``v >> 8``), as Pillow and OpenCV read 16-bit colour
    PNGs and torchvision's ``to_dtype(scale=True)`` converts: grey and coloured images, and every
    way to read them, give the same pixels.

    It takes as many bytes a pixel as there are channels, beside the picture, and a few megabytes.

    Raises:
        PictureError: 32 bits of grey without a range.
    """
    image.load()
    if is_wide(image):
        low, high = _limits(image, value_range)
        if _low_is_white(image):
            low, high = high, low
        convert = partial(_narrowed, low=low, high=high, channels=channels)
    else:
        convert = partial(_converted, channels=channels)
    width, height = image.size
    if width * height <= STRIP:
        return convert(image)
    pixels = np.empty((height, width, channels), np.uint8)
    for row, strip in _strips(image):
        pixels[row : row + strip.height] = convert(strip)
    return pixels


def with_channels(rgb: np.ndarray, channels: int) -> np.ndarray:
    """``(H, W, 3)`` uint8 with another number of channels, as `pixels_of` has them."""
    return rgb if channels == 3 else pixels_of(Image.fromarray(rgb), channels)


def to_look_at(pixels: np.ndarray) -> np.ndarray:
    """``(H, W, C)`` uint8 as ``(H, W, 3)``: grey is repeated, transparency laid over white."""
    if pixels.shape[2] == 3:
        return pixels
    return pixels_of(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def is_wide(image: Image.Image) -> bool:
    """Whether it has one channel of 16 or 32 bits."""
    return image.mode.startswith(("I", "F"))


def extent(image: Image.Image) -> tuple[float, float]:
    """The least and the greatest number in a picture with one wide channel; 0, 0 where there is
    none. What is not finite does not count."""
    image.load()
    low, high = np.inf, -np.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row of each, and a copy of some rows of the picture."""
    width, height = image.size
    rows = max(1, STRIP // width)
    for row in range(0, height, rows):
        yield row, image.crop((0, row, width, min(row + rows, height)))


def _converted(image: Image.Image, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if image.has_transparency_data and channels != 4:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        image = Image.alpha_composite(white, over)
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


def _narrowed(image: Image.Image, low: float, high: float, channels: int) -> np.ndarray:
    """One wide channel, of which ``low`` becomes black and ``high`` white, as 8 bits; either may be
    the greater one. What lies outside is cut off; what is no number is black."""
    least, most = min(low, high), max(low, high)
    wide = np.nan_to_num(np.asarray(image, dtype=np.float64), nan=low, posinf=most, neginf=least)
    wide = wide.clip(least, most)
    if (least, most) == (0, 65535):
        narrow = np.floor(wide / 256)
        narrow = narrow if low < high else 255 - narrow
    else:
        narrow = ((wide - low) * (255 / (high - low))).round()
    pixels = np.repeat(narrow.astype(np.uint8)[..., None], channels, axis=2)
    if channels == 4:
        pixels[..., 3] = 255
    return pixels


def _low_is_white(image: Image.Image) -> bool:
    """Whether a TIFF says that its least number is white, as scanners and X-rays do. Pillow turns
    8 bits round for that, and leaves 16 and more as they are."""
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def says_white(image: Image.Image) -> bool:
    """Whether the file itself says which number is white: Pillow scales PGM to 16 bits."""
    return image.format == "PPM" and image.mode == "I"


def _limits(image: Image.Image, value_range: ValueRange) -> tuple[float, float]:
    """The numbers that stand for black and white in a picture with one wide channel."""
    if says_white(image):
        return 0.0, 65535.0
    if isinstance(value_range, tuple):
        return value_range
    if image.mode.startswith("I;16"):
        return 0.0, 65535.0
    low, high = extent(image)
    if value_range is None:
        raise ImageError(
            f"it has 32 bits of grey, from {low:g} to {high:g}, and nothing says which number is "
            "black and which is white. Train with value_range (--set value_range=[0,1]), or save "
            "the image with 8 or 16 bits"
        )
    if image.mode == "F" and high <= 1:
        return 0.0, 1.0
    return 0.0, 65535.0 if high > 255 else 255.0
