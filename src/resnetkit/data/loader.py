"""Batches from a split, prepared by worker threads.

Workers are threads because decoding and resizing release the GIL, so threads keep the cores busy.
There is no second interpreter, no shared memory to run out of, and no process that can hang or die.
A batch is f(seed, epoch, position in the epoch), whichever worker prepares it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import randomness
from ..prefetch import prefetch_map
from .dataset import Images
from .remote import read_ahead
from .sampling import epoch_order
from .transforms import Augmentation, stack


@dataclass(frozen=True)
class Batch:
    """A batch on one rank: labels for the whole batch, images for this rank's share.

    Args:
        images: ``(n, C, S, S)`` uint8.
        labels: ``(N,)`` int64, of the whole batch.
        indices: ``(N,)``, indices of the whole batch's images into the split.
        local_indices: positions of ``images`` in the whole batch: a slice over all of it, or one
            rank's share.
        lead: number of images at the start that belong to another rank, and are here only to be
            mixed into the next image.
    """

    images: Tensor
    labels: Tensor
    indices: np.ndarray
    local_indices: np.ndarray | Tensor | slice = field(default_factory=lambda: slice(None))
    lead: int = 0


class Loader:
    """Builds batches from a split's images.

    Args:
        images: the images.
        batch_size: images in a batch, over all ranks.
        workers: threads that prefetch batches; 0 prepares each batch when it is requested.
        rank: index of the share to prepare of each batch; a share is a run of consecutive images.
        ranks: number of shares.
        mixed: whether batches go through `mixing.mix`, which mixes each image with the one before
            it in the whole batch, and the first with the last. A rank then also needs the image
            before its share, so it reads one more image, and no images are sent between ranks.
        sampling: ``shuffled`` shows every image once per epoch, ``balanced`` every class equally
            often. See `epoch_order`.
        repeats: copies of each image in a batch.
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
        self.images = images
        self.batch_size = batch_size
        self.workers = workers
        self.rank = rank
        self.ranks = ranks
        self.mixed = mixed
        self.balanced = sampling == "balanced"
        self.repeats = repeats

    def training_batches(self) -> int:
        """Return the number of batches in an epoch of training.

        Images that do not fill a last batch are dropped, different ones in each epoch. A split that
        is smaller than a batch gives one batch.
        """
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
        """Return batches ``first`` to ``last - 1`` of an epoch, with images of ``size`` pixels.

        The batches are f(seed, epoch).
        """
        order = epoch_order(
            self.images.split.labels,
            seed,
            epoch=epoch,
            batch_size=self.batch_size,
            balanced=self.balanced,
            repeats=self.repeats,
        )
        count = self.training_batches()
        chunks = np.split(order[: count * self.batch_size], self._boundaries(count))
        return self._augmented_batches(
            chunks,
            slice(first, last),
            augmentation=augmentation,
            size=size,
            seed=seed,
            epoch=epoch,
        )

    def _augmented_batches(
        self,
        chunks: list[np.ndarray],
        wanted: slice,
        *,
        augmentation: Augmentation,
        size: int,
        seed: int,
        epoch: int,
    ) -> Iterator[Batch]:
        """Return the ``wanted`` batches of an epoch's ``chunks``."""

        def augment(index: int, copy: int) -> Tensor:
            rng = randomness.image_rng(seed, epoch, index, copy)
            return augmentation(self.images[index], size, rng)

        return self._batches(chunks[wanted], augment)

    def evaluation(self) -> Iterator[Batch]:
        """Return batches with every image once, in order, prepared by the evaluation preset."""
        count = len(self.images)
        order = np.stack([np.arange(count), np.zeros(count, int)], 1)
        chunks = np.split(order, self._boundaries(-(-count // self.batch_size)))
        crop = self.images.preprocessing.crop
        return self._batches(chunks, lambda index, _: crop(self.images[index]))

    def _boundaries(self, batches: int) -> list[int]:
        """Return the positions at which to split an epoch into ``batches``."""
        return [self.batch_size * i for i in range(1, batches)]

    def _batches(
        self, chunks: Iterable[np.ndarray], make_input: Callable[[int, int], Tensor]
    ) -> Iterator[Batch]:
        """Build a batch from each chunk: ``(n, 2)``, the indices of images and of their copies."""

        def make_batch(chunk: np.ndarray) -> Batch:
            indices = chunk[:, 0]
            local_indices, lead = self._local_share(len(indices))
            inputs = [make_input(index, copy) for index, copy in chunk[local_indices].tolist()]
            labels = torch.from_numpy(self.images.split.labels[indices].astype(np.int64))
            return Batch(
                stack(inputs), labels, indices=indices, local_indices=local_indices, lead=lead
            )

        def needed(chunk: np.ndarray) -> list[Path]:
            share, _ = self._local_share(len(chunk))
            return self.images.paths_to_read(chunk[share, 0].tolist())

        return prefetch_map(make_batch, read_ahead(chunks, needed), self.workers)

    def _local_share(self, count: int) -> tuple[np.ndarray | slice, int]:
        """Return this rank's positions in a batch of ``count``, and `Batch.lead`."""
        if self.ranks == 1:
            return slice(None), 0
        own = shares(np.arange(count), self.ranks)[self.rank]
        if not self.mixed:
            return own, 0
        return np.concatenate([(own[:1] - 1) % count, own]), 1


def shares(batch: np.ndarray, ranks: int) -> list[np.ndarray]:
    """Return the share of each rank in a whole batch: consecutive items.

    >>> [share.tolist() for share in shares(np.arange(5), 2)]
    [[0, 1, 2], [3, 4]]
    """
    return np.array_split(batch, ranks)
