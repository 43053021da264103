"""Decode once: the working pixels of every picture, kept in memory as far as it reaches.

What is kept is a function of the file and the working size; no random result ever is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import DataError, PictureError
from ..runtime import available_memory, map_ahead
from .folder import Part
from .transforms import Preprocessing

RAM_SHARE = 0.4
"""The most of the available memory that the pixels take."""


@dataclass
class Pictures:
    """The pictures of a part, as working pixels.

    Args:
        part: which pictures.
        preprocessing: says how they are decoded.
    """

    part: Part
    preprocessing: Preprocessing
    _kept: dict[int, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.part)

    def __getitem__(self, index: int) -> np.ndarray:
        """``(H, W, 3)`` uint8, from memory where it is kept.

        Raises:
            PictureError: the file cannot be read.
        """
        kept = self._kept.get(index)
        return self.preprocessing.pixels(self.part.path(index)) if kept is None else kept

    def labels(self) -> Tensor:
        """``(n,)`` int64."""
        return torch.from_numpy(self.part.labels.astype(np.int64))

    def keep(self, index: int, pixels: np.ndarray) -> None:
        """Keep the working pixels of a picture in memory."""
        self._kept[index] = pixels

    def select(self, part: Part) -> Pictures:
        """The same for some of these pictures, sharing what is kept.

        Raises:
            KeyError: ``part`` has a picture that is not among these.
        """
        index = {path: i for i, path in enumerate(self.part.paths)}
        positions = [index[path] for path in part.paths]
        kept = {new: self._kept[old] for new, old in enumerate(positions) if old in self._kept}
        return Pictures(part, self.preprocessing, kept)


@dataclass(frozen=True)
class Scan:
    """What reading every picture of a part once found."""

    pictures: Pictures
    digests: list[str]
    """16 hex digits of the BLAKE2b of each file's contents; empty where it could not be read."""
    unreadable: dict[int, str]
    """What is wrong, by index."""


def scan(
    part: Part, preprocessing: Preprocessing, workers: int, advance: Callable[[str], None]
) -> Scan:
    """Read, hash and decode every picture once, in threads; call ``advance`` after each.

    The pixels are kept until they fill `RAM_SHARE` of the available memory.
    """
    pictures = Pictures(part, preprocessing)
    digests, unreadable = [""] * len(part), {}
    budget = int(available_memory() * RAM_SHARE)

    def read(index: int) -> tuple[str, np.ndarray | PictureError]:
        path = part.path(index)
        try:
            contents = path.read_bytes()
            return digest(contents), preprocessing.pixels(contents)
        except OSError as error:
            return "", PictureError(f"{path}: {error.strerror or error}")
        except PictureError as error:
            return "", PictureError(str(error).replace("the picture", str(path), 1))

    for index, (name, pixels) in enumerate(map_ahead(read, range(len(part)), workers)):
        digests[index] = name
        if isinstance(pixels, PictureError):
            unreadable[index] = str(pixels)
        elif pixels.nbytes <= budget:
            budget -= pixels.nbytes
            pictures.keep(index, pixels)
        advance("")
    return Scan(pictures, digests, unreadable)


def digest(contents: bytes) -> str:
    """16 hex digits that name a file by its contents."""
    return hashlib.blake2b(contents, digest_size=8).hexdigest()


def file_digest(path: Path) -> str:
    """`digest` of a file."""
    return digest(path.read_bytes())


def check_readable(scans: dict[str, Scan]) -> None:
    """Refuse to go on with pictures that cannot be read, and name them all.

    Raises:
        DataError: there are some.
    """
    broken = [text for found in scans.values() for text in found.unreadable.values()]
    if broken:
        raise DataError(
            f"{len(broken)} picture(s) cannot be read:\n  "
            + "\n  ".join(broken)
            + "\nRepair or remove them, or train without them: --set on_error=skip"
        )
