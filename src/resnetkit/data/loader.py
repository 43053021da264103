"""Order, workers, batches.

Workers are threads: decoding and resizing leave Python's lock, so they keep the cores busy, and
there is no copy of the interpreter, no shared memory to run out of, no process to hang or to die.
A batch is f(seed, epoch, its place in the epoch), whoever prepares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .. import randomness
from ..runtime import map_ahead
from .cache import Pictures
from .transforms import Augmentation, empty_batch


@dataclass(frozen=True)
class Batch:
    """``images`` (n, 3, S, S) uint8, ``labels`` (n,) int64, ``indices`` (n,) into the part."""

    images: Tensor
    labels: Tensor
    indices: np.ndarray


class Loader:
    """Makes batches of a part's pictures.

    Args:
        pictures: the source.
        batch_size: pictures in a batch.
        workers: threads that prepare batches ahead; 0 prepares each when it is asked for.
    """

    def __init__(self, pictures: Pictures, batch_size: int, workers: int) -> None:
        self.pictures, self.batch_size, self.workers = pictures, batch_size, workers

    def training_batches(self) -> int:
        """Batches in an epoch of training. A smaller rest waits for an epoch that has it earlier
        in its order; a set smaller than a batch is one batch."""
        return max(1, len(self.pictures) // self.batch_size)

    def training(
        self, augmentation: Augmentation, size: int, seed: int, epoch: int, first: int = 0
    ) -> Iterator[Batch]:
        """The batches of an epoch from the one numbered ``first``: f(seed, epoch), at ``size``
        pixels."""
        order = randomness.order(seed, epoch, len(self.pictures))

        def make(picture: int, row: Tensor) -> None:
            chance = randomness.for_picture(seed, epoch, picture)
            augmentation(self.pictures[picture], size, chance, out=row)

        count = self.training_batches()
        chunks = np.split(order[: count * self.batch_size], self._cuts(count))
        return self._batches(chunks[first:], size, make)

    def evaluation(self) -> Iterator[Batch]:
        """Every picture once, in order, by the evaluation preset."""
        everyone = np.arange(len(self.pictures))
        preprocessing = self.pictures.preprocessing

        def make(picture: int, row: Tensor) -> None:
            row[0].copy_(preprocessing.crop(self.pictures[picture]))

        chunks = np.split(everyone, self._cuts(-(-len(everyone) // self.batch_size)))
        return self._batches(chunks, preprocessing.crop_size, make)

    def _cuts(self, batches: int) -> list[int]:
        return [self.batch_size * i for i in range(1, batches)]

    def _batches(
        self, chunks: Iterable[np.ndarray], size: int, make: Callable[[int, Tensor], None]
    ) -> Iterator[Batch]:
        """``make`` writes a picture, given by its index, into a row ``(1, 3, size, size)``."""

        def prepare(indices: np.ndarray) -> Batch:
            images = empty_batch(len(indices), size)
            for i, index in enumerate(indices.tolist()):
                make(index, images[i : i + 1])
            labels = torch.from_numpy(self.pictures.part.labels[indices].astype(np.int64))
            return Batch(images, labels, indices)

        return map_ahead(prepare, chunks, self.workers)
