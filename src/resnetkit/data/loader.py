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
from .sampling import epoch_order
from .transforms import Augmentation, stack


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
        sampling, repeats: which pictures an epoch of training shows: all, ``shuffled``, or every
            class equally often, ``balanced``; each so often. See `epoch_order`.
    """

    def __init__(
        self,
        pictures: Pictures,
        batch_size: int,
        workers: int,
        *,
        sampling: str = "shuffled",
        repeats: int = 1,
    ) -> None:
        self.pictures, self.batch_size, self.workers = pictures, batch_size, workers
        self.balanced, self.repeats = sampling == "balanced", repeats

    def training_batches(self) -> int:
        """Batches in an epoch of training. A smaller rest waits for an epoch that has it earlier
        in its order; a set smaller than a batch is one batch."""
        return max(1, len(self.pictures) // self.batch_size)

    def training(
        self,
        augmentation: Augmentation,
        size: int,
        seed: int,
        epoch: int,
        first: int = 0,
        last: int | None = None,
    ) -> Iterator[Batch]:
        """The batches of an epoch from the one numbered ``first`` to the one before ``last``:
        f(seed, epoch), at ``size`` pixels."""
        labels = self.pictures.part.labels
        order = epoch_order(labels, seed, epoch, self.batch_size, self.balanced, self.repeats)

        def make(picture: int, copy: int) -> Tensor:
            chance = randomness.for_picture(seed, epoch, picture, copy)
            return augmentation(self.pictures[picture], size, chance)

        count = self.training_batches()
        chunks = np.split(order[: count * self.batch_size], self._cuts(count))
        return self._batches(chunks[first:last], make)

    def evaluation(self) -> Iterator[Batch]:
        """Every picture once, in order, by the evaluation preset."""
        everyone = np.stack([np.arange(len(self.pictures)), np.zeros(len(self.pictures), int)], 1)
        crop = self.pictures.preprocessing.crop
        chunks = np.split(everyone, self._cuts(-(-len(everyone) // self.batch_size)))
        return self._batches(chunks, lambda picture, _: crop(self.pictures[picture]))

    def _cuts(self, batches: int) -> list[int]:
        return [self.batch_size * i for i in range(1, batches)]

    def _batches(
        self, chunks: Iterable[np.ndarray], make: Callable[[int, int], Tensor]
    ) -> Iterator[Batch]:
        """A batch of each chunk: ``(n, 2)``, pictures and their copies."""

        def prepare(chunk: np.ndarray) -> Batch:
            images = stack([make(picture, copy) for picture, copy in chunk.tolist()])
            indices = chunk[:, 0]
            labels = torch.from_numpy(self.pictures.part.labels[indices].astype(np.int64))
            return Batch(images, labels, indices)

        return map_ahead(prepare, chunks, self.workers)
