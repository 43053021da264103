from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from resnetkit.errors import OutputError
from resnetkit.inference.embeddings import EmbeddingsFile


def test_numpy_reads_the_rows_back(tmp_path):
    path = tmp_path / "new" / "out.npz"
    vectors = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32)
    names = [f"ordner/花 {i}" * (1 + i % 3) for i in range(50)]
    with EmbeddingsFile(path, "0123456789ab") as file:
        for name, vector in zip(names, vectors, strict=True):
            file.add(name, vector)
        assert not path.exists()
    with np.load(path) as found:
        assert sorted(found.files) == ["features", "model", "sources"]
        assert found["features"].dtype == np.float32
        np.testing.assert_array_equal(found["features"], vectors)
        assert found["sources"].tolist() == names
    assert [p.name for p in path.parent.iterdir()] == ["out.npz"]


def test_names_that_are_not_utf8_and_empty_files(tmp_path):
    with EmbeddingsFile(tmp_path / "a.npz", "0123456789ab") as file:
        file.add("r\udcff.png", np.zeros(2, np.float32))
    assert np.load(tmp_path / "a.npz")["sources"].tolist() == ["r?.png"]
    with EmbeddingsFile(tmp_path / "b.npz", "0123456789ab"):
        pass
    with np.load(tmp_path / "b.npz") as found:
        assert found["features"].shape == (0, 0)
        assert found["sources"].shape == (0,)


def test_an_error_leaves_nothing_and_no_file_is_overwritten(tmp_path):
    with pytest.raises(RuntimeError), EmbeddingsFile(tmp_path / "a.npz", "0123456789ab") as file:
        file.add("x", np.zeros(2, np.float32))
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there.npz").write_bytes(b"1")
    with pytest.raises(OutputError, match="exists"):
        EmbeddingsFile(tmp_path / "there.npz", "0123456789ab")
    with pytest.raises(OutputError, match=r"must end in \.npz; got"):
        EmbeddingsFile(tmp_path / "there.npy", "0123456789ab")


def test_memory_does_not_grow_with_the_rows(tmp_path):
    vector = np.zeros(512, np.float32)
    tracemalloc.start()
    with EmbeddingsFile(tmp_path / "a.npz", "0123456789ab") as file:
        for number in range(4000):  # 8 MB
            file.add(f"{number}.jpg", vector)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6
