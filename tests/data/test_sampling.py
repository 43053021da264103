from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from resnetkit import randomness
from resnetkit.data.sampling import epoch_order, occurrences

LABELS = np.repeat([0, 1, 2, 4], [50, 3, 20, 7])  # class 3 has no images


def order(seed=0, epoch=1, batch_size=8, balanced=False, repeats=1):
    return epoch_order(LABELS, seed, epoch, batch_size, balanced, repeats)


def test_shuffled_is_the_permutation_of_the_epoch():
    rows = order()
    assert rows[:, 0].tolist() == randomness.permutation(0, 1, 80).tolist()
    assert not rows[:, 1].any()


@pytest.mark.parametrize("changes", [{"balanced": True}, {"repeats": 4}])
def test_it_is_a_function_of_seed_and_epoch(changes):
    assert np.array_equal(order(**changes), order(**changes))
    for other in ({"seed": 1}, {"epoch": 2}):
        assert not np.array_equal(order(**changes), order(**changes, **other))


def test_balanced_shows_every_class_equally_often_at_every_point():
    rows = order(balanced=True)
    assert len(rows) == 80
    shown = LABELS[rows[:, 0]]
    for length in range(1, 81):
        counts = [int((shown[:length] == label).sum()) for label in (0, 1, 2, 4)]
        assert max(counts) - min(counts) <= 1
    for label, own in ((0, 50), (1, 3), (2, 20), (4, 7)):
        times = Counter(rows[shown == label, 0].tolist())
        assert len(times) == min(own, 20)  # every image in a small class
        assert max(times.values()) - min(times.values()) <= 1
    first = [LABELS[order(balanced=True, epoch=epoch)[0, 0]] for epoch in range(40)]
    assert set(first) == {0, 1, 2, 4}


def test_copies_are_numbered():
    for changes in ({"balanced": True}, {"repeats": 3}, {"balanced": True, "repeats": 2}):
        rows = order(**changes)
        assert len({tuple(row) for row in rows.tolist()}) == 80
    values = np.array([5, 5, -1, 5, 0, -1])
    assert occurrences(values).tolist() == [0, 1, 0, 2, 0, 1]
    assert occurrences(np.array([], np.int64)).tolist() == []


@pytest.mark.parametrize("repeats", [2, 4])
def test_copies_share_a_batch_and_are_never_neighbors(repeats):
    rows = order(repeats=repeats)
    plain = order()[:, 0]
    for number in range(10):
        batch = rows[8 * number : 8 * number + 8]
        each = 8 // repeats
        expected = plain[number * each : number * each + each]
        assert Counter(batch[:, 0].tolist()) == dict.fromkeys(expected.tolist(), repeats)
        assert (batch[:, 0] != np.roll(batch[:, 0], 1)).all()


def test_copies_that_do_not_fill_a_batch():
    rows = epoch_order(LABELS, 0, 0, 7, False, 4)
    assert len(rows) == 80
    assert Counter(rows[:, 0].tolist()) == dict.fromkeys(randomness.permutation(0, 0, 80)[:20], 4)
    assert len(epoch_order(LABELS, 0, 0, 500, False, 3)) == 80
