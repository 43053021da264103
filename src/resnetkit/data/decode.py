"""Bytes -> pixels: RGB, grey, or RGB with transparency. The only user of image codecs.

JPEGs go to libjpeg-turbo itself (simplejpeg), scaled by 1/2, 1/4, 1/8 inside the decoder: the same
bits as Pillow's, without the way through four bytes a pixel. Every other format, and every JPEG
that is odd (CMYK, damaged), goes to Pillow. PyTorch resizes, three times as fast as Pillow.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import PIL
import simplejpeg
import torch
from PIL import Image, ImageFile, features

from ..errors import ImageError
from ..prefetch import reading
from . import files
from .color import ValueRange, extent, is_wide, pixels_of, says_white, with_channels
from .resize import resize, shrunk, upright

MAX_PIXELS = 178_000_000
"""A picture that claims more is refused before it is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
"""What is read, by Pillow's names, whatever a file is called; no format that starts a program."""

VERSION = 4
"""Of the way in which files become pixels: cached pixels of another one are not taken."""

DIM = (
    "images of 16 bits for each colour, of which at most 14 are used: the upper 8 count, so that "
    "they come out dark; save them with 8 bits, or multiplied up to 65,535"
)
"""What is wrong with pictures of which `is_dim_colour` is true."""

_ORIENTATION = 0x0112  # the EXIF tag


def decode(
    source: Path | bytes,
    working_size: int | None = None,
    *,
    channels: int = 3,
    value_range: ValueRange = None,
) -> np.ndarray:
    """Read a picture as pixels, upright, no larger than it has to be.

    Grey becomes RGB; transparency is laid over white; CMYK, palettes and 16 bits are converted; of
    an animation the first frame is taken; EXIF orientation is applied.

    Args:
        source: a file, or the bytes of one.
        working_size: the shorter side that the result has where the picture is larger, in pixels;
            None keeps every pixel.
        channels: 3 for RGB; 1 for grey, as Pillow's mode ``L`` makes it of RGB; 4 to keep
            transparency.
        value_range: the numbers that become black and white where grey has 16 or 32 bits; see
            `resnetkit.data.color.ValueRange`.

    Returns:
        ``(H, W, channels)`` uint8. The same bits for the same file and arguments.

    Raises:
        PictureError: the file cannot be read as a picture; the message names it.
    """
    name = str(source) if isinstance(source, Path) else "the picture"
    contents = files.read(source) if isinstance(source, Path) else source
    with _named(name):
        pixels, orientation = _stored(contents, working_size, channels, value_range)
        return _finish(pixels, working_size, orientation)


def decode_full(
    source: Path | bytes, shorter: int, *, channels: int = 3, value_range: ValueRange = None
) -> np.ndarray:
    """Read a picture as those did who measured published weights: every pixel is decoded, and
    Pillow resizes, bilinear and antialiased, also to a larger size. The same bits as torchvision's
    ``Resize(shorter)`` on the upright picture in the mode ``L``, ``RGB`` or ``RGBA``.

    Of a picture more than 20 times as long as wide only the middle is resized.

    Args:
        source: a file, or the bytes of one.
        shorter: the shorter side of the result, in pixels.
        channels, value_range: as in `decode`.

    Raises:
        PictureError: as `decode`.
    """
    name = str(source) if isinstance(source, Path) else "the picture"
    contents = files.read(source) if isinstance(source, Path) else source
    with _named(name):
        return _finish_full(*_stored(contents, None, channels, value_range), shorter)


def from_memory(
    image: Image.Image | np.ndarray,
    working_size: int | None = None,
    full: bool = False,
    *,
    channels: int = 3,
    value_range: ValueRange = None,
) -> np.ndarray:
    """The same for a picture that is in memory already: a PIL picture or pixels.

    Args:
        picture: any PIL picture; or ``(H, W, 3)``, ``(H, W, 4)`` or ``(H, W)`` uint8.
        full: as `decode_full`, which needs a working size.
        channels, value_range: as in `decode`.

    Raises:
        PictureError: pixels of another shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ImageError(
                f"pixels are (H, W, 3) or (H, W) uint8; got {image.shape} {image.dtype}"
            )
        image = Image.fromarray(image)
    _load_unmapped(image)
    pixels = pixels_of(image, channels, value_range)
    orientation = _orientation(image)
    if full and working_size is not None:
        with _named("the picture"):
            return _finish_full(pixels, orientation, working_size)
    return _finish(pixels, working_size, orientation)


def size(source: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, read from its header.

    Raises:
        PictureError: the header cannot be read.
    """
    name = str(source)
    with reading(name), files.open_file(source) as file, _named(name), _open(file) as image:
        width, height = image.size
        if image.format == "TIFF":  # Pillow gives the size as it is shown
            return width, height
        turned = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


@dataclass(frozen=True)
class Traits:
    """What a picture's header says: Pillow's names of its ``format`` and ``mode``; ``size`` as it
    is stored, width and height in pixels; and what reading it takes away."""

    format: str
    mode: str
    size: tuple[int, int]
    transparent: bool
    animated: bool
    turned: bool


def traits(contents: bytes) -> Traits:
    """`Traits` of the bytes of a file.

    Raises:
        PictureError: the header cannot be read.
    """
    with _named("the picture"), _open(io.BytesIO(contents)) as image:
        return Traits(
            format="JPEG" if image.format == "MPO" else str(image.format),  # two JPEGs, one shown
            mode=image.mode,
            size=image.size,
            transparent=image.has_transparency_data,
            animated=getattr(image, "is_animated", False) and image.format != "MPO",
            turned=_orientation(image) not in (0, 1),
        )


@dataclass(frozen=True)
class Depth:
    """Grey of more than 8 bits: ``kind`` is 16-bit, 32-bit or float; ``low`` and ``high`` are its
    least and greatest number."""

    kind: str
    low: float
    high: float


def depth(source: Path | bytes) -> Depth | None:
    """`Depth` of a picture whose format does not say which number is white; None for any other,
    which is nearly every picture: of most formats the first bytes tell.

    Raises:
        PictureError: it cannot be read.
    """
    name = str(source) if isinstance(source, Path) else "the picture"
    if isinstance(source, Path):
        with reading(name), files.open_file(source) as file, _named(name):
            if not _may_be_deep(file.read(32)):
                return None
        source = files.read(source)
    elif not _may_be_deep(source[:32]):
        return None
    with _named(name), _open(io.BytesIO(source)) as image:
        if not is_wide(image) or says_white(image):
            return None
        kind = "16-bit" if image.mode.startswith("I;16") else "32-bit"
        return Depth("float" if image.mode == "F" else kind, *extent(image))


def is_dim_colour(source: Path | bytes) -> bool:
    """Whether a picture has 16 bits for each colour, and uses so few of them that it comes out
    dark: its upper 8 bits are taken, and nothing in them is above a quarter.

    Raises:
        PictureError: it cannot be read.
    """
    name = str(source) if isinstance(source, Path) else "the picture"
    contents = files.read(source) if isinstance(source, Path) else source
    if contents.startswith(b"\x89PNG"):
        if contents[24:25] != b"\x10" or contents[25:26] == b"\0":
            return False
    elif contents[:2] not in (b"II", b"MM"):
        return False
    with _named(name), _open(io.BytesIO(contents)) as image:
        if is_wide(image):
            return False
        if image.format == "TIFF" and set(image.tag_v2.get(258, ())) != {16}:  # type: ignore[attr-defined]
            return False
        return int(pixels_of(image, 4)[..., :3].max()) < 64


def _may_be_deep(head: bytes) -> bool:
    deep_png = head.startswith(b"\x89PNG") and head[24:26] == b"\x10\0"  # 16 bits of grey
    return deep_png or head[:2] in (b"II", b"MM", b"Pf")  # TIFF, PFM


def fingerprint() -> str:
    """Return what the result of `decode` depends on beside the file and the working size: the
    versions of this code and of the decoders, and the instructions that PyTorch resizes with."""
    libraries = f"pillow {PIL.__version__}, simplejpeg {metadata.version('simplejpeg')}"
    for codec in ("libjpeg_turbo", "libtiff", "webp", "avif"):  # some Pillows lack one
        libraries += f", {codec} {features.version(codec)}"
    libraries += f", pillow-heif {_heif_version()}"
    capability = torch.backends.cpu.get_cpu_capability()
    return f"decode {VERSION}, {libraries}, torch {torch.__version__} {capability}"


def _heif_version() -> str:
    try:
        return metadata.version("pillow-heif")
    except metadata.PackageNotFoundError:
        return "none"


def _stored(
    contents: bytes, working_size: int | None, channels: int, value_range: ValueRange
) -> tuple[np.ndarray, int]:
    """The pixels as they are stored, and the orientation that is still to be applied. Pillow's own
    copy of them is gone before anything else is made of them."""
    plain = _plain_jpeg(contents, working_size)
    if plain is not None:
        plain = with_channels(plain, channels)
        if not _may_be_turned(contents):
            return plain, 1
    with _open(io.BytesIO(contents)) as image:
        image.draft("RGB", shrunk(image.size, working_size))  # JPEG: scale while decoding
        pixels = pixels_of(image, channels, value_range) if plain is None else plain
        return pixels, _orientation(image)


def _plain_jpeg(contents: bytes, working_size: int | None) -> np.ndarray | None:
    """The pixels of a JPEG as it is stored, at most 8 times as small; None for what Pillow has to
    read or refuse: other formats, CMYK, odd or incomplete files, claims of too many pixels.

    Raises:
        PictureError: libjpeg says that the pixels are damaged. Pillow ignores these warnings.
    """
    if not contents.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(contents)
        if height * width > MAX_PIXELS:
            return None
        if colours not in ("YCbCr", "Gray", "RGB"):
            simplejpeg.decode_jpeg(contents, "CMYK", min_height=1, min_width=1, min_factor=1)
            return None
        target = shrunk((width, height), working_size)
        fits = min(width // target[0], height // target[1])
        scale = next(scale for scale in (8, 4, 2, 1) if fits >= scale)
        small = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
        pixels: np.ndarray = simplejpeg.decode_jpeg(contents, "RGB", False, False, *small, 1)
    except ValueError as error:
        told = str(error)
        if "JFIF revision" in told:  # harmless, but libjpeg tells only its first warning
            known = _with_known_revision(contents)
            return None if known == contents else _plain_jpeg(known, working_size)
        if _is_damage(told, contents):
            said = told.removeprefix("Corrupt JPEG data: ")
            raise ImageError(f"a damaged JPEG ({said}): part of it would be wrong") from error
        return None  # Pillow reads it or says what is wrong with it
    expected = (*(small if scale > 1 else (height, width)), 3)
    return pixels if pixels.shape == expected else None


def _with_known_revision(jpeg: bytes) -> bytes:
    at = jpeg.find(b"JFIF\0") + 5
    return jpeg[:at] + b"\1\1" + jpeg[at + 2 :]


def _is_damage(warning: str, jpeg: bytes) -> bool:
    """Whether a warning of libjpeg means wrong pixels. It does not where zeros are left over before
    the end marker (0xd9), which some cameras write. Files that end early are left to Pillow, which
    refuses them."""
    padding = re.fullmatch(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9", warning)
    if padding and bytes(int(padding[1])) + b"\xff\xd9" in jpeg:
        return False
    return warning.startswith(("Corrupt JPEG data", "Inconsistent progression"))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be applied. Read it after the pixels: Pillow turns a
    TIFF when it loads it, and then removes the tag."""
    return int(image.getexif().get(_ORIENTATION, 1))


def _load_unmapped(image: Image.Image) -> None:
    """Load a TIFF without mapping its file: Pillow maps one that lies on its side with the sides
    exchanged, which scrambles it."""
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF":
        name, image.filename = image.filename, ""
        try:
            image.load()
        finally:
            image.filename = name


def _may_be_turned(jpeg: bytes) -> bool:
    """Whether the header has metadata that can hold an orientation; parsing them takes time."""
    at = 2
    while jpeg[at : at + 1] == b"\xff" and jpeg[at + 1 : at + 2] != b"\xda":
        fill = jpeg[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(jpeg[at + 2 : at + 4])  # to the next segment
    return b"Exif\0\0" in jpeg[:at] or b"Orientation" in jpeg[:at]


def _finish(pixels: np.ndarray, working_size: int | None, orientation: int) -> np.ndarray:
    height, width = pixels.shape[:2]
    target = shrunk((width, height), working_size)
    if target != (width, height):
        pixels = resize(pixels, target)
    return upright(pixels, orientation)


def _finish_full(pixels: np.ndarray, orientation: int, shorter: int) -> np.ndarray:
    pixels = upright(pixels, orientation)
    height, width, channels = pixels.shape
    side = 20 * min(width, height)
    left, top = max(0, (width - side) // 2), max(0, (height - side) // 2)
    middle = pixels[top : top + side, left : left + side]
    image = Image.fromarray(middle[..., 0] if channels == 1 else middle)
    width, height = image.size
    longer = int(shorter * max(image.size) / min(image.size))
    target = (shorter, longer) if width <= height else (longer, shorter)
    resized = image.resize(target, Image.Resampling.BILINEAR)
    return np.require(resized, np.uint8, ["C", "W"]).reshape(target[1], target[0], channels)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Every error inside becomes a PictureError that begins with ``name``."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}", error.passing) from error.__cause__
    except MemoryError as error:
        message = f"{name}: there is not enough memory to decode it"
        raise ImageError(message, passing=True) from error
    except Exception as error:  # codecs raise everything from EOFError to struct.error
        short = isinstance(error, RuntimeError)  # PyTorch's error where memory is short
        raise ImageError(f"{name}: cannot be decoded ({error})", passing=short) from error


def _open(file: BinaryIO) -> Image.Image:
    """The picture with its header read, and its claims checked."""
    head = file.read(512)
    file.seek(0)
    if not head:
        raise ImageError("the file is empty")
    too_large = f"at most {MAX_PIXELS:,} pixels are decoded"
    try:
        image = _identify(file, head)
    except Image.DecompressionBombError as error:
        raise ImageError(f"{too_large} ({error})") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{too_large}, it claims {image.width} x {image.height}")
    if 0 in image.size:
        raise ImageError(f"it claims {image.width} x {image.height} pixels")
    return image


def _identify(file: BinaryIO, head: bytes) -> Image.Image:
    """Do what ``Image.open`` does, but without its check of the image's size.

    ``Image.MAX_IMAGE_PIXELS`` and the filter of its warning belong to the calling program, which
    may have set either; our own limit is `MAX_PIXELS`.
    """
    Image.init()
    readers: dict[str, tuple[Any, Any]] = {
        name: Image.OPEN[name] for name in FORMATS if name in Image.OPEN
    }
    if head[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1"):
        readers["HEIF"] = _heif_reader(), None
    for reader, accept in readers.values():
        accepted = accept is None or accept(head[:16])
        if accepted and not isinstance(accepted, str):  # a text says which codec is missing
            file.seek(0)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # not this format
                return reader(file, "")  # type: ignore[no-any-return]
    raise ImageError(_what_it_is(head))


def _heif_reader() -> type[Image.Image]:
    """Return a reader of HEIC without registering it with Pillow, which would change what
    ``Image.open`` accepts in the calling program."""
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        message = 'a HEIC picture; to read it: pip install "resnetkit[heif]"'
        raise ImageError(message, passing=True) from None
    return HeifImageFile


def _what_it_is(head: bytes) -> str:
    if head.startswith(b"\xff\xd8\xff"):
        return "a JPEG of a kind that is not read (12 bits, lossless), or one that is damaged"
    unknown = "not a picture in a known format, or one whose beginning is damaged"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return unknown
    return unknown if "\0" in text else f"holds text, not a picture (it begins with {text[:20]!r})"
