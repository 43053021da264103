"""Find the photos in a collection that are most similar to a query, by the model's features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ..data import shards, tree
from ..data.files import digest, file_digest
from ..data.paths import label, object_url
from ..errors import DataError, MissingPackageError
from ..evaluation.neighbors import nearest_neighbors
from .embeddings import read_embeddings
from .images import ImageLike, is_image
from .prediction import Prediction
from .predictor import Predictor

_Identity = tuple[int, int] | str

QUERIES_AT_ONCE = 256
"""Number of queries compared with the photos at a time."""

LEAST_OF_COPY = 0.9
"""Minimum cosine similarity of a copy, with a wide margin for other engines and precisions."""


@dataclass(frozen=True)
class Neighbor:
    """A photo that is similar to a query.

    Args:
        path: the photo, as it was given to the index.
        label: its label in a manifest, or else the name of its folder.
        similarity: the cosine similarity of the features, in [-1, 1].
        is_copy: whether the file has the same bytes as the query.
    """

    path: str
    label: str
    similarity: float
    is_copy: bool


@dataclass(frozen=True)
class SimilarPhotos:
    """The photos most similar to one query, or the error that kept the query from being read.

    Args:
        source: the path to the query, or its type if it is in memory, such as ``<bytes>``.
        label: the name of the query's folder; empty for an image in memory.
        neighbors: the most similar photo first.
        model: the first 12 hex digits of the model file's SHA-256.
        error: why the query could not be read, or None.
        image: the query.
    """

    source: str
    label: str
    neighbors: tuple[Neighbor, ...]
    model: str
    error: str | None
    image: ImageLike = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a JSON line from ``resnet similar``."""
        return {
            "source": self.source,
            "neighbors": [
                {
                    "path": neighbor.path,
                    "label": neighbor.label,
                    "similarity": neighbor.similarity,
                    "copy": neighbor.is_copy,
                }
                for neighbor in self.neighbors
            ],
            "model": self.model,
            "error": self.error,
        }


@dataclass(frozen=True, eq=False)
class ImageIndex:
    """The features of many photos, to search for those most similar to a query.

    For example::

        index = ImageIndex.from_images(predictor, sorted(Path("photos").rglob("*.jpg")))
        for answer in index.find(predictor, ["query.jpg"], k=3):
            print(answer.neighbors[0].path, answer.neighbors[0].similarity)

    Args:
        features: ``(n, C)`` float32.
        sources: the path to each photo.
        labels: the label of each photo.
        model: the digest of the model file that the features come from; empty if unknown.
        errors: ``(source, reason)`` of the images that could not be read and are not in the index.
        repeated: number of paths left out because they lead to a file already in the index.
        computed: number of images whose features were computed now; 0 if they come from a file.
    """

    features: np.ndarray = field(repr=False)
    sources: Sequence[str] = field(repr=False)
    labels: Sequence[str] = field(repr=False)
    model: str
    errors: tuple[tuple[str, str], ...] = ()
    repeated: int = 0
    computed: int = 0

    def __len__(self) -> int:
        return len(self.sources)

    @classmethod
    def from_images(
        cls,
        predictor: Predictor,
        images: Iterable[ImageLike],
        labels: Sequence[str] | None = None,
        *,
        workers: int | None = None,
        advance: Callable[[str], None] = lambda text: None,
    ) -> ImageIndex:
        """Read photos and compute their features.

        Args:
            predictor: the model.
            images: the photos. A file that several paths lead to is read once.
            labels: the label of each photo; by default, the name of its folder.
            workers: threads that decode images; by default one per core.
            advance: called after each photo.

        Raises:
            DataError: there are no photos, or none of them can be read.
        """
        if is_image(images):
            raise DataError(f"expected several images, such as a list of paths; got {images!r:.80}")
        total = len(images) if isinstance(images, Sized) else None
        seen: set[_Identity] = set()
        read_labels: list[str] = []  # labels of the images read so far
        repeated = 0

        def unique_images() -> Iterator[ImageLike]:
            nonlocal repeated
            for number, image in enumerate(images):
                identity = _file_identity(image)
                if identity in seen:
                    repeated += 1
                    continue
                if identity is not None:
                    seen.add(identity)
                read_labels.append(_folder_name(image) if labels is None else labels[number])
                yield image

        vectors = bytearray()  # grows in place, so that no feature is in memory twice
        sources: list[str] = []
        own_labels: list[str] = []
        errors: list[tuple[str, str]] = []
        answers = predictor.stream(
            unique_images(), top_k=1, workers=workers, features=True, total=total
        )
        for number, answer in enumerate(answers):
            if answer.features is None:
                errors.append((answer.source, answer.error or ""))
            else:
                vectors += answer.features.astype(np.float32).tobytes()
                sources.append(answer.source)
                own_labels.append(read_labels[number])
            advance("")
        if not sources:
            reasons = "; ".join(reason for _, reason in errors[:3])
            raise DataError(f"No photo could be read{': ' + reasons if reasons else ''}")
        features = np.frombuffer(vectors, np.float32).reshape(len(sources), -1)
        return cls(
            features,
            sources,
            own_labels,
            model=predictor.digest,
            errors=tuple(errors),
            repeated=repeated,
            computed=len(sources) + len(errors),
        )

    @classmethod
    def from_file(cls, path: Path, predictor: Predictor) -> ImageIndex:
        """Read a file that ``resnet predict --embeddings`` wrote.

        Raises:
            DataError: the file is not an embeddings file, has no rows, or was written by another
                model.
        """
        features, sources, model = read_embeddings(path)
        again = (
            "Write a new file with this model: "
            f"resnet predict {predictor.path} PHOTOS --embeddings NEW.npz"
        )
        if model not in ("", predictor.digest):
            raise DataError(
                f"{path} was written with model {model}, but {predictor.path} is "
                f"{predictor.digest}. {again}"
            )
        if not sources:
            raise DataError(f"{path} has no rows. {again}")
        width = _feature_width(predictor)
        if features.shape[1] != width:
            raise DataError(
                f"{path} has {features.shape[1]} numbers per image, but {predictor.path} computes "
                f"{width}. {again}"
            )
        return cls(features, sources, [_folder_name(source) for source in sources], model=model)

    @property
    def notes(self) -> tuple[str, ...]:
        """Warnings for the user about an index from a file."""
        notes = []
        if not self.model:
            notes.append("does not say which model wrote it, so only its width was checked")
        missing = [source for source in self.sources if not _may_exist(source)]
        if missing:
            count = "1 photo that does" if len(missing) == 1 else f"{len(missing):,} photos that do"
            notes.append(f"names {count} not exist relative to this folder, such as {missing[0]}")
        return tuple(notes)

    def search(
        self, features: np.ndarray, k: int = 5, exclude: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Find the photos with the highest cosine similarity; see `nearest_neighbors`.

        Args:
            features: ``(m, C)``, the features of the queries.
            k: the number of photos for each query.
            exclude: ``(m,)``, the index to leave out for each query, or -1 for none.

        Returns:
            ``(m, K)`` indices and ``(m, K)`` similarities, the most similar photo first.
        """
        own = False if exclude is None else exclude
        return nearest_neighbors(self.features, features, k, exclude_self=own)

    def position(self, image: ImageLike) -> int:
        """Return the index of the photo that is the same file as an image, or -1."""
        identity = _file_identity(image)
        return -1 if identity is None else self._positions.get(identity, -1)

    def find(
        self,
        predictor: Predictor,
        queries: ImageLike | Iterable[ImageLike],
        k: int = 5,
        *,
        workers: int | None = None,
    ) -> Iterator[SimilarPhotos]:
        """Yield the photos most similar to each query, in the order of the queries.

        A query that is itself in the index is not its own neighbor.

        Args:
            predictor: the model that the index was built with.
            queries: one image or several.
            k: the number of photos for each query, at least 1.
            workers: threads that decode images; by default one per core.
        """
        images: Iterable[ImageLike] = [queries] if is_image(queries) else queries  # type: ignore[assignment]
        # With this total, the engine that computed the index also computes the queries.
        total = max(self.computed, len(images) if isinstance(images, Sized) else 0) or None
        answers = predictor.stream(
            images, top_k=1, workers=workers, features=True, keep_images=True, total=total
        )
        while batch := list(islice(answers, QUERIES_AT_ONCE)):
            yield from self._answer(batch, k)

    def _answer(self, batch: Sequence[Prediction], k: int) -> Iterator[SimilarPhotos]:
        vectors = []
        own = []
        for query in batch:
            if query.features is not None and query.image is not None:
                vectors.append(query.features)
                own.append(self.position(query.image))
        rows: Iterator[tuple[np.ndarray, np.ndarray]] = iter(())
        if vectors:
            found = self.search(np.stack(vectors), k, exclude=np.array(own))
            rows = iter(zip(*found, strict=True))
        for query in batch:
            assert query.image is not None
            neighbors: tuple[Neighbor, ...] = ()
            if query.features is not None:
                neighbors = tuple(self._neighbors(query.image, *next(rows)))
            yield SimilarPhotos(
                query.source,
                _folder_name(query.image),
                neighbors,
                model=query.model,
                error=query.error,
                image=query.image,
            )

    def _neighbors(
        self, query: ImageLike, indices: np.ndarray, similarities: np.ndarray
    ) -> Iterator[Neighbor]:
        contents = _Contents(query)
        for i, similarity in zip(indices.tolist(), similarities.tolist(), strict=True):
            if i >= 0:  # -1 fills unused places
                # Reading from an object store takes a request, so unlikely copies are not read.
                may_be_copy = similarity >= LEAST_OF_COPY or object_url(self.sources[i]) is None
                yield Neighbor(
                    self.sources[i],
                    self.labels[i],
                    similarity=similarity,
                    is_copy=may_be_copy and contents.equal(self.sources[i]),
                )

    @cached_property
    def _positions(self) -> dict[_Identity, int]:
        identities = enumerate(map(_file_identity, self.sources))
        return {identity: i for i, identity in identities if identity is not None}


class _Contents:
    """The bytes of a query, to compare with files. Arrays and images in memory have none."""

    def __init__(self, image: ImageLike) -> None:
        self._image = image

    def equal(self, path: str) -> bool:
        """Return whether a file has the same bytes; False if it cannot be read."""
        if not isinstance(self._image, bytes | str | os.PathLike):
            return False
        size = _file_size(path)
        if size is not None and self._size is not None and size != self._size:
            return False
        try:
            return file_digest(Path(path)) == self._digest
        except (DataError, MissingPackageError):
            return False

    @cached_property
    def _size(self) -> int | None:
        if isinstance(self._image, bytes):
            return len(self._image)
        assert isinstance(self._image, str | os.PathLike)
        return _file_size(self._image)

    @cached_property
    def _digest(self) -> str:
        if isinstance(self._image, bytes):
            return digest(self._image)
        assert isinstance(self._image, str | os.PathLike)
        return file_digest(Path(self._image))


def _file_identity(image: ImageLike) -> _Identity | None:
    """Return an identity shared by all paths to one file; None for an image in memory.

    An image in shards or in an object store has no file. Its path or URL identifies it.
    """
    if not isinstance(image, str | os.PathLike):
        return None
    url = object_url(image)
    if url is not None:
        return url
    try:
        return tree.identity(image)
    except OSError:
        return os.path.realpath(image)
    except ValueError:  # a NUL in the name; reading the file reports it
        return None


def _file_size(path: str | os.PathLike[str]) -> int | None:
    """Return the size of a file in bytes; None if it is in shards, in a store, or missing."""
    try:
        return os.stat(path).st_size
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return None


def _may_exist(source: str) -> bool:
    """Return False if a photo is missing. Object stores are not queried."""
    if object_url(source) is not None or os.path.exists(source):
        return True
    try:
        return shards.open_image(Path(source), source) is not None
    except (DataError, ValueError):  # damaged shards, which reading reports; a NUL in the name
        return True


def _folder_name(image: ImageLike) -> str:
    """Return the name of the folder that a file is in; empty for an image in memory."""
    if not isinstance(image, str | os.PathLike):
        return ""
    return label(os.path.basename(os.path.dirname(os.path.abspath(image))))


def _feature_width(predictor: Predictor) -> int:
    """Return the number of features that a model computes for an image."""
    blank = np.zeros((predictor.preprocessing.crop_size,) * 2, np.uint8)
    (answer,) = predictor.stream([blank], top_k=1, workers=0, features=True)
    assert answer.features is not None
    return len(answer.features)
