from __future__ import annotations

import numpy as np

from resnetkit import randomness


def test_derive_tells_its_parts_apart():
    values = {
        randomness.derive(*parts)
        for parts in [(0,), (1,), (0, 0), (0, 1), ("0",), ("a", "b"), ("ab",), ("a", 1), ("a1",)]
    }
    assert len(values) == 9
    assert all(0 <= value < 2**63 for value in values)


def test_order_is_a_permutation_that_changes_with_seed_and_epoch():
    orders = [randomness.permutation(seed, epoch, 50) for seed in (0, 1) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order) == list(range(50))
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(orders[0], randomness.permutation(0, 0, 50))


def test_recorded_values():
    """A change here changes every run that was ever recorded."""
    assert randomness.derive(3, "picture", 1, 7, 0) == 8301898058821751976
    assert randomness.permutation(0, 1, 8).tolist() == [7, 4, 2, 0, 1, 6, 5, 3]
    assert randomness.image_rng(0, 1, 2).random() == 0.974452706295808
