"""Bytes -> RGB pixels. The only user of image codecs.

Measured on one core (benchmarks/decode.py): Pillow's JPEG decoder is as fast as libjpeg-turbo's own
bindings, and scales by 1/2, 1/4, 1/8 inside the decoder; PyTorch resizes uint8 pixels about three
times as fast as Pillow. So Pillow decodes and PyTorch resizes.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch.nn import functional as F

from ..errors import PictureError

MAX_PIXELS = 178_000_000
"""A picture that claims more is refused before it is decoded."""

# Pillow remarks on odd metadata, which changes no pixel.
warnings.filterwarnings("ignore", module=r"PIL\.")

_ORIENTATION = 0x0112  # the EXIF tag


def decode(source: Path | bytes, working_size: int | None = None) -> np.ndarray:
    """Read a picture as RGB pixels, upright, no larger than it has to be.

    Grey becomes RGB; transparency is laid over white; CMYK, palettes and 16 bits are converted; of
    an animation the first frame is taken; EXIF orientation is applied. Grey of 32 bits does not say
    what is white: numbers up to 255 are taken for 8 bits, larger ones for 16; fractions up to 1 for
    0..1.

    Args:
        source: a file, or the bytes of one.
        working_size: the shorter side that the result has where the picture is larger, in pixels;
            None keeps every pixel.

    Returns:
        ``(H, W, 3)`` uint8. The same bits for the same file and working size.

    Raises:
        PictureError: the file cannot be read as a picture; the message names it.
    """
    name = str(source) if isinstance(source, Path) else "the picture"
    try:
        contents = source.read_bytes() if isinstance(source, Path) else source
    except OSError as error:
        raise PictureError(f"{name}: {error.strerror or error}") from error
    try:
        with _open(name, io.BytesIO(contents)) as image:
            image.draft("RGB", shrunk(image.size, working_size))  # JPEG: scale while decoding
            orientation = image.getexif().get(_ORIENTATION, 1)
            pixels = np.asarray(_to_rgb(image))
    except PictureError:
        raise
    except Exception as error:  # codecs raise everything from EOFError to struct.error
        raise PictureError(f"{name}: cannot be decoded ({error})") from error
    return _finish(pixels, working_size, orientation)


def from_memory(picture: Image.Image | np.ndarray, working_size: int | None = None) -> np.ndarray:
    """The same for a picture that is in memory already: a PIL picture or pixels.

    Args:
        picture: any PIL picture; or ``(H, W, 3)`` or ``(H, W)`` uint8.

    Raises:
        PictureError: pixels of another shape or type.
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
            raise PictureError(
                f"pixels are (H, W, 3) or (H, W) uint8; got {picture.shape} {picture.dtype}"
            )
        picture = Image.fromarray(picture)
    orientation = picture.getexif().get(_ORIENTATION, 1)
    return _finish(np.asarray(_to_rgb(picture)), working_size, orientation)


def size(source: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, read from its header.

    Raises:
        PictureError: the header cannot be read.
    """
    try:
        with source.open("rb") as file, _open(str(source), file) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)
    except OSError as error:
        raise PictureError(f"{source}: {error.strerror or error}") from error
    return (height, width) if turned else (width, height)


def shrunk(size: tuple[int, int], shorter: int | None) -> tuple[int, int]:
    """``size`` scaled down so that its shorter side is ``shorter``; as it is where it is smaller.

    >>> shrunk((500, 375), 128), shrunk((100, 100), 128)
    ((170, 128), (100, 100))
    """
    width, height = size
    if shorter is None or min(size) <= shorter:
        return size
    if width < height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def resize(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """``(H, W, 3)`` uint8 -> ``(h, w, 3)`` uint8 for ``size = (w, h)``: bilinear, antialiased."""
    picture = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)[None]
    small = F.interpolate(picture, (size[1], size[0]), mode="bilinear", antialias=True)
    return small[0].permute(1, 2, 0).numpy()


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 or 32 bits of grey
        wide = np.asarray(image, dtype=np.float64)
        top = _white(image, float(wide.max(initial=0)))
        image = Image.fromarray((wide.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        image = Image.alpha_composite(white, over)
    return image.convert("RGB")


def _white(image: Image.Image, largest: float) -> float:
    """The number that stands for white in a picture with one channel of 16 or 32 bits."""
    if image.mode == "F" and largest <= 1:
        return 1.0
    says_16 = image.mode.startswith("I;16") or image.format == "PPM"  # Pillow scales PPM to 16
    return 65535.0 if says_16 or largest > 255 else 255.0


def _finish(pixels: np.ndarray, working_size: int | None, orientation: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    target = shrunk((width, height), working_size)
    if target != (width, height):
        pixels = resize(pixels, target)
    return _upright(pixels, orientation)


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror as the EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.require(pixels, requirements=["C", "W"])


def _open(name: str, file: BinaryIO) -> Image.Image:
    """The picture with its header read, and its claims checked."""
    head = file.read(512)
    file.seek(0)
    if not head:
        raise PictureError(f"{name}: the file is empty")
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"):
        _enable_heif(name)
    too_large = f"at most {MAX_PIXELS:,} pixels are decoded"
    try:
        image = Image.open(file)
    except UnidentifiedImageError as error:
        raise PictureError(f"{name}: {_what_it_is(head)}") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{name}: {too_large} ({error})") from error
    except Exception as error:
        raise PictureError(f"{name}: cannot be decoded ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise PictureError(f"{name}: {too_large}, it claims {image.width} x {image.height}")
    return image


def _enable_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise PictureError(
            f'{name}: a HEIC picture; to read it: pip install "resnetkit[heif]"'
        ) from None
    pillow_heif.register_heif_opener()


def _what_it_is(head: bytes) -> str:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return "not a picture in a known format, or one whose beginning is damaged"
    return f"holds text, not a picture (it begins with {text[:20]!r})"
