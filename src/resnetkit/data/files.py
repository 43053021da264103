"""A path -> the bytes of a file, up to a size limit. Never blocks on pipes or devices.

A path that leads into a folder of shards names the image with that path in the shards; see
`data.shards`. A path that begins with ``s3://`` or ``gs://`` names an object in a store; see
`data.remote`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import DataError, ImageError
from ..prefetch import reading
from .paths import object_url, shown

MAX_BYTES = 2**29
"""Larger files are rejected without being read. 178 million uncompressed pixels still fit."""

_SPECIAL_FILES = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read_file(path: Path, name: str | None = None) -> bytes:
    """Return all bytes of a file.

    Args:
        path: the file.
        name: name of the file for error messages; by default its path.

    Raises:
        ImageError: the file does not exist, cannot be read, is too large, or is not a regular
            file.
    """
    name = shown(path) if name is None else name
    with reading(shown(path)), open_file(path, name) as file:
        try:
            return file.read()
        except (OSError, MemoryError) as error:
            raise ImageError(f"{name}: {_reason(error)}", passing=True) from error


def open_file(path: Path, name: str | None = None) -> BinaryIO:
    """Open a file for reading.

    Takes the same arguments as `read_file`, and raises the same errors.
    """
    name = shown(path) if name is None else name
    if object_url(path) is not None:
        from . import remote  # only objects in stores need it

        return remote.open_image(path, name)
    try:
        status = os.stat(path)  # before opening, which would block on a pipe
        special = _SPECIAL_FILES.get(stat.S_IFMT(status.st_mode))
        if special is not None:
            raise ImageError(f"{name}: it is {special}; expected an image file")
        if status.st_size > MAX_BYTES:
            raise ImageError(f"{name}: it has {status.st_size:,} bytes; the limit is {MAX_BYTES:,}")
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, DataError):
            raise
        is_missing = isinstance(error, FileNotFoundError)
        # A path in shards may be longer than this disk allows.
        if is_missing or getattr(error, "errno", None) == errno.ENAMETOOLONG:
            from . import shards  # only images in shards need it

            image = shards.open_image(path, name)
            if image is not None:
                return image
        hint = _other_suffix(path) if is_missing else ""
        raise ImageError(f"{name}: {_reason(error)}{hint}", passing=True) from error


def _other_suffix(path: Path) -> str:
    """Return a hint about a file that differs only in its suffix: lists often say .jpg for .JPG."""
    suffixes = [suffix for name in (".jpg", ".jpeg", ".png") for suffix in (name, name.upper())]
    for suffix in (path.suffix.lower(), path.suffix.upper(), *suffixes):
        other = path.with_suffix(suffix)
        if other.name != path.name and os.path.exists(other):
            return f" (but {other.name} exists)"
    return ""


def digest(contents: bytes) -> str:
    """Return 16 hex digits of the BLAKE2b hash of a file's contents."""
    return hashlib.blake2b(contents, digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """Return the `digest` of a file.

    Raises:
        ImageError: the file cannot be read.
    """
    return digest(read_file(path))


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory to read it"
    return getattr(error, "strerror", None) or str(error)
