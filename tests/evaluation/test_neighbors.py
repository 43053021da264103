from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from resnetkit.errors import DataError
from resnetkit.evaluation import neighbors
from resnetkit.evaluation.neighbors import nearest_neighbors


def brute_force(features, queries, k, excluded=None):
    """Sort every cosine similarity in float64, ties by index."""
    wide, questions = features.astype(np.float64), queries.astype(np.float64)
    wide = wide / np.linalg.norm(wide, axis=1, keepdims=True)
    questions = questions / np.linalg.norm(questions, axis=1, keepdims=True)
    similarities = questions @ wide.T
    if excluded is not None:
        similarities[np.arange(len(queries)), excluded] = -np.inf
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(similarities, order, 1)


@pytest.fixture
def cloud():
    """600 features in tight groups, as a network produces them, and 70 queries."""
    rng = np.random.default_rng(0)
    centers = rng.random((6, 96))
    features = centers[rng.integers(0, 6, 600)] + 0.02 * rng.normal(size=(600, 96))
    queries = centers[rng.integers(0, 6, 70)] + 0.02 * rng.normal(size=(70, 96))
    return features.astype(np.float32), queries.astype(np.float32)


def test_as_brute_force_in_float64(cloud):
    features, queries = cloud
    indices, similarities = nearest_neighbors(features, queries, 7)
    expected, cosines = brute_force(features, queries, 7)
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(similarities, cosines, rtol=0, atol=1e-14)


def test_as_scikit_learn(cloud):
    features, queries = (part.astype(np.float64) for part in cloud)
    distances, expected = (
        NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute")
        .fit(features)
        .kneighbors(queries)
    )
    indices, similarities = nearest_neighbors(features, queries, 4)
    assert indices.tolist() == expected.tolist()
    np.testing.assert_allclose(1 - similarities, distances, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block_size", [1, 2, 7, 64, 599, 600, 5000])
def test_the_block_size_changes_no_bit(cloud, block_size, monkeypatch):
    monkeypatch.setattr(neighbors, "_PAIRS", 96 * 50)  # many candidates are computed in parts
    features, queries = cloud
    features[300:450] = features[:150]  # ties
    whole = nearest_neighbors(features, queries, 9)
    parts = nearest_neighbors(features, queries, 9, block_size=block_size)
    assert all(a.tobytes() == b.tobytes() for a, b in zip(whole, parts, strict=True))


def test_float32_alone_would_give_another_order():
    """The features differ by less than a float32 product can resolve."""
    rng = np.random.default_rng(3)
    base = rng.random(512)
    features = (base + 1e-5 * rng.normal(size=(400, 512))).astype(np.float32)
    queries = base[None].astype(np.float32)
    indices, _ = nearest_neighbors(features, queries, 20, block_size=64)
    assert indices.tolist() == brute_force(features, queries, 20)[0].tolist()
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    products = (queries / np.linalg.norm(queries)) @ units.T
    assert np.argsort(-products[0], kind="stable")[:20].tolist() != indices[0].tolist()


@pytest.mark.parametrize("block_size", [3, 4096])
def test_equal_rows_have_similarity_1_and_come_by_index(block_size):
    rng = np.random.default_rng(1)
    one, other = rng.normal(size=(2, 33)).astype(np.float32)
    features = np.stack([other, one, one, 2 * one, one, other, one])
    indices, similarities = nearest_neighbors(features, one[None], 4, block_size=block_size)
    assert indices.tolist() == [[1, 2, 3, 4]]
    assert similarities.tolist() == [[1.0, 1.0, 1.0, 1.0]]


def test_a_query_is_not_its_own_neighbor(cloud):
    features, queries = cloud
    own = np.arange(600)
    indices, _ = nearest_neighbors(features, features, 5, exclude_self=True, block_size=50)
    assert indices.tolist() == brute_force(features, features, 5, own)[0].tolist()
    mixed = np.where(np.arange(70) % 2, nearest_neighbors(features, queries, 1)[0][:, 0], -1)
    indices, _ = nearest_neighbors(features, queries, 5, exclude_self=mixed, block_size=50)
    plain = brute_force(features, queries, 6)[0]
    for row, (found, expected) in enumerate(zip(indices, plain, strict=True)):
        assert found.tolist() == (expected[1:] if row % 2 else expected[:5]).tolist()


def test_fewer_neighbors_than_requested():
    features = np.eye(3, dtype=np.float32)
    indices, similarities = nearest_neighbors(features, features, 9, exclude_self=True)
    assert indices.tolist() == [[1, 2], [0, 2], [0, 1]]
    assert not similarities.any()
    indices, similarities = nearest_neighbors(features, features, 9, np.array([-1, 1, -1]))
    assert indices.tolist() == [[0, 1, 2], [0, 2, -1], [2, 0, 1]]
    assert np.isnan(similarities[1, 2])
    assert nearest_neighbors(features[:1], features[:1], 2, exclude_self=True)[0].shape == (1, 0)
    assert nearest_neighbors(features[:0], features, 2)[0].shape == (3, 0)
    assert nearest_neighbors(features, features[:0], 2)[0].shape == (0, 2)


def test_a_zero_row_is_similar_to_nothing():
    features = np.array([[0, 0], [1, 0], [-1, 0]], np.float32)
    indices, similarities = nearest_neighbors(features, features, 3)
    assert indices.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1]]
    assert similarities.tolist() == [[0, 0, 0], [1, 0, -1], [1, 0, -1]]


def test_the_scale_of_a_row_does_not_matter():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(50, 16)).astype(np.float32)
    scales = 10.0 ** rng.integers(-18, 18, (50, 1)).astype(np.float32)
    scaled = (features * scales).astype(np.float32)
    found = nearest_neighbors(scaled, features, 3)[0]
    assert found.tolist() == nearest_neighbors(features, features, 3)[0].tolist()


@pytest.mark.parametrize("equal", [False, True])
def test_memory_does_not_grow_with_the_features(equal):
    rng = np.random.default_rng(4)
    queries = rng.normal(size=(20, 64)).astype(np.float32)
    peaks = []
    for count in (20_000, 80_000):
        features = np.ones((count, 64), np.float32)
        if not equal:
            features = rng.standard_normal((count, 64), np.float32)
        tracemalloc.start()
        nearest_neighbors(features, queries, 5)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < (100e6 if equal else 10e6)


def test_progress_counts_blocks():
    features = np.eye(10, dtype=np.float32)
    calls = []
    nearest_neighbors(features, features, 1, block_size=4, advance=lambda: calls.append(1))
    assert len(calls) == neighbors.block_count(10, 4) == 3


def test_errors():
    features = np.eye(4, dtype=np.float32)
    with pytest.raises(DataError, match=r"\(4, 4\) and \(1, 3\)"):
        nearest_neighbors(features, np.ones((1, 3)), 1)
    features[2, 1] = np.nan
    with pytest.raises(DataError, match="row 2"):
        nearest_neighbors(features, np.ones((1, 4)), 1)
    with pytest.raises(ValueError, match="at least 1"):
        nearest_neighbors(np.eye(2), np.eye(2), 0)
    with pytest.raises(ValueError, match="3 queries and 2 features"):
        nearest_neighbors(np.eye(2), np.ones((3, 2)), 1, exclude_self=True)
    with pytest.raises(ValueError, match="one index for each of 2"):
        nearest_neighbors(np.eye(2), np.eye(2), 1, exclude_self=np.array([0]))
