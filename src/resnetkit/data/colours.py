"""Any of Pillow's modes -> RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, CMYK, palettes, 16 and 32 bits as RGB; transparency is laid over white."""
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey
        wide = np.asarray(image, dtype=np.float64)
        top = _white(image, float(wide.max(initial=0)))
        image = Image.fromarray((wide.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        image = Image.alpha_composite(white, over)
    return image if image.mode == "RGB" else image.convert("RGB")


def _white(image: Image.Image, largest: float) -> float:
    """The number that stands for white in a picture with one channel of 16 or 32 bits."""
    if image.mode == "F" and largest <= 1:
        return 1.0
    says_16 = image.mode.startswith("I;16") or image.format == "PPM"  # Pillow scales PPM to 16
    return 65535.0 if says_16 or largest > 255 else 255.0
