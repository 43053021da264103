"""A dataset packed into tar files: thousands of images in one file, each readable on its own.

`resnetkit.data.shard_writer` writes such a folder::

    shards.json             classes, splits, counts, and the size and SHA-256 of every other file
    index.safetensors       the path, position, size and SHA-256 of every image
    train-000000.tar        WebDataset: 00000012.jpg, then 00000012.cls with the number of its class
    train-000001.tar ...

An image keeps the path that it had in the packed dataset: ``OUT/train/cat/1.jpg`` names an image in
``OUT``. `files.open_file` finds it here, so everything that reads a file by its path also reads an
image from a shard. Nothing is extracted. The folder may be in an object store: images in
``s3://bucket/packed`` are read as ranges of its tars before they are needed (`remote`), and cached.

Nothing in the folder is trusted. The index must have the SHA-256 that ``shards.json`` records, and
may point only inside the shards. Reading an image checks its SHA-256 and the tar header in front of
it. ``resnet check`` also hashes whole shards.
"""

from __future__ import annotations

import io
import json
import os
import re
import stat
import tarfile
import threading
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import sha256
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from .. import storage
from ..errors import DataError, ImageError
from . import object_cache, object_store
from .paths import EXTENSIONS, SPLITS, Paths, object_url, shown
from .tree import SHARDS

FORMAT_VERSION = 1
INDEX = "index.safetensors"
BLOCK = tarfile.BLOCKSIZE
"""Size of a tar header in bytes; contents are padded to a multiple of this size."""

_MAX_MANIFEST = 2**26  # bytes
_PART = 2**20  # bytes hashed at a time
_MAX_INDEX = 4200  # bytes per image: more than the longest path on Linux (4,096) and the columns
_SHARD_NAME = re.compile(rf"({'|'.join(sorted({*SPLITS.values(), 'all'}))})-\d{{6,9}}\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")
# Matches paths that lead out of the folder, or that `Path` would write differently.
_UNSAFE = re.compile(r"(^|/)\.{0,2}(/|$)|\0" + (r"|[\\:]" if os.name == "nt" else ""))
_ARRAYS = {
    "lengths": np.dtype(np.uint16),
    "offsets": np.dtype(np.uint64),
    "sizes": np.dtype(np.uint32),
    "by_path": np.dtype(np.uint32),
}


@dataclass(frozen=True)
class Shard:
    """A tar file, as described in ``shards.json``."""

    name: str
    images: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The contents of ``shards.json``.

    Args:
        name: the name of the packed dataset.
        classes: the classes, in order.
        splits: ``{split: {class: images}}``. The shards hold the images in this order: splits in
            the order of ``shards`` and, within each split, classes in the order of ``classes``.
        shards: the tar files, in order.
        index_sha256: SHA-256 of the index.
    """

    name: str
    classes: tuple[str, ...]
    splits: dict[str, dict[str, int]]
    shards: tuple[Shard, ...]
    index_sha256: str

    @property
    def images(self) -> int:
        """Number of images in all splits."""
        return sum(sum(counts.values()) for counts in self.splits.values())

    def write(self, file: Path) -> None:
        """Write ``shards.json``."""
        values = {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "images": self.images,
            "classes": list(self.classes),
            "splits": self.splits,
            "shards": [vars(shard) for shard in self.shards],
            "index_sha256": self.index_sha256,
        }
        storage.write_json(file, values)


@dataclass(frozen=True)
class Shards:
    """A folder of shards. Its images are numbered 0 to n - 1; the number of an image is its row.

    Args:
        root: the folder.
        manifest: the contents of ``shards.json``.
        paths: the path of each image, relative to ``root``.
        offsets: ``(n,)`` uint64, where the contents of each image begin in its shard.
        sizes: ``(n,)`` uint32, the size of each image in bytes.
        digests: ``(n, 32)`` uint8, the SHA-256 of each image.
        by_path: ``(n,)`` uint32, the rows sorted by path.
    """

    root: Path
    manifest: Manifest
    paths: Paths
    offsets: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray
    by_path: np.ndarray

    @cached_property
    def _ends(self) -> np.ndarray:
        """``(shards,)``, one past the last row of each shard."""
        return np.cumsum([shard.images for shard in self.manifest.shards])

    def splits(self) -> dict[str, dict[str, Paths]]:
        """Return ``{split: {class: paths}}``."""
        found: dict[str, dict[str, Paths]] = {}
        row = 0
        for split, counts in self.manifest.splits.items():
            found[split] = {}
            for name, count in counts.items():
                found[split][name] = self.paths[row : row + count]
                row += count
        return found

    def check_sizes(self) -> None:
        """Check that every shard exists and has its recorded size.

        Raises:
            DataError: a shard is missing or has a different size; the message names it.
        """
        url = object_url(self.root)
        if url is not None:
            sizes = object_store.list_folder(url)
            for shard in self.manifest.shards:
                _check_size(f"{url}/{shard.name}", sizes.get(shard.name), shard.bytes)
            return
        for shard in self.manifest.shards:
            try:
                self.open_shard(shard)
            except ImageError as error:
                raise DataError(str(error)) from error

    def refuse_strays(self) -> None:
        """Check that no file has the path of a packed image: the file would be read instead.

        Raises:
            DataError: there is such a file; the message names it.
        """
        try:
            others = set(os.listdir(self.root)) - {shard.name for shard in self.manifest.shards}
        except OSError as error:
            raise DataError(f"{self.root}: {error.strerror}") from error
        others -= {SHARDS, INDEX, storage.MARKER}
        for path in chain.from_iterable(map(self._paths_in, others)):
            if os.path.lexists(self.root / path):
                raise DataError(
                    f"{self.root / path} was put into a folder of shards, where a packed image has "
                    "the same path. Move the file elsewhere"
                )

    def issue(self, shard: Shard) -> str | None:
        """Return the problem with a shard, or None. Reads the whole file.

        Unlike reading the images, this also detects changes to labels and other members.
        """
        try:
            found = sha256()
            for part in self._read_parts(shard):
                found.update(part)
        except (OSError, DataError) as error:
            return str(error)
        if found.hexdigest() == shard.sha256:
            return None
        return f"{shard.name} was changed after it was written: its SHA-256 is different"

    def _read_parts(self, shard: Shard) -> Iterator[bytes]:
        url = object_url(self.root)
        if url is not None:
            return object_store.read_large(f"{url}/{shard.name}", shard.bytes)
        file = self.open_shard(shard)
        return (file.read(start, _PART) for start in range(0, shard.bytes, _PART))

    def read_image(self, row: int) -> bytes:
        """Return the bytes of an image in an object store, from the cache or from its shard.

        Raises:
            DataError: the shard cannot be read, or the image was changed.
        """
        digest = self.digests[row].tobytes()
        cache = object_cache.open_cache()
        contents = cache.get(digest)
        if contents is None:
            shard, member = self.place(row)
            size = int(self.sizes[row])
            check = lambda both: _check_member(both, member, size=size, digest=digest)  # noqa: E731
            url = f"{object_url(self.root)}/{shard.name}"
            start = int(self.offsets[row]) - BLOCK
            contents = object_store.read(url, start, BLOCK + size, check=check)[BLOCK:]
            cache.put(digest, contents)
        return contents

    def open_shard(self, shard: Shard) -> _File:
        """Open a shard for reading, or return it if it is already open.

        Raises:
            ImageError: the shard is not a file of the recorded size, or it cannot be read.
        """
        file = os.path.join(self.root, shard.name)
        try:
            status = os.stat(file)  # before opening, which would block on a pipe
            if not stat.S_ISREG(status.st_mode):
                raise ImageError(f"{file} is not a regular file", passing=True)
            _check_size(file, status.st_size, shard.bytes)
            return _open_file(file, status.st_ino, status.st_mtime_ns)
        except ImageError:
            raise
        except OSError as error:
            raise ImageError(f"{file}: {error.strerror}", passing=True) from error

    def find(self, path: str) -> int | None:
        """Return the row of the image with this path; None if there is none."""
        wanted = os.fsencode(path)
        place = bisect_left(self.by_path, wanted, key=self.paths.encoded)
        row = int(self.by_path[place]) if place < len(self.by_path) else -1
        return row if row >= 0 and self.paths.encoded(row) == wanted else None

    def _paths_in(self, name: str) -> Iterator[str]:
        """Yield the packed paths that are ``name``, or in a folder of this name."""
        if self.find(name) is not None:
            yield name
        folder = os.fsencode(name) + b"/"
        for row in self.by_path[bisect_left(self.by_path, folder, key=self.paths.encoded) :]:
            path = self.paths.encoded(int(row))
            if not path.startswith(folder):
                return
            yield os.fsdecode(path)

    def open_image(self, row: int, name: str, is_path: bool) -> BinaryIO:
        """Open an image.

        Args:
            row: the row of the image.
            name: name of the image for error messages.
            is_path: whether ``name`` is the image's path. If so, messages also give its place in
                the shards.

        Raises:
            ImageError: the shard cannot be read.
        """
        shard, member = self.place(row)
        if is_path:
            name = f"{name} ({shard.name}/{member})"
        try:
            file = self.open_shard(shard)
        except ImageError as error:
            raise ImageError(f"{name}: {error}", passing=True) from error
        return cast(BinaryIO, _Member(file, self, row=row, member=member, name=name))

    def place(self, row: int) -> tuple[Shard, str]:
        """Return the shard of an image, and the name of its member."""
        shard = self.manifest.shards[int(np.searchsorted(self._ends, row, side="right"))]
        return shard, member_name(row, self.paths[row])


def _check_size(file: str, size: int | None, expected: int) -> None:
    if size is None:
        raise ImageError(f"{file}: there is no such object. Copy it again", passing=True)
    if size != expected:
        raise ImageError(
            f"{file} has {size:,} bytes; expected {expected:,}. It is incomplete or was changed: "
            "copy it again",
            passing=True,
        )


class _File:
    """A shard that is open for reading, shared by all threads. It is closed once nothing uses it.

    It stays open between images, because the system reads ahead only in a file that stays open.
    """

    def __init__(self, path: str) -> None:
        self._handle = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        self._lock = threading.Lock()

    def read(self, start: int, size: int) -> bytes:
        """Return ``size`` bytes starting at ``start``; fewer at the end of the file."""
        if hasattr(os, "pread"):
            return os.pread(self._handle, size, start)
        with self._lock:  # Windows
            os.lseek(self._handle, start, os.SEEK_SET)
            return os.read(self._handle, size)

    def __del__(self) -> None:
        if hasattr(self, "_handle"):
            os.close(self._handle)


@lru_cache(maxsize=16)
def _open_file(path: str, *version: int) -> _File:
    """Open a shard. ``version`` distinguishes two files at the same path."""
    return _File(path)


class _Member(io.RawIOBase):
    """One image inside an open shard. Nothing outside the image can be read.

    `readall` reads the tar header and the contents at once, and checks both. Partial reads are not
    checked.
    """

    def __init__(self, file: _File, shards: Shards, *, row: int, member: str, name: str) -> None:
        self._file = file
        self._start = int(shards.offsets[row])
        self._size = int(shards.sizes[row])
        self._digest = shards.digests[row].tobytes()
        self._member = member
        self._name = name
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), max(0, self._size - self._position))
        part = self._file.read(self._start + self._position, wanted)
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)

    def readall(self) -> bytes:
        if self._position:
            return io.RawIOBase.read(self, max(0, self._size - self._position)) or b""
        both = self._file.read(self._start - BLOCK, BLOCK + self._size)
        try:
            _check_member(both, self._member, size=self._size, digest=self._digest)
        except ImageError as error:
            raise ImageError(f"{self._name}: {error}", passing=True) from error.__cause__
        self._position = self._size
        return both[BLOCK:]


def _check_member(both: bytes, member: str, *, size: int, digest: bytes) -> None:
    """Check the header and the contents of an image in a tar.

    Raises:
        ImageError: the header or the contents do not match the index.
    """
    header = both[:BLOCK]
    expected = (member.encode(), b"%011o" % size, tarfile.REGTYPE, b"ustar")
    found = (header[:100].rstrip(b"\0"), header[124:136].rstrip(b"\0"))
    if (*found, header[156:157], header[257:262]) != expected:
        _raise_foreign(header, member, size)
    if sha256(memoryview(both)[BLOCK:]).digest() != digest:
        raise ImageError(
            "it was changed or damaged after it was packed: its SHA-256 is not the one in the "
            "index",
            passing=True,
        )


def _raise_foreign(header: bytes, member: str, size: int) -> None:
    try:
        found = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise ImageError(
            f"no tar header precedes it ({error}). The shard was changed, or belongs to another "
            "index",
            passing=True,
        ) from error
    kind = "a file" if found.isreg() else "a link, device or folder"
    raise ImageError(
        f"found {kind} {found.name!r} of {found.size:,} bytes; expected the file {member!r} of "
        f"{size:,} bytes. The shard was changed, or belongs to another index",
        passing=True,
    )


def open_image(path: Path, name: str) -> BinaryIO | None:
    """Open the image that ``path`` names inside a folder of shards.

    Args:
        path: the folder's path, followed by the image's path in it.
        name: name of the image for error messages.

    Returns:
        The image, or None if no folder in ``path`` has shards, or they have no such image.

    Raises:
        ImageError: the image cannot be read, or the folder's index is not valid.
    """
    try:
        found = _find(path)
    except DataError as error:
        raise ImageError(
            f"{name}: there is no such file, and the shards above it cannot be read: {error}",
            passing=True,
        ) from error
    if found is None:
        return None
    shards, row = found
    return shards.open_image(row, name, is_path=name == str(path))


def describe(path: Path) -> str:
    """Return an image's name for error messages: its path, and its place in a shard, if any."""
    url = object_url(path)
    try:
        found = _find(path) if url is None else find_opened(url)
    except DataError:  # another program's shards.json, or a damaged one; not the problem to report
        found = None
    if found is None:
        return shown(path)
    shards, row = found
    shard, member = shards.place(row)
    return f"{shown(path)} ({shard.name}/{member})"


_opened: dict[str, Shards] = {}
"""Shards in object stores that this process has opened, by URL."""


def find_opened(url: str) -> tuple[Shards, int] | None:
    """Return the opened shards that a URL leads into, and the row of the image."""
    root = url
    while "/" in root[5:]:
        root = root.rpartition("/")[0]
        if root in _opened:
            row = _opened[root].find(url[len(root) + 1 :])
            return None if row is None else (_opened[root], row)
    return None


def _find(path: Path) -> tuple[Shards, int] | None:
    """Return the shards in a parent folder of ``path``, and the row of the image."""
    name = str(path)
    root = os.path.dirname(name)
    while True:
        try:
            status = os.stat(os.path.join(root, SHARDS))
        except OSError:
            parent = os.path.dirname(root)
            if parent == root:
                return None
            root = parent
            continue
        shards = _load_version(root, status)
        inside = name[len(root) :].lstrip(os.sep).replace(os.sep, "/")
        row = shards.find(inside)
        return None if row is None else (shards, row)


def open_shards(root: Path) -> Shards:
    """Open a folder of shards, loading its index: the paths, and about 50 bytes more per image.

    Raises:
        DataError: a file is missing, damaged, from a newer version, or has the path of a packed
            image. The message names the file.
    """
    url = object_url(root)
    if url is not None:
        return _open_remote(url)
    try:
        status = os.stat(root / SHARDS)
    except OSError as error:
        raise DataError(f"{root / SHARDS}: {error.strerror}") from error
    shards = _load_version(str(root), status)
    shards.refuse_strays()
    return shards


def _load_version(root: str, status: os.stat_result) -> Shards:
    return _load(os.path.abspath(root), status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4)
def _load(folder: str, *version: int) -> Shards:
    """Read the manifest and the index. ``version`` distinguishes two states of the same folder."""
    root = Path(folder)
    manifest = _read_manifest(root / SHARDS)
    return _assemble(root, manifest, _read_index(root / INDEX, manifest))


def _open_remote(url: str) -> Shards:
    """Read the manifest of shards in an object store, and the index if the manifest is new."""
    contents = object_store.read(f"{url}/{SHARDS}", limit=_MAX_MANIFEST)
    manifest = _parse_json(f"{url}/{SHARDS}", contents)
    before = _opened.get(url)
    if before is None or before.manifest != manifest:
        digest = bytes.fromhex(manifest.index_sha256)
        cache = object_cache.open_cache()
        index = cache.get(digest)
        if index is None:
            index = _download_index(f"{url}/{INDEX}", manifest)
            cache.put(digest, index)
        with _index_errors(f"{url}/{INDEX}"):
            arrays = _check_index(_safetensors().load(index), manifest)
        _opened[url] = _assemble(Path(url), manifest, arrays)
    return _opened[url]


def _download_index(url: str, manifest: Manifest) -> bytes:
    size = object_store.list_folder(url.rpartition("/")[0]).get(INDEX)
    with _index_errors(url):
        if size is None:
            raise ValueError("there is no such object")
        _expect(size <= _MAX_INDEX * manifest.images + 2**20, "size")
        index = b"".join(object_store.read_large(url, size))
        if sha256(index).hexdigest() != manifest.index_sha256:
            raise ValueError(f"its SHA-256 is not the one in {SHARDS}")
    return index


def _assemble(root: Path, manifest: Manifest, arrays: dict[str, np.ndarray]) -> Shards:
    ends = array("Q", np.cumsum(arrays["lengths"], dtype=np.uint64).tobytes())
    paths = Paths.from_buffers(bytearray(arrays["paths"]), ends)
    unsafe = next(filter(_UNSAFE.search, paths), None)
    if unsafe is not None:
        raise DataError(
            f"{shown(root / INDEX)} is not valid: the path {unsafe!r} leads out of the folder"
        )
    return Shards(
        root=root,
        manifest=manifest,
        paths=paths,
        offsets=arrays["offsets"],
        sizes=arrays["sizes"],
        digests=arrays["sha256"],
        by_path=arrays["by_path"],
    )


def _read_manifest(file: Path) -> Manifest:
    try:
        size = file.stat().st_size
        contents = file.read_bytes() if size <= _MAX_MANIFEST else b""
    except OSError as error:
        raise DataError(f"{file}: {error.strerror}") from error
    if size > _MAX_MANIFEST:
        raise DataError(f"{file} is not a valid list of shards: it has {size:,} bytes")
    return _parse_json(str(file), contents)


def _parse_json(name: str, contents: bytes) -> Manifest:
    """Return the manifest in the JSON file ``name``.

    Raises:
        DataError: the file is not valid.
    """
    try:
        values = json.loads(contents)
        _expect(isinstance(values, dict), "an object")
        version = values.get("format_version")
        _expect(isinstance(version, int) and version > 0, "format_version")
        if version > FORMAT_VERSION:
            raise DataError(
                f"{name} has format version {version}; this version of resnetkit reads up to "
                f"{FORMAT_VERSION}. Upgrade it: pip install --upgrade resnetkit"
            )
        return _parse_manifest(values)
    except DataError:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"{name} is not a valid list of shards ({reason}). Write the shards again with "
            "resnet shard"
        ) from error


def _parse_manifest(values: dict[str, Any]) -> Manifest:
    """Return the manifest.

    Raises:
        ValueError, KeyError, TypeError: a value is missing or not valid.
    """
    name = values["name"]
    _expect(isinstance(name, str) and os.path.basename(name) == name and "\0" not in name, "name")
    classes = values["classes"]
    _expect(isinstance(classes, list) and all(isinstance(one, str) for one in classes), "classes")
    _expect(len(set(classes)) == len(classes), "classes")
    splits = values["splits"]
    _expect(isinstance(splits, dict) and set(splits) <= {*SPLITS.values(), "all"}, "splits")
    for counts in splits.values():
        _expect(isinstance(counts, dict) and set(counts) <= set(classes), "splits")
        _expect(all(map(_is_count, counts.values())), "splits")
    shards = tuple(Shard(**shard) for shard in values["shards"])
    for shard in shards:
        _expect(isinstance(shard.name, str) and _SHARD_NAME.fullmatch(shard.name), "shards")
        _expect(_is_count(shard.images) and _is_count(shard.bytes), "shards")
        _expect(isinstance(shard.sha256, str) and _SHA256.fullmatch(shard.sha256), "shards")
    digest = values["index_sha256"]
    _expect(isinstance(digest, str) and _SHA256.fullmatch(digest), "index_sha256")
    # The order of the images is taken from lists: a program may have sorted the keys of an object.
    by_split = groupby(shards, lambda shard: shard.name.rpartition("-")[0])
    images = {split: sum(shard.images for shard in group) for split, group in by_split}
    _expect(images == {s: sum(counts.values()) for s, counts in splits.items()}, "number of images")
    ordered = {s: {name: splits[s][name] for name in classes if name in splits[s]} for s in images}
    manifest = Manifest(name, tuple(classes), ordered, shards=shards, index_sha256=digest)
    _expect(manifest.images > 0, "number of images")
    return manifest


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _expect(is_valid: object, what: str) -> None:
    if not is_valid:
        raise ValueError(f"{what} is not valid")


def _safetensors() -> Any:
    # Imported here, so that code that reads photos without PyTorch does not need safetensors
    # either.
    import safetensors.numpy

    return safetensors.numpy


@contextmanager
def _index_errors(name: str) -> Iterator[None]:
    """Turn any problem with the index ``name`` into a `DataError`."""
    from safetensors import SafetensorError

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{name} is not a valid index ({reason}). Copy the folder again, or write it again "
            "with resnet shard"
        ) from error


def _read_index(file: Path, manifest: Manifest) -> dict[str, np.ndarray]:
    """Return the arrays of the index, checked against each other and the manifest."""
    with _index_errors(str(file)):
        if not stat.S_ISREG(os.stat(file).st_mode):
            raise ValueError("it is not a regular file")
        _expect(file.stat().st_size <= _MAX_INDEX * manifest.images + 2**20, "size")
        if storage.sha256(file) != manifest.index_sha256:
            raise ValueError(f"its SHA-256 is not the one in {SHARDS}")
        return _check_index(_safetensors().load_file(file), manifest)


def _check_index(arrays: dict[str, np.ndarray], manifest: Manifest) -> dict[str, np.ndarray]:
    """Check the arrays of an index, and return them.

    Raises:
        ValueError: the arrays do not match each other or the manifest.
    """
    count = manifest.images
    _expect(arrays.keys() == {*_ARRAYS, "paths", "sha256"}, "list of arrays")
    for name, dtype in _ARRAYS.items():
        _expect(arrays[name].dtype == dtype and arrays[name].shape == (count,), name)
    _expect(arrays["paths"].dtype == np.uint8 and arrays["paths"].ndim == 1, "paths")
    _expect(arrays["sha256"].dtype == np.uint8, "sha256")
    _expect(arrays["sha256"].shape == (count, 32), "sha256")
    _expect(arrays["lengths"].sum(dtype=np.uint64) == arrays["paths"].size, "paths")
    _expect(arrays["by_path"].max() < count, "by_path")
    ends = np.repeat(
        np.array([shard.bytes for shard in manifest.shards], np.uint64),
        [shard.images for shard in manifest.shards],
    )
    offsets = arrays["offsets"]
    inside = (offsets >= BLOCK) & (offsets <= ends)
    inside &= arrays["sizes"] <= ends - np.minimum(offsets, ends)
    if not inside.all():
        raise ValueError(f"image {int(np.argmin(inside))} is not inside its shard")
    return arrays


def member_name(row: int, path: str) -> str:
    """Return the name of an image in its shard. WebDataset uses the part before the dot as its key.

    >>> member_name(12, "train/cat/IMG.1.JPG")
    '00000012.jpg'
    """
    extension = os.path.splitext(path)[1].lower()
    return f"{row:08d}{extension if extension in EXTENSIONS else '.bin'}"


def issues(root: Path) -> Iterator[str]:
    """Read all shards of a folder, and yield the problems with them."""
    shards = open_shards(root)
    for shard in shards.manifest.shards:
        issue = shards.issue(shard)
        if issue is not None:
            yield issue
