"""The images that an epoch shows, and their order: f(seed, epoch)."""

from __future__ import annotations

import numpy as np

from .. import randomness


def epoch_order(
    labels: np.ndarray, seed: int, epoch: int, batch_size: int, balanced: bool, repeats: int
) -> np.ndarray:
    """Return the image order for an epoch, which has as many positions as there are images.

    Args:
        labels: ``(n,)``, the class of each image.
        seed: seed of the run.
        epoch: the epoch.
        batch_size: images in a batch.
        balanced: whether to show every class equally often, to within one, at every point in the
            epoch.
        repeats: copies of each image in a batch (repeated augmentation, arXiv:1901.09335). The
            number of different images in an epoch is divided by this.

    Returns:
        ``(n, 2)`` int64: the index of the image at each position, and the number of its copy in
        this epoch.
    """
    if balanced:
        order = _balanced_order(labels, seed, epoch)
    else:
        order = randomness.permutation(seed, epoch, len(labels))
    if repeats > 1:
        order = _with_copies(order, repeats, batch_size)
    return np.stack([order, occurrences(order)], axis=1)


def occurrences(values: np.ndarray) -> np.ndarray:
    """Return how often each value occurred before its position.

    >>> occurrences(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    lengths = np.diff(starts, append=len(values))
    counts = np.empty(len(values), np.int64)
    counts[by_value] = np.arange(len(values)) - np.repeat(starts, lengths)
    return counts


def _balanced_order(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Return rounds of one image per class, in random order within each round.

    Each class goes through its own images in random order, and starts over after the last.
    """
    rng = np.random.Generator(np.random.PCG64(randomness.derive(seed, "balanced", epoch)))
    classes = np.unique(labels)
    rounds = -(-len(labels) // len(classes))
    turns = rng.permuted(np.tile(np.arange(len(classes)), (rounds, 1)), axis=1)
    turns = turns.ravel()[: len(labels)]
    times = occurrences(turns)
    order = np.empty(len(labels), np.int64)
    for number, label in enumerate(classes):
        members = rng.permutation(np.flatnonzero(labels == label))
        positions = turns == number
        order[positions] = members[times[positions] % len(members)]
    return order


def _with_copies(order: np.ndarray, repeats: int, batch_size: int) -> np.ndarray:
    """Return the first images in an order, ``repeats`` times each.

    The copies of an image are in the same batch but not adjacent: mixing blends neighbors, and
    would otherwise blend an image with its own copy.
    """
    copies = np.repeat(order, repeats)[: len(order)]
    batches = np.array_split(copies, range(batch_size, len(copies), batch_size))
    return np.concatenate([batch[turn::repeats] for batch in batches for turn in range(repeats)])
