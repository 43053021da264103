"""Files from object stores, kept on disk under their SHA-256.

::

    ~/.cache/resnetkit/objects/5f/5f3a...    the bytes whose SHA-256 is the name

Every read checks the hash, so an entry that a crash or a full disk damaged is never used. An entry
gets its name only once it is complete, so several processes can share the folder.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from contextlib import suppress
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from .. import storage
from ..errors import DataError, OutputError
from ..progress import say
from . import disk_cache

LIMIT = 10.0
"""Default size limit of the cache, in gigabytes."""

_KEPT = 0.8  # share of the size limit that is still in use after old entries are removed
_STEP = 0.05  # share of the size limit that a process writes before it measures the folder again
_DISK_SHARE = 0.5  # share of the free disk space that the cache may take
_OLD = 3600.0  # seconds after which an unfinished file is considered abandoned
_BLOCK = 4096  # bytes of a disk block


class ObjectCache:
    """A folder of files; the least recently used ones are removed first.

    Args:
        folder: the folder.
        limit: maximum total size of all files, in bytes. Each process that shares the folder may
            exceed it by the share `_STEP`.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self._folder = folder
        self._limit = limit
        self._left = 0  # bytes to write before the folder is measured again
        self._lock = threading.Lock()

    def get(self, digest: bytes) -> bytes | None:
        """Return the bytes with this SHA-256; None if they are not cached."""
        if not self._limit:
            return None
        file = self._file(digest)
        try:
            contents = file.read_bytes()
            if sha256(contents).digest() == digest:
                with suppress(PermissionError):  # written by another user
                    os.utime(file)  # mark as just used
                return contents
        except OSError:  # missing, just removed, or unreadable: the store still has the image
            return None
        storage.discard(file)
        return None

    def put(self, digest: bytes, contents: bytes) -> None:
        """Cache bytes whose SHA-256 is ``digest``. If the disk fails, say so and stop caching."""
        if not self._limit or len(contents) > self._limit * _KEPT:
            return
        file = self._file(digest)
        try:
            with self._lock:
                self._left -= _on_disk(len(contents))
                if self._left < 0:
                    self._make_room(_on_disk(len(contents)))
            # Not flushed to disk: that takes longer than reading from the store again, and `get`
            # checks the hash.
            with storage.temporary(file) as unfinished:
                unfinished.write_bytes(contents)
                os.replace(unfinished, file)
        except (OSError, OutputError) as error:
            self._limit = 0
            say(f"Images are no longer cached in {self._folder}: {error}")

    def _file(self, digest: bytes) -> Path:
        name = digest.hex()
        return self._folder / name[:2] / name

    def _make_room(self, needed: int) -> None:
        """Measure the folder, and remove the least recently used files if it is too large."""
        with storage.locked(self._folder / ".lock"):
            files = sorted(self._entries())
            used = sum(size for _, size, _ in files)
            room = min(self._limit, used + int(_DISK_SHARE * shutil.disk_usage(self._folder).free))
            step = int(_STEP * room)
            if used + needed + step > room:
                for _, size, path in files:
                    if used + needed + step <= _KEPT * room:
                        break
                    storage.discard(Path(path))
                    used -= size
            self._left = step

    def _entries(self) -> list[tuple[float, int, str]]:
        """Return each file's time of last use, size and path; remove abandoned files."""
        found = []
        for folder in self._folder.glob("[0-9a-f][0-9a-f]"):
            for entry in os.scandir(folder):
                try:
                    status = entry.stat()
                except FileNotFoundError:  # just renamed
                    continue
                if not entry.name.startswith("."):
                    found.append((status.st_mtime, _on_disk(status.st_size), entry.path))
                elif status.st_mtime < time.time() - _OLD:  # a killed process wrote it
                    storage.discard(Path(entry.path))
        return found


def _on_disk(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def open_cache() -> ObjectCache:
    """Return the cache in ``objects`` next to `disk_cache.cache_folder`.

    ``RESNETKIT_OBJECT_CACHE_GB`` is its size limit in gigabytes; 0 turns the cache off.

    Raises:
        DataError: the variable is not a number.
    """
    given = os.environ.get("RESNETKIT_OBJECT_CACHE_GB") or str(LIMIT)
    try:
        gigabytes = float(given)
    except ValueError:
        gigabytes = -1
    if not 0 <= gigabytes < 10**9:
        raise DataError(
            f"RESNETKIT_OBJECT_CACHE_GB is {given!r}; expected a number of gigabytes, such as "
            f"{LIMIT:g}, or 0 to cache no images"
        )
    return _open(disk_cache.cache_folder().with_name("objects"), int(gigabytes * 1e9))


@lru_cache(maxsize=4)
def _open(folder: Path, limit: int) -> ObjectCache:
    if limit:
        say(
            f"Images from object stores are cached in {folder}, up to {limit / 1e9:g} GB "
            "(RESNETKIT_OBJECT_CACHE_GB)"
        )
    return ObjectCache(folder, limit)
