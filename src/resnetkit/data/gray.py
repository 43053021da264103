"""16- or 32-bit gray -> 8 bits: the one place that decides which values are black and white.

Cameras, microscopes and scanners store 8, 10 or 12 bits in 16-bit files, or write fractions, and
most formats do not say so. `deep_color` follows the same rule for 16 bits per color. In order:

1. A PGM states its white level; Pillow scales values to 16 bits, so black is 0 and white is 65,535.
2. A value range ``(low, high)`` from the preprocessing applies to every other image. Training
   derives it from all training images, with `dataset_range`, unless the recipe sets it.
3. Without a range, 16-bit values go from 0 to 65,535. 32-bit values and floats are refused.
4. The range ``"image"``, for model files that predate value ranges, is guessed for each image.

In a TIFF that says "0 is white", black and white are swapped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from ..errors import ImageError

ValueRange = tuple[float, float] | Literal["image"] | None
"""The values that become 0 and 255 in 16- or 32-bit gray images, and in 16-bit color.

None means 0 to 65,535 for 16 bits, and an error for 32 bits. ``"image"``: guess for each image."""

FULL_RANGE = (0.0, 65535.0)
"""The values of black and white in 16 bits if nothing else is known."""

BITS = (8, 10, 12, 14, 16, 24, 32)
"""Bit depths of integers; white is the largest value of the smallest depth that fits all values."""

STRIP = 4_000_000
"""Pixels converted at a time, so that a large image is never in memory in two modes."""


@dataclass(frozen=True)
class Depth:
    """A wide image's kind, ``16-bit``, ``32-bit`` or ``float``, and the extent of its values."""

    kind: str
    low: float
    high: float


def is_wide(image: Image.Image) -> bool:
    """Return whether the image has one channel of 16 or 32 bits."""
    return image.mode.startswith(("I", "F"))


def states_white(image: Image.Image) -> bool:
    """Return whether the file itself says which value is white, as PGM does."""
    return image.format == "PPM" and image.mode == "I"


def depth_of(image: Image.Image) -> Depth | None:
    """Return the `Depth` of an image; None if it is not wide or states its white level."""
    if not is_wide(image) or states_white(image):
        return None
    kind = "16-bit" if image.mode.startswith("I;16") else "32-bit"
    low, high = extent(image)
    return Depth("float" if image.mode == "F" else kind, low, high=high)


def extent(image: Image.Image) -> tuple[float, float]:
    """Return the lowest and highest finite value in a wide image; (0, 0) if it has none."""
    image.load()
    low = np.inf
    high = -np.inf
    for _, strip in strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low = min(low, float(finite.min()))
            high = max(high, float(finite.max()))
    return (low, high) if low <= high else (0.0, 0.0)


def dataset_range(depths: Sequence[Depth]) -> tuple[float, float] | None:
    """Return the value range for images of one kind.

    - 16 bits, and 32 bits without negative values: 0 to the highest value of the smallest depth
      in `BITS` that no image exceeds.
    - 32 bits with negative values: the lowest to the highest value in all images.
    - Floats: 0 to 1, extended to the lowest value if it is below 0 and the highest if above 1.

    Returns:
        The range; None if 16-bit images use all 16 bits.
    """
    kind = depths[0].kind
    low = min(depth.low for depth in depths)
    high = max(depth.high for depth in depths)
    if kind == "float":
        return min(0.0, low), max(1.0, high)
    if low < 0:
        return low, max(high, low + 1)
    white = next(2.0**bits - 1 for bits in BITS if high < 2**bits)
    if kind == "16-bit" and white == FULL_RANGE[1]:
        return None
    return 0.0, white


def black_and_white(image: Image.Image, value_range: ValueRange) -> tuple[float, float]:
    """Return the values that become black and white in a wide image; black may be the higher one.

    Raises:
        ImageError: the image is 32-bit gray, and no range is given.
    """
    low, high = _limits(image, value_range)
    return (high, low) if _low_is_white(image) else (low, high)


def _limits(image: Image.Image, value_range: ValueRange) -> tuple[float, float]:
    if states_white(image):
        return FULL_RANGE
    if isinstance(value_range, tuple):
        return value_range
    if image.mode.startswith("I;16"):
        return FULL_RANGE
    low, high = extent(image)
    if value_range is None:
        raise ImageError(
            f"it is 32-bit gray, from {low:g} to {high:g}, and nothing says which value is "
            "black and which is white. Train with value_range (--set value_range=[0,1]), or save "
            "the image with 8 or 16 bits"
        )
    if image.mode == "F" and high <= 1:
        return 0.0, 1.0
    return FULL_RANGE if high > 255 else (0.0, 255.0)


def _low_is_white(image: Image.Image) -> bool:
    """Return whether a TIFF says that its lowest value is white, as scans and X-rays may.

    Pillow inverts such 8-bit images itself, but not those with 16 bits or more.
    """
    return image.format == "TIFF" and image.tag_v2.get(262) == 0  # type: ignore[attr-defined]


def narrow(image: Image.Image, black: float, white: float) -> np.ndarray:
    """Return a wide image as ``(H, W)`` uint8: ``black`` becomes 0, ``white`` becomes 255.

    Either may be the higher one. Values outside the range are clipped; NaN becomes black. If the
    range is the full 16 bits, the upper 8 are kept (``v >> 8``).
    """
    least = min(black, white)
    most = max(black, white)
    wide = np.asarray(image, dtype=np.float64)
    wide = np.nan_to_num(wide, nan=black, posinf=most, neginf=least).clip(least, most)
    if (least, most) == FULL_RANGE:
        values = np.floor(wide / 256)
        values = values if black < white else 255 - values
    else:
        values = ((wide - black) * (255 / (white - black))).round()
    return values.astype(np.uint8)


def strips(image: Image.Image, most: int = STRIP) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of at most ``most`` pixels as copies, each with the index of its first row."""
    width, height = image.size
    rows = max(1, most // width)
    for row in range(0, height, rows):
        yield row, image.crop((0, row, width, min(row + rows, height)))
