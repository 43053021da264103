"""The images in one split, as working pixels: decoded on request, or taken from a cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ImageError
from ..prefetch import prefetch_map
from . import decode
from .folder import Split
from .pixels import Pixels
from .preprocessing import Preprocessing
from .remote import in_order


@dataclass(frozen=True)
class Images:
    """The images in a split, as working pixels.

    Args:
        split: paths and labels of the images.
        preprocessing: how the images are decoded.
        kept: cached pixels; None to decode an image each time it is requested.
        rows: ``(n,)`` int64, the row of each image in ``kept``; None if row i is image i.
    """

    split: Split
    preprocessing: Preprocessing
    kept: Pixels | None = None
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> np.ndarray:
        """Return ``(H, W, C)`` uint8: read-only cached pixels, or freshly decoded ones.

        Raises:
            ImageError: the file cannot be read.
        """
        if self.kept is not None:
            row = index if self.rows is None else int(self.rows[index])
            pixels = self.kept.get(row)
            if pixels is not None:
                return pixels
        return self.preprocessing.pixels(self.split.path(index))

    def paths_to_read(self, indices: Iterable[int]) -> list[Path]:
        """Return the paths of the images that are in an object store and not cached."""
        if not self.split.is_remote:
            return []
        rows = ((i, i if self.rows is None else int(self.rows[i])) for i in indices)
        return [
            self.split.path(index)
            for index, row in rows
            if self.kept is None or self.kept.get(row) is None
        ]

    def labels(self) -> Tensor:
        """Return the labels, ``(n,)`` int64."""
        return torch.from_numpy(self.split.labels.astype(np.int64))

    def select(self, split: Split) -> Images:
        """Return the images in ``split``, a subset of these images; they share the cached pixels.

        Raises:
            KeyError: ``split`` has an image that is not one of these images.
        """
        index = {path: i for i, path in enumerate(self.split.paths)}
        rows = np.fromiter((index[path] for path in split.paths), np.int64, len(split))
        if self.rows is not None:
            rows = self.rows[rows]
        return Images(split, self.preprocessing, kept=self.kept, rows=rows)


def image_sizes(split: Split, indices: Iterable[int], workers: int = 1) -> list[tuple[int, int]]:
    """Return the width and height of some images, read from their headers.

    Images that cannot be read are left out; `cache.scan` reports them.
    """

    def size_or_none(index: int) -> tuple[int, int] | None:
        try:
            return decode.image_size(split.path(int(index)))
        except ImageError:
            return None

    sizes = prefetch_map(size_or_none, in_order(split, indices), workers)
    return [size for size in sizes if size is not None]


def are_all_gray(split: Split) -> bool:
    """Return whether all readable images in a split are stored as grayscale.

    Only headers are read, up to the first color image.
    """
    gray = 0
    for index in in_order(split):
        try:
            if not decode.is_gray(split.path(index)):
                return False
        except ImageError:
            continue
        gray += 1
    return gray > 0


def find_see_through(split: Split, indices: Iterable[int], workers: int = 1) -> list[str]:
    """Return the paths of the given images that have transparent pixels."""

    def path_if_see_through(index: int) -> str | None:
        try:
            return split.paths[index] if decode.is_see_through(split.path(index)) else None
        except ImageError:
            return None

    paths = prefetch_map(path_if_see_through, [int(index) for index in indices], workers)
    return [path for path in paths if path is not None]
