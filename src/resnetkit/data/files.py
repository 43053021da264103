"""A path -> the bytes of a file: an ordinary one, of a bounded size. Never waits for anybody."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from ..errors import ImageError
from ..prefetch import reading

MAX_BYTES = 2**29
"""A larger file is refused unread: 178 million pixels fit into it uncompressed."""

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def read(path: Path, name: str | None = None) -> bytes:
    """All bytes of the file.

    Args:
        name: what messages call it; by default its path.

    Raises:
        PictureError: it is not there, cannot be read, is too large, or is no file.
    """
    called = str(path) if name is None else name
    with reading(str(path)), open_file(path, called) as file:
        try:
            return file.read()
        except (OSError, MemoryError) as error:
            raise ImageError(f"{called}: {_why(error)}", passing=True) from error


def open_file(path: Path, name: str | None = None) -> BinaryIO:
    """The file, opened for reading; as `read`."""
    called = str(path) if name is None else name
    try:
        found = os.stat(path)  # before opening, which waits for the writer of a pipe
        kind = _KINDS.get(stat.S_IFMT(found.st_mode))
        if kind is not None:
            raise ImageError(f"{called}: is {kind}; expected a picture's file")
        if found.st_size > MAX_BYTES:
            raise ImageError(
                f"{called}: has {found.st_size:,} bytes; at most {MAX_BYTES:,} are read"
            )
        return path.open("rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{called}: {_why(error)}", passing=True) from error


def _why(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "there is not enough memory to read it"
    return getattr(error, "strerror", None) or str(error)
