"""Pictures with their class and probability drawn on them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import OutputError
from ..progress import printable
from .images import full_pixels
from .predictor import Prediction

SMALLEST, LARGEST = 224, 1600  # sides of what is written, in pixels


def font_for(text: str) -> tuple[str, str]:
    """The installed font for a text, and the letters that it lacks: `resnetkit.report.fonts`, which
    brings matplotlib and is only needed by who draws."""
    from ..report.fonts import one_for

    return one_for(text)


def missing_letters(names: tuple[str, ...]) -> str:
    """The letters of the names that no font chosen for them has."""
    return "".join(sorted({c for name in names for c in font_for(printable(name))[1]}))


def save_labelled(answer: Prediction, folder: Path, number: int) -> Path | None:
    """Write the picture of an answer with class and probability on it; None where it has an error.

    Args:
        number: of the picture among all; it begins the file's name, so that none is written twice.

    Raises:
        OutputError: there is no writing to the folder.
    """
    if answer.error is not None or answer.image is None:
        return None
    stem = re.sub(r"[^\w.-]+", "_", Path(answer.source).stem)[:60]
    path = folder / f"{number:06d}-{stem}.jpg"
    image = draw_label(full_pixels(answer.image), f"{answer.class_name}", answer.probability or 0.0)
    try:
        image.save(path, "JPEG", quality=90)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error
    return path


def draw_label(pixels: np.ndarray, name: str, probability: float) -> Image.Image:
    """``(H, W, 3)`` uint8 with a dark band at the lower edge that says ``name  97.3%``.

    Very small pictures are enlarged and very large ones shrunk. Letters that no installed font has
    are written as their numbers.
    """
    image = _in_size(Image.fromarray(pixels))
    name = printable(name)
    path, lacking = font_for(name)
    shown = "".join(
        repr(c.encode("unicode_escape").decode())[1:-1] if c in lacking else c for c in name
    )
    shown = shown.replace("\\\\", "\\")
    tail = f"  {probability:.1%}"
    text, fonts = _fit(shown, tail, path, image.width - 16, image.height)
    draw = ImageDraw.Draw(image)
    height = round(fonts[0].size * 1.7)
    draw.rectangle((0, image.height - height, image.width, image.height), (0, 0, 0))
    line = image.height - height / 2 + 0.35 * fonts[0].size
    draw.text((8, line), text, (255, 255, 255), fonts[0], "ls")
    draw.text((8 + fonts[0].getlength(text), line), tail, (255, 255, 255), fonts[1], "ls")
    return image


def _in_size(image: Image.Image) -> Image.Image:
    shorter, longer = min(image.size), max(image.size)
    factor = min(max(1.0, SMALLEST / shorter), LARGEST / longer)
    if factor == 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return image.resize((max(width, SMALLEST // 2), max(height, SMALLEST // 4)), method)


def _fit(
    name: str, tail: str, path: str, width: int, height: int
) -> tuple[str, list[ImageFont.FreeTypeFont]]:
    """The name, cut where it has to be, and the fonts of name and tail in the largest size in which
    both fit. Fonts of some scripts have no digits; and in a line with Arabic or Hebrew, digits
    would be moved to its left."""
    files = path, font_for(tail)[0]

    def taken(text: str) -> float:
        return fonts[0].getlength(text) + fonts[1].getlength(tail)

    size = max(14, min(height, width) // 14)
    fonts = [ImageFont.truetype(file, size) for file in files]
    while size > 12 and taken(name) > width:
        size -= 1
        fonts = [ImageFont.truetype(file, size) for file in files]
    text = name
    while len(text) > 1 and taken(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text, fonts
