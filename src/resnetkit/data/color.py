"""Any of Pillow's modes -> 8 bits per channel: gray, RGB, or RGB with transparency."""

from __future__ import annotations

from functools import partial

import numpy as np
from PIL import Image

from . import gray
from .gray import ValueRange


def pixels_of(image: Image.Image, channels: int = 3, value_range: ValueRange = None) -> np.ndarray:
    """Convert an image of any mode to ``(H, W, channels)`` uint8.

    1 channel is gray, 3 are RGB, 4 are RGB and transparency. With 1 or 3 channels, transparent
    images are composited over white.

    16-bit values keep their upper 8 bits (``v >> 8``), as in Pillow and OpenCV for 16-bit color
    PNGs, and in torchvision's ``to_dtype(scale=True)``. Gray and color images therefore agree. Gray
    with a different value range is scaled; see `resnetkit.data.gray`.

    Besides the image itself, this needs ``channels`` bytes per pixel and a few megabytes.

    Raises:
        ImageError: the image is 32-bit gray, and no range is given.
    """
    image.load()
    if gray.is_wide(image):
        black, white = gray.black_and_white(image, value_range)
        convert = partial(_convert_wide, black=black, white=white, channels=channels)
    else:
        convert = partial(_convert_narrow, channels=channels)
    width, height = image.size
    if width * height <= gray.STRIP:
        return convert(image)
    pixels = np.empty((height, width, channels), np.uint8)
    for row, strip in gray.strips(image):
        pixels[row : row + strip.height] = convert(strip)
    return pixels


def with_channels(rgb: np.ndarray, channels: int) -> np.ndarray:
    """Convert ``(H, W, 3)`` uint8 to a different number of channels, as `pixels_of` does."""
    return rgb if channels == 3 else pixels_of(Image.fromarray(rgb), channels)


def to_rgb(pixels: np.ndarray) -> np.ndarray:
    """Convert ``(H, W, C)`` uint8 to ``(H, W, 3)``: repeat gray, or composite over white."""
    if pixels.shape[2] == 3:
        return pixels
    return pixels_of(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def _convert_narrow(image: Image.Image, channels: int) -> np.ndarray:
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    if image.has_transparency_data and channels != 4:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        image = Image.alpha_composite(white, rgba)
    if channels == 1 and image.mode == "YCbCr":  # its Y is not exactly the gray of its RGB
        image = image.convert("RGB")
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    return pixels[..., None] if channels == 1 else pixels


def _convert_wide(image: Image.Image, black: float, white: float, channels: int) -> np.ndarray:
    values = gray.narrow(image, black, white)
    pixels = np.repeat(values[..., None], channels, axis=2)
    if channels == 4:
        pixels[..., 3] = 255
    return pixels
