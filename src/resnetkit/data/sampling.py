"""Which pictures an epoch shows, and in which order: f(seed, epoch)."""

from __future__ import annotations

import numpy as np

from .. import randomness


def epoch_order(
    labels: np.ndarray, seed: int, epoch: int, batch_size: int, balanced: bool, repeats: int
) -> np.ndarray:
    """As many places as there are pictures.

    Args:
        labels: ``(n,)``, the class of each picture.
        balanced: show every class equally often, to within one, in every stretch of the epoch.
        repeats: show a picture so often, within a batch, and the fewer pictures in an epoch:
            repeated augmentation, arXiv:1901.09335.

    Returns:
        ``(n, 2)`` int64: the picture at each place, and which of its copies in this epoch it is.
    """
    order = (
        _balanced(labels, seed, epoch) if balanced else randomness.order(seed, epoch, len(labels))
    )
    if repeats > 1:
        order = _repeated(order, repeats, batch_size)
    return np.stack([order, occurrences(order)], axis=1)


def occurrences(values: np.ndarray) -> np.ndarray:
    """For each value, how often it stands further left.

    >>> occurrences(np.array([7, 3, 7, 7, 3])).tolist()
    [0, 0, 1, 2, 1]
    """
    by_value = np.argsort(values, kind="stable")
    ordered = values[by_value]
    starts = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))
    lengths = np.diff(starts, append=len(values))
    found = np.empty(len(values), np.int64)
    found[by_value] = np.arange(len(values)) - np.repeat(starts, lengths)
    return found


def _balanced(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """Round after round of one picture of every class; each class goes through its own pictures
    in a random order, and begins again where it has no more."""
    rng = np.random.Generator(np.random.PCG64(randomness.derive(seed, "balanced", epoch)))
    classes = np.unique(labels)
    rounds = -(-len(labels) // len(classes))
    turns = rng.permuted(np.tile(np.arange(len(classes)), (rounds, 1)), axis=1)
    turns = turns.ravel()[: len(labels)]
    times = occurrences(turns)
    order = np.empty(len(labels), np.int64)
    for number, label in enumerate(classes):
        own, here = rng.permutation(np.flatnonzero(labels == label)), turns == number
        order[here] = own[times[here] % len(own)]
    return order


def _repeated(order: np.ndarray, repeats: int, batch_size: int) -> np.ndarray:
    """The first pictures ``repeats`` times each. In a batch the copies of one do not stand side by
    side: mixing takes the neighbour, which would be the same picture."""
    copies = np.repeat(order, repeats)[: len(order)]
    batches = np.array_split(copies, range(batch_size, len(copies), batch_size))
    return np.concatenate([batch[turn::repeats] for batch in batches for turn in range(repeats)])
