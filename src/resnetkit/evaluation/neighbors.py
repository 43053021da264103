"""Exact nearest neighbors by cosine similarity, in bounded memory.

Matrix products in float32 find the candidates. The rounding of a product depends on the shapes of
the blocks, so every row whose product is within the error bound of the k-th best is a candidate.
The similarities of the candidates are then computed in float64, one pair at a time. Only these
similarities decide the order, so the result does not depend on the block size.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import DataError

BLOCK = 4096
"""Number of features compared at a time, with a sixteenth as many queries."""

_QUERIES = 16  # blocks of features are this many times larger than blocks of queries
_FEW = 16  # above this number of candidates per query and block, a partition reduces them
_PAIRS = 1 << 22  # numbers in the float64 products that are computed at a time
_UNIT_ROUNDOFF = 2.0**-24  # of float32


def nearest_neighbors(
    features: np.ndarray,
    queries: np.ndarray,
    k: int,
    exclude_self: bool | np.ndarray = False,
    *,
    block_size: int = BLOCK,
    advance: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows of ``features`` with the highest cosine similarity to each query.

    The similarity is dot(x, q) / sqrt(dot(x, x) * dot(q, q)) in float64; it is exactly 1 for equal
    rows, and 0 if either row is zero. At equal similarity, the lower index comes first. The memory
    needed does not grow with the number of features: about 30 MB for C = 256, 200 MB for C = 2,048.

    Args:
        features: ``(n, C)``, float32 or float64; may be memory-mapped.
        queries: ``(m, C)``.
        k: the number of neighbors of each query, at least 1.
        exclude_self: True if ``queries`` are the features themselves: row i is then not a neighbor
            of query i. Or ``(m,)`` integers: the index in ``features`` to exclude for each query,
            or -1.
        block_size: features compared at a time. It does not change the result.
        advance: called after each block of features; `block_count` returns how many there are.

    Returns:
        ``(m, K)`` int64 indices into ``features`` and ``(m, K)`` float64 similarities in [-1, 1],
        most similar first. K is ``k``, or less if every query has fewer neighbors. A query with
        fewer than K neighbors has the index -1 and the similarity NaN in the remaining columns.

    Raises:
        DataError: the widths differ, or a value is not finite.
        ValueError: ``k`` or ``block_size`` is below 1, or ``exclude_self`` has the wrong shape.
    """
    features = np.asanyarray(features)
    queries = np.asanyarray(queries)
    _check_arguments(features, queries, k=k, block_size=block_size)
    excluded = _excluded_indices(exclude_self, len(features), len(queries))
    fewest = len(features) - int(len(queries) > 0 and excluded.min() >= 0)
    width = min(k, max(0, fewest))
    indices = np.full((len(queries), width), -1, np.int64)
    similarities = np.full((len(queries), width), np.nan)
    if width == 0 or len(queries) == 0:
        return indices, similarities
    for start in range(0, len(features), block_size):
        block = _Block(features[start : start + block_size], start)
        for first in range(0, len(queries), max(1, block_size // _QUERIES)):
            rows = slice(first, first + max(1, block_size // _QUERIES))
            indices[rows], similarities[rows] = _merge_block(
                block, queries[rows], excluded[rows], indices[rows], similarities[rows]
            )
        advance()
    return indices, similarities


def block_count(features: int, block_size: int = BLOCK) -> int:
    """Return how many times `nearest_neighbors` calls ``advance`` for this many features."""
    return -(-features // block_size)


class _Block:
    """Consecutive features or queries, their float32 unit vectors, and their squared lengths."""

    def __init__(self, rows: np.ndarray, start: int = 0) -> None:
        self.rows = np.ascontiguousarray(rows)
        self.start = start
        wide = self.rows.astype(np.float64)
        self.squares = (wide * wide).sum(1)
        if not np.isfinite(self.squares).all():
            row = start + int(np.flatnonzero(~np.isfinite(self.squares))[0])
            raise DataError(f"row {row} of the features has values that are infinite or NaN")
        lengths = np.sqrt(self.squares)
        wide /= np.where(lengths > 0, lengths, 1.0)[:, None]
        self.units = wide.astype(np.float32)


def _merge_block(
    block: _Block,
    query_rows: np.ndarray,
    excluded: np.ndarray,
    indices: np.ndarray,
    similarities: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge one more block of features into the best neighbors so far, and return them.

    Args:
        block: the features.
        query_rows: ``(q, C)``.
        excluded: ``(q,)`` indices.
        indices: ``(q, K)``, the best neighbors in the previous blocks.
        similarities: ``(q, K)``; NaN where no neighbor has been found yet.
    """
    queries = _Block(query_rows)
    count, width = indices.shape
    # A bound on the error in a float32 product of two unit vectors, for any order of summation. It
    # includes the rounding of the vectors, and is about C * 2**-24 (Higham, Accuracy and Stability
    # of Numerical Algorithms, 2002, section 3.1).
    bound = 1.01 * (query_rows.shape[1] + 4) * _UNIT_ROUNDOFF
    products = queries.units @ block.units.T  # (q, b)
    local = excluded - block.start
    inside = np.flatnonzero((local >= 0) & (local < len(block.rows)))
    products[inside, local[inside]] = -np.inf
    worst = np.where(np.isnan(similarities[:, -1]), -1.0, similarities[:, -1])
    least = worst - 2 * bound
    chosen = products >= least[:, None]
    if np.count_nonzero(chosen) > _FEW * count and len(block.rows) > width:
        kth = np.partition(products, len(block.rows) - width, axis=1)[:, -width]
        chosen = products >= np.maximum(least, kth - 2 * bound)[:, None]
    rows, columns = np.nonzero(chosen)
    best = indices, similarities
    # If many images are identical, every pair can be a candidate, so compute a bounded number at a
    # time.
    step = max(1, _PAIRS // query_rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        exact = _exact_similarities(queries, block, rows=rows[part], columns=columns[part])
        best = _merge(best, rows[part], columns[part] + block.start, exact)
    return best


def _exact_similarities(
    queries: _Block, block: _Block, *, rows: np.ndarray, columns: np.ndarray
) -> np.ndarray:
    """Return ``(p,)`` float64: the cosine similarity of each pair of a query and a feature.

    Every pair is summed in the same order, however many pairs there are. A matrix product does not
    guarantee that.
    """
    products = queries.rows[rows].astype(np.float64)
    products *= block.rows[columns]
    squares = queries.squares[rows] * block.squares[columns]
    # For equal rows this is s / sqrt(s * s), which is exactly 1.
    cosines = products.sum(1) / np.sqrt(np.where(squares > 0, squares, 1.0))
    clipped: np.ndarray = np.clip(cosines, -1.0, 1.0)
    return clipped


def _merge(
    best: tuple[np.ndarray, np.ndarray],
    rows: np.ndarray,
    found: np.ndarray,
    exact: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Merge new pairs into the K best neighbors of each query; lower indices win ties."""
    indices, similarities = best
    count, width = indices.shape
    known = ~np.isnan(similarities)
    all_rows = np.concatenate([np.nonzero(known)[0], rows])
    all_indices = np.concatenate([indices[known], found])
    all_similarities = np.concatenate([similarities[known], exact])
    order = np.lexsort((all_indices, -all_similarities, all_rows))
    ordered_rows = all_rows[order]
    starts = np.searchsorted(ordered_rows, np.arange(count))
    ranks = np.arange(len(order)) - starts[ordered_rows]
    kept = ranks < width
    merged_indices = np.full_like(indices, -1)
    merged_similarities = np.full_like(similarities, np.nan)
    places = ordered_rows[kept], ranks[kept]
    merged_indices[places] = all_indices[order[kept]]
    merged_similarities[places] = all_similarities[order[kept]]
    return merged_indices, merged_similarities


def _check_arguments(features: np.ndarray, queries: np.ndarray, *, k: int, block_size: int) -> None:
    if features.ndim != 2 or queries.ndim != 2 or features.shape[1] != queries.shape[1]:
        raise DataError(
            "features and queries must be (n, C) and (m, C) with the same C; got "
            f"{features.shape} and {queries.shape}"
        )
    if k < 1 or block_size < 1:
        raise ValueError(f"k and block_size must be at least 1; got {k} and {block_size}")


def _excluded_indices(exclude_self: bool | np.ndarray, features: int, queries: int) -> np.ndarray:
    """Return ``(queries,)`` int64: the feature to exclude for each query, or -1."""
    if isinstance(exclude_self, np.ndarray):
        if exclude_self.shape != (queries,):
            raise ValueError(
                f"exclude_self must have one index for each of {queries} queries; got the shape "
                f"{exclude_self.shape}"
            )
        return exclude_self.astype(np.int64)
    if exclude_self and features != queries:
        raise ValueError(
            "exclude_self=True needs the features themselves as queries; got "
            f"{queries} queries and {features} features"
        )
    return np.arange(queries) if exclude_self else np.full(queries, -1)
