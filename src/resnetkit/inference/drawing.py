"""Draw the class and probability on images."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..errors import ImageError, MissingPackageError, OutputError
from ..text import printable
from .images import full_pixels
from .prediction import Prediction

# Sides of the written images in pixels
SMALLEST = 224
LARGEST = 1600


def font_for(text: str) -> tuple[str, str]:
    """Return the installed font to use for a text, and the letters it lacks; see `report.fonts`.

    The import is inside the function because it loads matplotlib, which only drawing needs.

    Raises:
        MissingPackageError: matplotlib is not installed.
    """
    try:
        from ..report.fonts import best_font
    except ModuleNotFoundError:
        message = "Drawing classes on images needs matplotlib: pip install matplotlib"
        raise MissingPackageError(message) from None
    return best_font(text)


def missing_letters(names: tuple[str, ...]) -> str:
    """Return the letters that are missing from the fonts selected for these names."""
    return "".join(sorted({c for name in names for c in font_for(printable(name))[1]}))


def save_labeled(answer: Prediction, folder: Path, number: int) -> Path | None:
    """Write an answer's image with its class and probability; return the path to the file.

    Return None, and write nothing, after an error, or if the image has since been moved, deleted or
    damaged.

    Args:
        answer: the answer; its ``image`` must be kept.
        folder: an existing folder.
        number: the position of the image among all images. The file name starts with it, so no two
            files have the same name.

    Raises:
        OutputError: the file cannot be written.
    """
    if answer.error is not None or answer.image is None:
        return None
    stem = re.sub(r"[^\w.-]+", "_", Path(answer.source).stem)[:60]
    path = folder / f"{number:06d}-{stem}.jpg"
    try:
        pixels = full_pixels(answer.image)
    except ImageError:
        return None
    image = draw_label(pixels, f"{answer.class_name}", probability=answer.probability or 0.0)
    try:
        image.save(path, "JPEG", quality=90)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror or error})") from error
    return path


def draw_label(pixels: np.ndarray, name: str, probability: float) -> Image.Image:
    """Return ``(H, W, 3)`` uint8 as an image with ``name  97.3%`` on a dark band at the bottom.

    Very small images are enlarged, very large ones reduced. Letters missing from the font are
    written as escapes.
    """
    image = _fit_size(Image.fromarray(pixels))
    name = printable(name)
    path, missing = font_for(name)
    text = "".join(
        repr(c.encode("unicode_escape").decode())[1:-1] if c in missing else c for c in name
    )
    text = text.replace("\\\\", "\\")
    percent = f"  {probability:.1%}"
    text, fonts = _fit_text(text, percent, path=path, width=image.width - 16, height=image.height)
    name_font, percent_font = fonts
    draw = ImageDraw.Draw(image)
    height = round(name_font.size * 1.7)
    draw.rectangle((0, image.height - height, image.width, image.height), (0, 0, 0))
    baseline = image.height - height / 2 + 0.35 * name_font.size
    draw.text((8, baseline), text, (255, 255, 255), name_font, "ls")
    left = 8 + name_font.getlength(text)
    draw.text((left, baseline), percent, (255, 255, 255), percent_font, "ls")
    return image


def _fit_size(image: Image.Image) -> Image.Image:
    shorter = min(image.size)
    longer = max(image.size)
    factor = min(max(1.0, SMALLEST / shorter), LARGEST / longer)
    if factor == 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    method = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return image.resize((max(width, SMALLEST // 2), max(height, SMALLEST // 4)), method)


def _fit_text(
    name: str, percent: str, *, path: str, width: int, height: int
) -> tuple[str, list[ImageFont.FreeTypeFont]]:
    """Return the name, cut if necessary, and the fonts for the name and the percentage.

    The fonts have the largest size that makes both fit. The percentage has its own font and is
    drawn separately: fonts of some scripts have no digits, and next to Arabic or Hebrew, digits in
    the same text would move to the left.
    """
    files = (path, font_for(percent)[0])

    def text_width(text: str) -> float:
        return fonts[0].getlength(text) + fonts[1].getlength(percent)

    size = max(14, min(height, width) // 14)
    fonts = [ImageFont.truetype(file, size) for file in files]
    while size > 12 and text_width(name) > width:
        size -= 1
        fonts = [ImageFont.truetype(file, size) for file in files]
    text = name
    while len(text) > 1 and text_width(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text, fonts
