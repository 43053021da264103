"""Order, workers, batches.

Workers are threads: decoding and resizing leave Python's lock, so they keep the cores busy, and
there is no copy of the interpreter, no shared memory to run out of, no process to hang or to die.
A batch is f(seed, epoch, its place in the epoch), whoever prepares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from .. import randomness
from ..prefetch import prefetch_map
from .cache import Images
from .sampling import epoch_order
from .transforms import Augmentation, stack


@dataclass(frozen=True)
class Batch:
    """``labels`` (N,) int64 and ``indices`` (N,) into the part are those of the whole batch;
    ``images`` (n, C, S, S) uint8 are at its ``places``: all of it, or one rank's share. The first
    ``lead`` of them belong to another rank and are here only to be mixed into the next."""

    images: Tensor
    labels: Tensor
    indices: np.ndarray
    local_indices: np.ndarray | Tensor | slice = field(default_factory=lambda: slice(None))
    lead: int = 0


class Loader:
    """Makes batches of a part's pictures.

    Args:
        pictures: the source.
        batch_size: pictures in a batch.
        workers: threads that prepare batches ahead; 0 prepares each when it is asked for.
        sampling, repeats: which pictures an epoch of training shows: all, ``shuffled``, or every
            class equally often, ``balanced``; each so often. See `epoch_order`.
        rank, ranks: which share of each batch to make, and of how many: consecutive pictures.
        mixed: whether `mixing.mix` follows. It mixes each picture with the one before it in the
            whole batch (before the first comes the last), so that a rank also needs the picture
            before its share: one more to read, instead of pictures sent between ranks in each step.
    """

    def __init__(
        self,
        images: Images,
        batch_size: int,
        workers: int,
        rank: int = 0,
        ranks: int = 1,
        mixed: bool = False,
        *,
        sampling: str = "shuffled",
        repeats: int = 1,
    ) -> None:
        self.balanced, self.repeats = sampling == "balanced", repeats
        self.images, self.batch_size, self.workers = images, batch_size, workers
        self.rank, self.ranks, self.mixed = rank, ranks, mixed

    def training_batches(self) -> int:
        """Batches in an epoch of training. A smaller rest waits for an epoch that has it earlier
        in its order; a set smaller than a batch is one batch."""
        return max(1, len(self.images) // self.batch_size)

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
        labels = self.images.split.labels
        order = epoch_order(labels, seed, epoch, self.batch_size, self.balanced, self.repeats)
        count = self.training_batches()
        chunks = np.split(order[: count * self.batch_size], self._cuts(count))
        return self._augmented(chunks, slice(first, last), augmentation, size, seed, epoch)

    def _augmented(
        self,
        chunks: list[np.ndarray],
        wanted: slice,
        augmentation: Augmentation,
        size: int,
        seed: int,
        epoch: int,
    ) -> Iterator[Batch]:
        """The ``wanted`` ones of an epoch's batches."""

        def make(image: int, copy: int) -> Tensor:
            rng = randomness.for_image(seed, epoch, image, copy)
            return augmentation(self.images[image], size, rng)

        return self._batches(chunks[wanted], make)

    def evaluation(self) -> Iterator[Batch]:
        """Every picture once, in order, by the evaluation preset."""
        everyone = np.stack([np.arange(len(self.images)), np.zeros(len(self.images), int)], 1)
        crop = self.images.preprocessing.crop
        chunks = np.split(everyone, self._cuts(-(-len(everyone) // self.batch_size)))
        return self._batches(chunks, lambda image, _: crop(self.images[image]))

    def _cuts(self, batches: int) -> list[int]:
        return [self.batch_size * i for i in range(1, batches)]

    def _batches(
        self, chunks: Iterable[np.ndarray], make: Callable[[int, int], Tensor]
    ) -> Iterator[Batch]:
        """A batch of each chunk: ``(n, 2)``, pictures and their copies."""

        def prepare(chunk: np.ndarray) -> Batch:
            indices = chunk[:, 0]
            local_indices, lead = self._share(len(indices))
            images = stack([make(image, copy) for image, copy in chunk[local_indices].tolist()])
            labels = torch.from_numpy(self.images.split.labels[indices].astype(np.int64))
            return Batch(images, labels, indices, local_indices, lead)

        return prefetch_map(prepare, chunks, self.workers)

    def _share(self, count: int) -> tuple[np.ndarray | slice, int]:
        """Places of this rank's pictures in a batch of ``count``; how many are only mixed in."""
        if self.ranks == 1:
            return slice(None), 0
        own = shares(np.arange(count), self.ranks)[self.rank]
        if not self.mixed:
            return own, 0
        return np.concatenate([(own[:1] - 1) % count, own]), 1


def shares(batch: np.ndarray, ranks: int) -> list[np.ndarray]:
    """A whole batch cut into the share of each rank.

    >>> [share.tolist() for share in shares(np.arange(5), 2)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(batch, ranks)
