from __future__ import annotations

import pytest

from resnetkit.data import folder
from resnetkit.data.split import split_dataset
from resnetkit.errors import DataError


def make_dataset(tmp_path, per_class):
    for name, count in per_class.items():
        (tmp_path / name).mkdir()
        for i in range(count):
            (tmp_path / name / f"{i}.png").write_bytes(b"x")
    return folder.read_dataset(tmp_path)


def test_split_is_stratified_and_a_function_of_the_seed(tmp_path):
    data = make_dataset(tmp_path, {"a": 40, "b": 20})
    digests = [str(i) for i in range(60)]
    splits = split_dataset(data.splits["all"], data.classes, digests, 0.15, seed=1)
    assert splits["val"].counts(2) == [6, 3]
    assert set(splits["train"].paths) | set(splits["val"].paths) == set(data.splits["all"].paths)
    again = split_dataset(data.splits["all"], data.classes, digests, 0.15, seed=1)
    assert list(again["val"].paths) == list(splits["val"].paths)
    other = split_dataset(data.splits["all"], data.classes, digests, 0.15, seed=2)
    assert list(other["val"].paths) != list(splits["val"].paths)


def test_split_keeps_duplicates_together(tmp_path):
    data = make_dataset(tmp_path, {"a": 30, "b": 30})
    digests = [str(i // 3) for i in range(60)]  # each image three times
    for seed in range(5):
        splits = split_dataset(data.splits["all"], data.classes, digests, 0.2, seed)
        by_path = dict(zip(data.splits["all"].paths, digests, strict=True))
        train, val = ({by_path[p] for p in splits[name].paths} for name in ("train", "val"))
        assert not train & val
        assert splits["val"].counts(2) == [6, 6]


def test_a_class_needs_two_different_images(tmp_path):
    data = make_dataset(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(DataError, match="Class 'b' has only one image"):
        split_dataset(data.splits["all"], data.classes, ["1", "2", "3", "4", "4", "4"], 0.2, 0)


def test_a_class_of_copies_of_another_is_an_error(tmp_path):
    data = make_dataset(tmp_path, {"a": 3, "b": 3})
    with pytest.raises(DataError, match="Class 'b' has no images of its own"):
        split_dataset(data.splits["all"], data.classes, ["1", "2", "3", "1", "2", "3"], 0.2, 0)
