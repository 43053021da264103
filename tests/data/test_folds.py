"""Folds, checked against scikit-learn and against what must hold for any folds."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.model_selection import StratifiedGroupKFold

from resnetkit.data.folder import Dataset, Split, pool_validation
from resnetkit.data.folds import assign_folds, merge_groups, split_fold
from resnetkit.errors import DataError
from resnetkit.randomness import derive


def grouped_images(seed, count=150, classes=4):
    """Return labels and groups: most groups are single images, some have up to six."""
    rng = np.random.default_rng(seed)
    labels = []
    groups = []
    while len(labels) < count:
        size = int(rng.choice([1, 1, 1, 1, 2, 6]))
        label = int(rng.integers(classes))
        labels += [label] * size
        groups += [f"{rng.integers(2**32):08x}"] * size
    return np.array(labels, np.int32), groups


NAMES = ["ant", "bee", "cat", "dog"]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("folds", [2, 3, 5])
def test_each_image_is_in_one_fold_and_no_group_in_two(seed, folds):
    labels, groups = grouped_images(seed)
    found = assign_folds(labels, groups, NAMES, folds, seed)
    assert set(found.tolist()) == set(range(1, folds + 1))
    fold_by_group = dict(zip(groups, found.tolist(), strict=True))
    assert [fold_by_group[group] for group in groups] == found.tolist()
    for label in range(len(NAMES)):  # stratified, give or take one group
        counts = np.bincount(found[labels == label], minlength=folds + 1)[1:]
        assert counts.max() - counts.min() <= 6

    # Each image is held out exactly once.
    whole = Split(".", [f"{i}.png" for i in range(len(labels))], labels)
    held_out = []
    for number in range(1, folds + 1):
        parts = split_fold(whole, NAMES, groups, (number, folds), seed)
        assert sorted([*parts["train"].paths, *parts["val"].paths]) == sorted(whole.paths)
        held_out += parts["val"].paths
    assert sorted(held_out) == sorted(whole.paths)


def scikit_learns_folds(labels, groups, folds, seed):
    """Return the folds from StratifiedGroupKFold, with the groups in our order."""
    names = sorted(set(groups))
    rng = np.random.Generator(np.random.PCG64(derive(seed, "folds")))
    places = dict(zip(names, rng.permutation(len(names)).tolist(), strict=True))
    numbers = np.array([places[group] for group in groups])
    order = np.lexsort((labels, numbers))  # sums in another order may differ in the last bit
    found = np.zeros(len(labels), int)
    parts = StratifiedGroupKFold(folds).split(order, labels[order], numbers[order])
    for number, (_, test) in enumerate(parts, 1):
        found[order[test]] = number
    return found


@pytest.mark.parametrize("seed", [0, 7, 11])
@pytest.mark.parametrize(("folds", "classes"), [(2, 2), (5, 4), (3, 30)])
def test_the_folds_are_scikit_learns(seed, folds, classes, monkeypatch):
    monkeypatch.setattr("resnetkit.data.folds.TABLE", 100)  # several pieces
    labels, groups = grouped_images(seed, count=500, classes=classes)
    groups[::40] = groups[1::40]  # some groups have several classes
    names = [f"class {i}" for i in range(classes)]
    found = assign_folds(labels, groups, names, folds, seed)
    assert found.tolist() == scikit_learns_folds(labels, groups, folds, seed).tolist()


def test_memory_does_not_grow_with_images_times_classes(monkeypatch):
    count, classes = 2000, 500  # a full table at 8 bytes per entry would take 8 MB
    labels = np.arange(count, dtype=np.int32) % classes
    groups = [f"{i:08x}" for i in range(count)]
    names = [f"class {i}" for i in range(classes)]
    monkeypatch.setattr("resnetkit.data.folds.TABLE", 10 * classes)
    tracemalloc.start()
    try:
        assign_folds(labels, groups, names, 2, 0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * count * classes / 2


def test_the_order_of_the_images_does_not_matter_and_the_seed_does():
    labels, groups = grouped_images(3)
    found = assign_folds(labels, groups, NAMES, 5, 3)
    order = np.random.default_rng(0).permutation(len(labels))
    shuffled = assign_folds(labels[order], [groups[i] for i in order], NAMES, 5, 3)
    assert shuffled.tolist() == found[order].tolist()
    assert assign_folds(labels, groups, NAMES, 5, 4).tolist() != found.tolist()


def test_a_group_holds_all_that_are_connected_and_its_name_is_the_smallest():
    # "a" is an exact copy in two classes; in one of them it looks like "c", in the other like "b".
    digests = ["a", "c", "a", "b", "d"]
    together = ["a", "a", "a", "a", "d"]
    assert merge_groups(digests, together) == ["a", "a", "a", "a", "d"]
    chained = merge_groups(["e", "d", "c", "b"], ["e", "e", "d", "c"])
    assert chained == ["b"] * 4
    assert merge_groups(["b", "c", "d", "e"], ["c", "d", "e", "e"]) == ["b"] * 4


def test_a_class_with_too_few_different_images_names_the_greatest_possible_number():
    labels = np.array([0] * 6 + [1] * 5, np.int32)
    groups = [*"abcdef", *"ghiii"]
    with pytest.raises(DataError) as error:
        assign_folds(labels, groups, ["rose", "tulip"], 4, 0)
    assert str(error.value) == (
        "Class 'tulip' has only 3 different images (5 with exact and near duplicates, which stay "
        "in one fold), too few for 4 folds: each fold needs one of every class. Use --folds 3, or "
        "add images to it, or remove the class"
    )
    assert set(assign_folds(labels, groups, ["rose", "tulip"], 3, 0).tolist()) == {1, 2, 3}
    with pytest.raises(DataError, match=r"'tulip' has only 1 different image, .* Add images"):
        assign_folds(labels[:7], groups[:7], ["rose", "tulip"], 2, 0)


def test_no_fold_may_have_all_images_of_a_class():
    """Copies in several classes tie those classes together, so that stratifying them can fail."""
    labels = np.array([2, 0, 1, 0, 2, 1], np.int32)
    with pytest.raises(DataError, match=r"All images of class 'y' are in fold 1.*resnet check"):
        assign_folds(labels, ["d", "d", "e", "c", "c", "c"], ["x", "y", "z"], 2, 0)


def test_train_and_val_become_one_split():
    train = Split("root", ["a.png", "b.png"], np.array([0, 1], np.int32))
    val = Split("root", ["c.png"], np.array([1], np.int32))
    test = Split("root", ["d.png"], np.array([0], np.int32))
    dataset = Dataset("root", ("x", "y"), {"train": train, "val": val, "test": test})
    pooled = pool_validation(dataset)
    assert list(pooled.splits) == ["train", "test"]
    assert list(pooled.splits["train"].paths) == ["a.png", "b.png", "c.png"]
    assert pooled.splits["train"].labels.tolist() == [0, 1, 1]
    assert pool_validation(pooled) is pooled
