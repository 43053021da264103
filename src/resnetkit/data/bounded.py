"""Bound the work that a file can cause before it is refused."""

from __future__ import annotations

from typing import Any, BinaryIO

from ..errors import ImageError

STEPS = 100_000
"""Maximum number of steps for parsing a header. Large photos with a lot of metadata need a few
thousand."""

BYTES_PER_STEP = 64
"""Each time this many bytes have been read, one more step is allowed."""

_COSTLY = STEPS // 50
_SEGMENT = 65533  # bytes in the largest JPEG segment


class BoundedFile:
    """A file that can be read only in a limited number of steps.

    Pillow parses headers in Python: millions of empty segments, chunks or comments in a small file
    would keep it busy for minutes.

    Attributes:
        is_bounded: whether steps are counted.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = STEPS
        self.is_bounded = True

    def read(self, size: int = -1) -> bytes:
        """Read bytes.

        Raises:
            ImageError: there were too many steps.
        """
        data = self._file.read(size)
        if self.is_bounded:
            self._left += len(data) // BYTES_PER_STEP - _steps(data)
            if self._left < 0:
                raise ImageError(
                    "its header has too many segments, chunks or comments to be intact. If another "
                    "program opens the image, save it again from there"
                )
        return data

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of the file."""
        return getattr(self._file, name)


def _steps(data: bytes) -> int:
    """Return how many steps it takes to parse this part of a header."""
    # For each EXIF segment, Pillow copies all earlier ones. It decompresses each color profile.
    if data.startswith(b"Exif\0\0") or data[4:] == b"iCCP":
        return _COSTLY
    # Pillow parses each resource in a Photoshop segment.
    return 1 + data.count(b"8BIM") if len(data) <= _SEGMENT else 1
