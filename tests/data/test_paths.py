from __future__ import annotations

import os
import pickle
import tracemalloc

import numpy as np
import pytest

from resnetkit.data.paths import Paths

NAMES = ["a/1.png", "", "b/été.jpg", os.fsdecode(b"c/\xff\xfe.png"), "猫/😀.webp"]


def test_paths_behave_like_a_list():
    paths = Paths(NAMES)
    assert list(paths) == [paths[i] for i in range(5)] == NAMES
    assert [paths[-i] for i in range(1, 6)] == NAMES[::-1]
    assert paths[np.int64(2)] == NAMES[2]
    for cut in (slice(1, 3), slice(None, None, -2), slice(9, 12), slice(-2, None)):
        assert list(paths[cut]) == NAMES[cut]
    assert list(paths.take(np.array([4, 0, 4]))) == [NAMES[4], NAMES[0], NAMES[4]]
    assert "b/été.jpg" in paths
    assert paths.index("b/été.jpg") == 2
    for beyond in (5, -6):
        with pytest.raises(IndexError, match=f"path {beyond} of 5"):
            paths[beyond]


def test_append_and_extend():
    paths = Paths(NAMES[:2])
    paths.extend(Paths(NAMES[2:]))
    paths.extend(Paths())
    assert list(paths) == NAMES
    assert paths == Paths(NAMES) != Paths(NAMES[1:])
    assert paths != Paths(["".join(NAMES)])
    assert paths != NAMES
    empty = Paths()
    empty.extend(paths)
    assert empty == paths
    assert pickle.loads(pickle.dumps(paths)) == paths


def test_a_path_takes_eight_bytes_beside_its_text():
    count, length = 50_000, len("train/n00000000.JPEG")
    tracemalloc.start()
    try:
        paths = Paths(f"train/n{i:08d}.JPEG" for i in range(count))
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(paths) == count
    assert taken < 1.3 * count * (length + 8)


def test_repr_is_short():
    assert repr(Paths(NAMES[:1])) == "Paths(['a/1.png'], 1 in all)"
    assert len(repr(Paths(NAMES * 1000))) < 100
