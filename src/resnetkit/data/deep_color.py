"""16 bits per color -> 8 bits, with a value range, as for gray images.

Pillow reads such images as 8-bit images: it keeps only the upper 8 of the 16 bits. A second read
with its codecs recovers the lower 8, so that 12-bit data in a 16-bit file does not come out dark.
"""

from __future__ import annotations

import re
import sys

import numpy as np
from PIL import Image, ImageFile

from ..errors import ImageError
from .gray import Depth, strips

_RAW_MODE = re.compile(r"(RGB|RGBA|RGBX|RGBa|LA);16([BLN])|([RGBA]);16([BL])")
_OTHER_BYTE = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_PLANAR = 284  # the TIFF tag
_STRIP = 1_000_000


def is_deep_color(image: Image.Image) -> bool:
    """Return whether an image that is not loaded yet has 16 bits per color."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return bool(tiles) and _RAW_MODE.fullmatch(_raw_mode(tiles[0])) is not None


def name_planes(image: Image.Image) -> None:
    """Let Pillow read an uncompressed TIFF with 16 bits per color and one plane per color.

    Otherwise, Pillow reads each plane as 8-bit values, and every pixel is wrong.
    """
    if image.format != "TIFF" or not isinstance(image, ImageFile.ImageFile):
        return
    tags = image.tag_v2  # type: ignore[attr-defined]
    if tags.get(_PLANAR) != 2 or set(tags.get(258, ())) != {16}:
        return
    order = "L" if tags.prefix == b"II" else "B"
    image.tile = [
        _with_raw_mode(tile, f"{_raw_mode(tile)};16{order}")
        if tile.codec_name == "raw" and _raw_mode(tile) in ("R", "G", "B", "A")
        else tile
        for tile in image.tile
    ]


def depth_of(image: Image.Image) -> Depth:
    """Load an image with 16 bits per color, and return its `Depth`.

    The limits come from the upper 8 bits, which is enough to tell how many bits are used.
    """
    image.load()
    low = 255
    high = 0
    for _, strip in strips(image, _STRIP):
        colors = np.asarray(strip.convert("RGB"))
        low = min(low, int(colors.min()))
        high = max(high, int(colors.max()))
    return Depth("16-bit", 256.0 * low, high=256.0 * high + 255)


def narrow(image: Image.Image, again: Image.Image, limits: tuple[float, float]) -> Image.Image:
    """Convert an image from 16 to 8 bits per color; ``limits`` become 0 and 255.

    Transparency keeps its upper 8 bits.

    Args:
        image: the image, not loaded yet.
        again: the same image, opened a second time.
        limits: the values that become black and white.

    Raises:
        ImageError: the lower 8 bits cannot be read.
    """
    low = _lower_bytes(again)
    image.load()
    black, white = limits
    mode = "RGBA" if image.has_transparency_data else "RGB"
    narrowed = Image.new(mode, image.size)
    for row, strip in strips(image, _STRIP):
        upper = np.asarray(strip.convert(mode))
        lower = np.asarray(low.crop((0, row, image.width, row + strip.height)))
        values = upper[..., :3].astype(np.float64) * 256 + lower[..., :3]
        pixels = upper.copy()
        pixels[..., :3] = ((values.clip(black, white) - black) * (255 / (white - black))).round()
        narrowed.paste(Image.fromarray(pixels), (0, row))
    return narrowed


def _lower_bytes(image: Image.Image) -> Image.Image:
    """Load only the lower 8 bits of each value in an image with 16 bits per color."""
    assert isinstance(image, ImageFile.ImageFile)
    raw_mode = _raw_mode(image.tile[0])
    if image.format == "TIFF" and image.tag_v2.get(_PLANAR) == 2 and len(raw_mode) > 5:  # type: ignore[attr-defined]
        raise ImageError(
            "it is a compressed TIFF with 16 bits per color and one plane per color. Only the "
            "upper 8 bits of each value can be read. Save it with interleaved colors"
        )
    if raw_mode == "LA;16B":  # same size as RGBA: gray, its lower byte, alpha, its lower byte
        image._mode = "RGBA"
        image.tile = [_with_raw_mode(tile, "RGBA") for tile in image.tile]
        return Image.merge("RGB", [image.getchannel("G")] * 3)
    image.tile = [
        _with_raw_mode(tile, _raw_mode(tile)[:-1] + _OTHER_BYTE[_raw_mode(tile)[-1]])
        for tile in image.tile
    ]
    image.load()
    return image


def _raw_mode(tile: ImageFile._Tile) -> str:
    args = tile.args
    return str(args[0]) if isinstance(args, tuple) and args else str(args)


def _with_raw_mode(tile: ImageFile._Tile, raw_mode: str) -> ImageFile._Tile:
    args = tile.args
    return tile._replace(args=(raw_mode, *args[1:]) if isinstance(args, tuple) else raw_mode)
