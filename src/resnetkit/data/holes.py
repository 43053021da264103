"""Find holes of zeros in image files: interrupted copies leave them, and some decoders accept them.

Truncated files never get this far: every decoder refuses them. In most files, a hole breaks a
checksum or the entropy code, and the decoder reports it. This module checks the other formats, in
which an intact file never contains so many zeros. In uncompressed pixels, and in WebP, which
compresses flat areas to zeros, a hole cannot be told from a black or flat area; `has_empty_block`
finds the zeros that are very likely holes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from ..errors import ImageError

HOLE = 512
"""Consecutive zero bytes that count as a hole; intact AVIF, HEIC, CCITT and PackBits files had at
most 16."""

BLOCK = 4096
"""Bytes in a block, the unit in which file systems and downloads lose data."""

_CCITT_OR_PACKBITS = (2, 3, 4, 32773)
_DEFLATE = (8, 32946)


def refuse_holes(image: Image.Image, contents: bytes) -> None:
    """Raise if part of an image's compressed pixels was lost.

    Args:
        image: the image, with its header read.
        contents: the bytes of its file.

    Raises:
        ImageError: some pixels would be wrong.
    """
    if image.format in ("AVIF", "HEIF"):
        damaged = _hole_in_heif(image, contents)
    elif image.format == "TIFF":
        damaged = any(map(_TIFF_CHECKS.get(_compression(image), _accept), _strips(image, contents)))
    else:
        return
    if damaged:
        raise ImageError(
            "damaged: part of the file was overwritten, as in an interrupted copy or download. "
            "Some pixels would be wrong"
        )


def has_empty_block(contents: bytes) -> bool:
    """Return whether a file has whole blocks of zeros, starting and ending at block boundaries.

    A black area that starts and ends exactly at block boundaries is unlikely: 1 in 4,096 for one
    that reaches the end of the file, far less for others.
    """
    whole = len(contents) // BLOCK
    blocks = np.frombuffer(contents, np.uint8, whole * BLOCK).reshape(whole, BLOCK)
    empty = [False, *np.all(blocks == 0, axis=1).tolist(), False]  # empty[i + 1]: block i
    for i in range(1, whole):
        if not empty[i + 1] or empty[i] or blocks[i - 1, -1] == 0:
            continue  # not zeros, not the first such block, or the zeros begin a block earlier
        end = empty.index(False, i + 1) - 1  # the first block after the zeros
        after = contents[end * BLOCK : (end + 1) * BLOCK]
        if after[:1] != b"\0" or (end == whole and not any(after)):
            return True
    return False


def _hole_in_heif(image: Image.Image, contents: bytes) -> bool:
    """Return whether the box with the pixels has a hole; metadata in the box may contain zeros."""
    for start, end in _boxes(contents, b"mdat"):
        data = contents[start:end]
        if bytes(HOLE) not in data:
            continue
        for key in ("exif", "xmp", "icc_profile"):
            blob = image.info.get(key) or b""
            blob = bytes(blob).removeprefix(b"Exif\0\0") if isinstance(blob, bytes) else b""
            if blob:
                data = data.replace(blob, b"\1" * len(blob))
        if bytes(HOLE) in data:
            return True
    return False


def _boxes(contents: bytes, kind: bytes) -> Iterator[tuple[int, int]]:
    """Yield the start and end of the contents of each top-level box of type ``kind``."""
    position = 0
    while position + 8 <= len(contents):
        length = int.from_bytes(contents[position : position + 4])
        header = 8
        if length == 1:
            length = int.from_bytes(contents[position + 8 : position + 16])
            header = 16
        end = position + length if length else len(contents)
        if end < position + header:
            return
        if contents[position + 4 : position + 8] == kind:
            yield position + header, end
        position = end


def _strips(image: Image.Image, contents: bytes) -> Iterator[bytes]:
    """Yield the compressed strips or tiles of a TIFF."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    for starts, lengths in ((273, 279), (324, 325)):
        if starts in tags and lengths in tags:
            for start, length in zip(tags[starts], tags[lengths], strict=False):
                yield contents[start : start + length]


def _compression(image: Image.Image) -> int:
    tags = image.tag_v2  # type: ignore[attr-defined]
    reversed_bits = tags.get(266, 1) != 1
    kind = tags.get(259, 1)
    return 1 if reversed_bits and kind in _DEFLATE else int(kind)


def _has_hole(strip: bytes) -> bool:
    return bytes(HOLE) in strip


def _is_damaged_deflate(strip: bytes) -> bool:
    """Return whether a strip fails its checksum, which libtiff does not verify."""
    inflater = zlib.decompressobj()
    rest = strip
    try:
        while not inflater.eof:
            inflated = inflater.decompress(rest, 2**20)
            rest = inflater.unconsumed_tail
            if not inflated and not rest:
                break
    except zlib.error:
        return True
    return False


def _accept(strip: bytes) -> bool:
    return False


_TIFF_CHECKS = {
    **dict.fromkeys(_CCITT_OR_PACKBITS, _has_hole),
    **dict.fromkeys(_DEFLATE, _is_damaged_deflate),
}
