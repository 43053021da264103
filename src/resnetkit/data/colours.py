"""Any of Pillow's modes -> RGB pixels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

STRIP = 4_000_000
"""Pixels that are converted at once: a large picture is never there in two modes."""


def rgb_pixels(image: Image.Image) -> np.ndarray:
    """Grey, CMYK, palettes, 16 and 32 bits as ``(H, W, 3)`` uint8; transparency is laid over white.

    Of a 16-bit value the upper 8 bits count (``v >> 8``), as Pillow and OpenCV read 16-bit colour
    PNGs and torchvision's ``to_dtype(scale=True)`` converts: grey and coloured images, and every
    way to read them, give the same pixels.

    It takes three bytes a pixel beside the picture, and a few megabytes.
    """
    image.load()
    wide = image.mode.startswith(("I", "F"))  # one channel of 16 or 32 bits
    top = _white(image) if wide else 0.0
    width, height = image.size
    if width * height <= STRIP:
        return _narrowed(image, top) if wide else np.asarray(_rgb(image))
    pixels = np.empty((height, width, 3), np.uint8)
    for row, strip in _strips(image):
        part = _narrowed(strip, top) if wide else np.asarray(_rgb(strip))
        pixels[row : row + strip.height] = part
    return pixels


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row of each, and a copy of some rows of the picture."""
    width, height = image.size
    rows = max(1, STRIP // width)
    for row in range(0, height, rows):
        yield row, image.crop((0, row, width, min(row + rows, height)))


def _rgb(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        image = Image.alpha_composite(white, over)
    return image if image.mode == "RGB" else image.convert("RGB")


def _narrowed(image: Image.Image, top: float) -> np.ndarray:
    """One wide channel, in which ``top`` is white, as three of 8 bits. What is no number is 0."""
    wide = np.nan_to_num(np.asarray(image, dtype=np.float64))
    wide = wide.clip(0, top)
    narrow = np.floor(wide / 256) if top == 65535 else (wide * (255 / top)).round()
    narrow = narrow.astype(np.uint8)
    return np.repeat(narrow[..., None], 3, axis=2)


def _white(image: Image.Image) -> float:
    """The number that stands for white in a picture with one channel of 16 or 32 bits."""
    if image.mode.startswith("I;16") or image.format == "PPM":  # Pillow scales PPM to 16
        return 65535.0
    strips = (np.asarray(strip) for _, strip in _strips(image))
    largest = max(strip.max(initial=0, where=np.isfinite(strip)) for strip in strips)
    if image.mode == "F" and largest <= 1:
        return 1.0
    return 65535.0 if largest > 255 else 255.0
