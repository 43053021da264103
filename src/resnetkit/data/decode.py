"""Bytes -> pixels: RGB, gray, or RGB with transparency. No other module uses image codecs.

JPEGs go directly to libjpeg-turbo (simplejpeg), scaled by 1/2, 1/4 or 1/8 inside the decoder. This
gives the same bits as Pillow, without its copy of four bytes per pixel. Every other format, and
every unusual JPEG (CMYK, damaged), goes to Pillow. PyTorch does the resizing, three times as fast
as Pillow.
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
from PIL import Image, ImageFile, features

from ..distribution import install_command
from ..errors import ImageError
from ..prefetch import reading
from . import deep_color, files, holes
from .bounded import STEPS, BoundedFile
from .color import pixels_of, with_channels
from .gray import FULL_RANGE, Depth, ValueRange, depth_of
from .paths import shown
from .resize import resize, resize_by_pillow, shrunk, upright

MAX_PIXELS = 178_000_000
"""An image whose header claims more pixels is refused before it is decoded."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "HEIF")
"""Supported formats, by Pillow's names; the file's extension does not matter. None of their
decoders starts another program."""

VERSION = 7
"""Version of the conversion from files to pixels; pixels cached by other versions are not used."""

UNNAMED = "the image"
"""What error messages call an image that has no path."""

_ORIENTATION = 0x0112  # the EXIF tag


def decode(
    source: Path | bytes,
    working_size: int | None = None,
    *,
    channels: int = 3,
    value_range: ValueRange = None,
) -> np.ndarray:
    """Decode an image to pixels: upright, and no larger than needed.

    Gray becomes RGB, transparent images are composited over white, and CMYK, palettes and 16 bits
    are converted. Animations yield their first frame. EXIF orientation is applied.

    Args:
        source: a file, or the bytes of one.
        working_size: reduce larger images to this shorter side, in pixels; None keeps every pixel.
        channels: 3 for RGB; 1 for gray, converted from RGB as Pillow's mode ``L``; 4 to keep
            transparency.
        value_range: the values that become black and white in 16- or 32-bit gray and in 16-bit
            color; see `resnetkit.data.gray`.

    Returns:
        ``(H, W, channels)`` uint8. The same file and arguments give the same bits.

    Raises:
        ImageError: the file cannot be read as an image; the message names it.
    """
    name, contents = _name_and_contents(source)
    with _named(name):
        pixels, orientation = _stored(
            contents, working_size, channels=channels, value_range=value_range
        )
        return _finish(pixels, working_size, orientation=orientation)


def _name_and_contents(source: Path | bytes) -> tuple[str, bytes]:
    """Return the image's name for error messages, and its bytes."""
    if isinstance(source, Path):
        return shown(source), files.read_file(source)
    return UNNAMED, source


def decode_full(
    source: Path | bytes, shorter: int, *, channels: int = 3, value_range: ValueRange = None
) -> np.ndarray:
    """Decode an image as images were decoded when the published accuracies were measured.

    Every pixel is decoded, and Pillow resizes (bilinear with antialiasing), even to larger sizes.
    The result has the same bits as torchvision's ``Resize(shorter)`` on the upright image in the
    mode ``L``, ``RGB`` or ``RGBA``. If an image is over 20 times as long as wide, only its middle
    is resized.

    Args:
        source: a file, or the bytes of one.
        shorter: the shorter side of the result, in pixels.
        channels: see `decode`.
        value_range: see `decode`.

    Returns:
        ``(H, W, channels)`` uint8.

    Raises:
        ImageError: the file cannot be read as an image; the message names it.
    """
    name, contents = _name_and_contents(source)
    with _named(name):
        pixels, orientation = _stored(contents, None, channels=channels, value_range=value_range)
        return _finish_full(pixels, orientation, shorter=shorter)


def pixels_from_memory(
    image: Image.Image | np.ndarray,
    working_size: int | None = None,
    full: bool = False,
    *,
    channels: int = 3,
    value_range: ValueRange = None,
) -> np.ndarray:
    """Return the same pixels as `decode` for an image that is already in memory.

    Args:
        image: any PIL image; or ``(H, W, 3)``, ``(H, W, 4)`` or ``(H, W)`` uint8.
        working_size: see `decode`.
        full: whether to resize as `decode_full` does; needs a working size.
        channels: see `decode`.
        value_range: see `decode`.

    Returns:
        ``(H, W, channels)`` uint8.

    Raises:
        ImageError: the pixels have an unsupported shape or type.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ImageError(
                f"pixels must be (H, W, 3) or (H, W) uint8; got {image.shape} {image.dtype}"
            )
        image = Image.fromarray(image)
    _load_unmapped(image)
    pixels = pixels_of(image, channels, value_range)
    orientation = _orientation(image)
    if full and working_size is not None:
        with _named(UNNAMED):
            return _finish_full(pixels, orientation, shorter=working_size)
    return _finish(pixels, working_size, orientation=orientation)


def image_size(source: Path) -> tuple[int, int]:
    """Return the width and height of an image as displayed, read from its header.

    Raises:
        ImageError: the header cannot be read.
    """
    name = str(source)
    with reading(name), files.open_file(source) as file, _named(name), _open(file) as image:
        width, height = image.size
        if image.format == "TIFF" and _ORIENTATION in image.tag_v2:  # type: ignore[attr-defined]
            return width, height  # Pillow already gives the displayed size
        turned = _orientation(image) in (5, 6, 7, 8)
    return (height, width) if turned else (width, height)


def stored_size(contents: bytes) -> tuple[int, int]:
    """Return the width and height that the header of an image file claims, before any rotation.

    Raises:
        ImageError: the header cannot be read, or it claims too many pixels.
    """
    with _named(UNNAMED), _open(io.BytesIO(contents)) as image:
        width, height = image.size
        return width, height


def has_known_signature(contents: bytes) -> bool:
    """Return whether a file, even an incomplete one, begins like an image in a supported format."""
    head = contents[:16]
    Image.init()
    for name in FORMATS:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        with suppress(IndexError, struct.error):  # a file shorter than the signature
            if accept is not None and accept(head) is True:
                return True
    return _is_heif(head)


def is_gray(source: Path) -> bool:
    """Return whether an image is stored as grayscale, according to its header.

    Raises:
        ImageError: the header cannot be read.
    """
    name = str(source)
    with reading(name), files.open_file(source) as file, _named(name), _open(file) as image:
        return is_gray_mode(image.mode)


def is_see_through(source: Path) -> bool:
    """Return whether some pixels in an image are at least partly transparent.

    Raises:
        ImageError: the image cannot be read.
    """
    name, contents = _name_and_contents(source)
    with _named(name), _open(io.BytesIO(contents)) as image:
        if not image.has_transparency_data:
            return False
        lowest, _ = image.convert("RGBA").getchannel("A").getextrema()
        return lowest != 255


def is_gray_mode(mode: str) -> bool:
    """Return whether a Pillow mode has one color channel, with or without transparency."""
    return mode in ("1", "L", "LA", "La", "F") or mode.startswith("I")


@dataclass(frozen=True, slots=True)
class Traits:
    """The facts in an image's header, and the changes that decoding will make.

    ``format`` and ``mode`` are Pillow's names; ``size`` is the stored width and height in pixels.
    """

    format: str
    mode: str
    size: tuple[int, int]
    transparent: bool
    animated: bool
    turned: bool


def read_traits(contents: bytes) -> Traits:
    """Return the `Traits` of an image from the bytes of its file.

    Raises:
        ImageError: the header cannot be read.
    """
    with _named(UNNAMED), _open(io.BytesIO(contents)) as image:
        is_mpo = image.format == "MPO"  # two JPEGs; only one is shown
        return Traits(
            format="JPEG" if is_mpo else str(image.format),
            mode=image.mode,
            size=image.size,
            transparent=image.has_transparency_data,
            animated=getattr(image, "is_animated", False) and not is_mpo,
            turned=_orientation(image) not in (0, 1),
        )


def read_depth(source: Path | bytes) -> Depth | None:
    """Return the `Depth` of an image in 16- or 32-bit gray, or with 16 bits per color.

    Returns:
        None for any other image, or if the file says which value is white. For most formats, the
        first bytes are enough to tell.

    Raises:
        ImageError: the image cannot be read.
    """
    if isinstance(source, Path):
        name = str(source)
        with reading(name), files.open_file(source) as file, _named(name):
            head = file.read(32)
    else:
        head = source[:32]
    if not _may_be_wide(head):
        return None
    name, contents = _name_and_contents(source)
    with _named(name), _open(io.BytesIO(contents)) as image:
        return deep_color.depth_of(image) if deep_color.is_deep_color(image) else depth_of(image)


def _may_be_wide(head: bytes) -> bool:
    wide_png = head.startswith(b"\x89PNG") and head[24:25] == b"\x10"  # 16 bits
    return wide_png or head[:2] in (b"II", b"MM", b"Pf")  # TIFF, PFM


def fingerprint() -> str:
    """Return what `decode` depends on besides the file and its arguments.

    These are the versions of this code and of the decoders, and the CPU instructions that PyTorch
    uses to resize.
    """
    import torch

    libraries = f"pillow {PIL.__version__}, simplejpeg {metadata.version('simplejpeg')}"
    for codec in ("libjpeg_turbo", "libtiff", "webp", "avif"):  # some builds of Pillow lack one
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
    contents: bytes, working_size: int | None, *, channels: int, value_range: ValueRange
) -> tuple[np.ndarray, int]:
    """Return the pixels as stored, and the EXIF orientation that is still to be applied.

    Pillow's own copy of the pixels is freed on return, before another copy is made.
    """
    plain = _plain_jpeg(contents, working_size)
    if plain is not None:
        plain = with_channels(plain, channels)
        if not _may_be_turned(contents):
            return plain, 1
    with _open(io.BytesIO(contents)) as image:
        holes.refuse_holes(image, contents)
        image.draft("RGB", shrunk(image.size, working_size))  # JPEG: scale while decoding
        if (
            plain is None
            and isinstance(value_range, tuple)
            and value_range != FULL_RANGE
            and deep_color.is_deep_color(image)
        ):
            with _open(io.BytesIO(contents)) as again:
                plain = pixels_of(deep_color.narrow(image, again, value_range), channels)
        pixels = pixels_of(image, channels, value_range) if plain is None else plain
        return pixels, _orientation(image)


def _plain_jpeg(contents: bytes, working_size: int | None) -> np.ndarray | None:
    """Return a JPEG's pixels as stored, reduced by a factor of up to 8; None to leave it to Pillow.

    Pillow reads or refuses everything else: other formats, CMYK, unusual or incomplete files, and
    files with too many pixels.

    Raises:
        ImageError: libjpeg warns that the pixels are damaged. Pillow ignores these warnings.
    """
    if not contents.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(contents)
        if height * width > MAX_PIXELS:
            return None
        if colors not in ("YCbCr", "Gray", "RGB"):
            simplejpeg.decode_jpeg(contents, "CMYK", min_height=1, min_width=1, min_factor=1)
            return None
        target = shrunk((width, height), working_size)
        fits = min(width // target[0], height // target[1])
        scale = next(scale for scale in (8, 4, 2, 1) if fits >= scale)
        small = (-(-height // scale), -(-width // scale)) if scale > 1 else (0, 0)
        pixels: np.ndarray = simplejpeg.decode_jpeg(contents, "RGB", False, False, *small, 1)
    except ValueError as error:
        warning = str(error)
        if "JFIF revision" in warning:  # harmless, but libjpeg reports only its first warning
            known = _with_known_revision(contents)
            return None if known == contents else _plain_jpeg(known, working_size)
        if _is_damage(warning, contents):
            reason = warning.removeprefix("Corrupt JPEG data: ")
            raise ImageError(f"a damaged JPEG ({reason}): some pixels would be wrong") from error
        return None  # Pillow reads the file or reports what is wrong
    expected = (*(small if scale > 1 else (height, width)), 3)
    return pixels if pixels.shape == expected else None


def _with_known_revision(jpeg: bytes) -> bytes:
    start = jpeg.find(b"JFIF\0") + 5
    return jpeg[:start] + b"\1\1" + jpeg[start + 2 :]


def _is_damage(warning: str, jpeg: bytes) -> bool:
    """Return whether a libjpeg warning means wrong pixels.

    Zeros before the end marker (0xd9), which some cameras write, are harmless. Files that end early
    are left to Pillow, which refuses them.
    """
    padding = re.fullmatch(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9", warning)
    if padding and bytes(int(padding[1])) + b"\xff\xd9" in jpeg:
        return False
    return warning.startswith(("Corrupt JPEG data", "Inconsistent progression"))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation that is still to be applied.

    Call this after loading the pixels: Pillow rotates a TIFF as it loads it, then removes the tag.
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the EXIF data is damaged in some way; the pixels are not
        return 1


def _load_unmapped(image: Image.Image) -> None:
    """Load a TIFF without mapping its file into memory.

    Pillow maps a rotated TIFF with width and height swapped, which scrambles it.
    """
    if isinstance(image, ImageFile.ImageFile) and image.format == "TIFF":
        filename = image.filename
        image.filename = ""  # Pillow maps only files that have a name
        try:
            image.load()
        finally:
            image.filename = filename


def _may_be_turned(jpeg: bytes) -> bool:
    """Return whether the header has metadata that can hold an orientation; parsing it is slow."""
    end = 2
    for _ in range(STEPS):
        if jpeg[end : end + 1] != b"\xff" or jpeg[end + 1 : end + 2] == b"\xda":
            break
        is_fill = jpeg[end + 1 : end + 2] == b"\xff"
        end += 1 if is_fill else 2 + int.from_bytes(jpeg[end + 2 : end + 4])  # next segment
    else:
        return True  # more segments than Pillow may read, so it refuses the file
    return b"Exif\0\0" in jpeg[:end] or b"Orientation" in jpeg[:end]


def _finish(pixels: np.ndarray, working_size: int | None, *, orientation: int) -> np.ndarray:
    """Reduce to the working size and turn upright."""
    height, width = pixels.shape[:2]
    target = shrunk((width, height), working_size)
    if target != (width, height):
        pixels = resize(pixels, target)
    return upright(pixels, orientation)


def _finish_full(pixels: np.ndarray, orientation: int, *, shorter: int) -> np.ndarray:
    """Turn the pixels upright and resize them with Pillow, as `decode_full` describes."""
    return resize_by_pillow(upright(pixels, orientation), shorter, interpolation="bilinear")


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Turn every error in this context into an `ImageError` whose message begins with ``name``."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{_full_name(name)}: {error}", error.passing) from error.__cause__
    except MemoryError as error:
        message = f"{_full_name(name)}: there is not enough memory to decode it"
        raise ImageError(message, passing=True) from error
    except Exception as error:  # codecs raise everything from EOFError to struct.error
        out_of_memory = isinstance(error, RuntimeError)  # what PyTorch raises in that case
        message = f"{_full_name(name)}: cannot be decoded ({error})"
        raise ImageError(message, passing=out_of_memory) from error


def _full_name(name: str) -> str:
    """Return an image's name for error messages, including its place in a shard, if any."""
    if name == UNNAMED:
        return name
    from . import shards  # needed only for errors

    return shards.describe(Path(name))


def _open(file: BinaryIO) -> Image.Image:
    """Open an image: read its header, and check the size that the header claims."""
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
        raise ImageError(f"{too_large}; its header claims {image.width} x {image.height}")
    if 0 in image.size:
        raise ImageError(f"its header claims {image.width} x {image.height} pixels")
    if image.format == "TIFF":
        _refuse_signed_bytes(image)
    deep_color.name_planes(image)
    return image


def _refuse_signed_bytes(image: Image.Image) -> None:
    """Raise if a TIFF has signed 8-bit values, which Pillow reads as unsigned: -1 as 255."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    if 2 in tags.get(339, ()) and 8 in tags.get(258, ()):
        raise ImageError("a TIFF with signed 8-bit values, which cannot be read; save it as 16-bit")


def _identify(file: BinaryIO, head: bytes) -> Image.Image:
    """Open an image as ``Image.open`` does, but without its check of the image's size.

    ``Image.MAX_IMAGE_PIXELS`` and the filter for its warning belong to the calling program, which
    may have set either. Our own limit is `MAX_PIXELS`.
    """
    Image.init()
    readers: dict[str, tuple[Any, Any]] = {
        name: Image.OPEN[name] for name in FORMATS if name in Image.OPEN
    }
    if _is_heif(head):
        readers["HEIF"] = _heif_reader(), None
    for reader, accept in readers.values():
        accepted = accept is None or accept(head[:16])
        if accepted and not isinstance(accepted, str):  # a string names a missing codec
            file.seek(0)
            bounded = BoundedFile(file)
            with suppress(SyntaxError, IndexError, TypeError, struct.error):  # not this format
                image: Image.Image = reader(bounded, "")
                # Pillow also parses PNG chunks after the pixels. In other formats, the pixels may
                # need many reads.
                bounded.is_bounded = image.format in ("PNG", "GIF")
                return image
    raise ImageError(_describe_unknown(head))


def _is_heif(head: bytes) -> bool:
    return head[4:12] in (b"ftypheic", b"ftypheix", b"ftyphevc", b"ftypmif1", b"ftypmsf1")


def _heif_reader() -> type[Image.Image]:
    """Return a reader for HEIC without registering it with Pillow.

    Registering would change what ``Image.open`` accepts in the calling program.
    """
    try:
        from pillow_heif import HeifImageFile
    except ImportError:
        message = f"a HEIC image; to read it: {install_command('heif')}"
        raise ImageError(message, passing=True) from None
    return HeifImageFile


def _describe_unknown(head: bytes) -> str:
    if head.startswith(b"\xff\xd8\xff"):
        return "an unsupported kind of JPEG (12-bit or lossless), or a damaged one"
    if head[:4] in (b"II*\0", b"MM\0*"):
        return (
            "a damaged TIFF, or one whose pixels cannot be read, such as 64-bit floats; save it "
            "with 8 or 16 bits per channel, or as 32-bit floats"
        )
    unknown = "not an image in a known format, or its beginning is damaged"
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError:
        return unknown
    return unknown if "\0" in text else f"holds text, not an image (it begins with {text[:20]!r})"
