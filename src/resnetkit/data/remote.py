"""Images in object stores: a path such as ``s3://bucket/packed/train/cat/1.jpg`` -> bytes.

The path leads into shards, or is itself an object. `read_ahead` reads images before they are
needed, because a store is slow to answer but answers many requests at once.
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from ..errors import DataError, ImageError
from ..prefetch import Pool, reading
from . import files, object_store, shards
from .paths import object_url

if TYPE_CHECKING:
    from .folder import Split

Item = TypeVar("Item")

AHEAD_BYTES = 2**26
"""No more images are read ahead while those that are waiting take more bytes than this."""

AHEAD_IMAGES = 8 * object_store.READERS
"""Maximum number of images that are read ahead."""


def open_image(path: str | os.PathLike[str], name: str) -> BinaryIO:
    """Open an image, reading all of it.

    Args:
        path: the image.
        name: name of the image for error messages.

    Raises:
        ImageError: the image cannot be read, or was changed after it was packed.
    """
    url = object_url(path)
    assert url is not None
    try:
        contents = _started.take(url)
        return io.BytesIO(_read(url) if contents is None else contents)
    except DataError as error:
        is_path = name == url
        name = shards.describe(Path(path)) if is_path else name
        reason = str(error).removeprefix(f"{url}: ")
        raise ImageError(f"{name}: {reason}", passing=True) from error


class read_ahead(Iterator[Item]):
    """Yields items while reading the images that the following items need.

    Images that were not taken are dropped when the iterator is closed or garbage-collected, not
    after its last item: the threads that prepare the last items still need their images.

    Args:
        items: the items that need images, in the order in which they are used.
        paths: returns the images that an item needs. Only images in an object store are read
            ahead.
    """

    def __init__(self, items: Iterable[Item], paths: Callable[[Item], Iterable[object]]) -> None:
        self._pool: Pool[str, bytes] | None = None
        self._pending: deque[Item] = deque()
        self._paths = paths
        self._source = iter(items)

    def __next__(self) -> Item:
        while not self._pending or (self._pool is not None and _started.has_room()):
            try:
                item = next(self._source)
            except StopIteration:
                self._source = iter(())
                break
            self._pending.append(item)
            for path in self._paths(item):
                url = object_url(path) if isinstance(path, str | os.PathLike) else None
                if url is not None:
                    self._pool = self._pool or Pool(_read_started, object_store.READERS)
                    _started.start(url, self._pool)
        if not self._pending:
            raise StopIteration
        return self._pending.popleft()

    def close(self) -> None:
        """Yield no more items, and drop the images that were not taken."""
        self._source = iter(())
        self._pending.clear()
        if self._pool is not None:
            _started.drop(self._pool)
            self._pool.close()
            self._pool = None

    def __del__(self) -> None:
        if self._pool is not None:  # any thread may be here, so it waits for none
            _started.drop(self._pool)
            self._pool.release()


def in_order(split: Split, indices: Iterable[int] | None = None) -> Iterator[int]:
    """Yield the given indices of images, in order; by default, those of all images.

    If the images are in an object store, the next ones are read ahead.
    """
    return read_ahead(
        range(len(split)) if indices is None else indices,
        lambda index: [split.path(int(index))] if split.is_remote else (),
    )


class _Started:
    """Images that are being read ahead or waiting to be used. Shared by all threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # garbage collection while it is held may call `drop`
        self._futures: dict[str, tuple[Future[bytes], Pool[str, bytes]]] = {}
        self._bytes = 0

    def has_room(self) -> bool:
        """Return whether there is room to start reading another image."""
        return len(self._futures) < AHEAD_IMAGES and self._bytes < AHEAD_BYTES

    def start(self, url: str, pool: Pool[str, bytes]) -> None:
        """Read an image in the pool, unless reading it has already started."""
        with self._lock:
            if url in self._futures:
                return
            future = pool.submit(url)
            self._futures[url] = (future, pool)
        future.add_done_callback(lambda future: self._count(future, 1))

    def take(self, url: str) -> bytes | None:
        """Wait for an image that is being read, and return it; None if it was not started.

        Raises:
            DataError: the image could not be read.
        """
        with self._lock:
            future, _ = self._futures.pop(url, (None, None))
        if future is None:
            return None
        try:
            return future.result()
        except CancelledError:
            return None
        finally:
            self._count(future, -1)

    def drop(self, pool: Pool[str, bytes]) -> None:
        """Forget the images in a pool that were not taken."""
        with self._lock:
            urls = [url for url, (_, own) in self._futures.items() if own is pool]
            futures = [self._futures.pop(url)[0] for url in urls]
        for future in futures:
            future.cancel()
            future.add_done_callback(lambda future: self._count(future, -1))

    def _count(self, future: Future[bytes], sign: int) -> None:
        if not future.cancelled() and future.exception() is None:
            with self._lock:
                self._bytes += sign * len(future.result())


_started = _Started()


def _read_started(url: str) -> bytes:
    with reading(url):  # a pool that is closing does not wait for a silent store
        return _read(url)


def _read(url: str) -> bytes:
    """Return an image's bytes: from opened shards, from an object, or from shards to be opened.

    Raises:
        DataError: the image cannot be read.
    """
    found = shards.find_opened(url)
    if found is None:
        try:
            return object_store.read(url, limit=files.MAX_BYTES)
        except object_store.ObjectNotFound:
            found = _find_shards(url)
            if found is None:
                raise
    return found[0].read_image(found[1])


def _find_shards(url: str) -> tuple[shards.Shards, int] | None:
    """Open the shards that a URL leads into, as for a path on this machine."""
    root = url.rpartition("/")[0]
    while root.count("/") >= 2:  # the root of a bucket may also have shards
        try:
            shards.open_shards(Path(root))
            return shards.find_opened(url)
        except object_store.ObjectNotFound:
            pass
        except DataError:  # credentials for a prefix may not be valid for the bucket's root
            if root.count("/") > 2:
                raise
        root = root.rpartition("/")[0]
    return None
