"""Write a dataset as shards; see `resnetkit.data.shards`. The same images give the same bytes."""

from __future__ import annotations

import os
import posixpath
import tarfile
import tempfile
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import safetensors.numpy

from .. import storage
from ..errors import DataError, ImageError, OutputError
from ..prefetch import prefetch_map
from ..processes import default_workers
from . import files, object_store
from .decode import UNNAMED, decode
from .folder import Dataset, read_dataset
from .paths import Paths, object_url
from .shards import BLOCK, INDEX, Manifest, Shard, member_name
from .tree import SHARDS

SIZE = 256
"""Default size limit of a shard, in megabytes."""

_END = bytes(2 * BLOCK)  # the end of a tar
_WORKING_SIZE = 64  # shorter side in pixels: enough to find damage
_MODE = 0o644


@dataclass(frozen=True)
class Written:
    """The result of `write_shards`.

    Args:
        manifest: classes, splits, counts and shards.
        unreadable: ``{path: error}`` of the images that cannot be decoded; the shards include them.
        remarks: the files left out of the dataset, and how ambiguous folders were read.
    """

    manifest: Manifest
    unreadable: dict[str, str]
    remarks: tuple[str, ...]


def write_shards(
    data: str | os.PathLike[str],
    out: str | os.PathLike[str],
    size: int = SIZE,
    workers: int | None = None,
    progress: Callable[[int], Callable[[str], None]] = lambda total: lambda text: None,
) -> Written:
    """Write the images in a dataset to the new folder ``out``.

    The folder appears only once it is complete and flushed to disk. In an object store,
    ``shards.json`` is written last; without it, the shards cannot be read.

    Args:
        data: a folder or a CSV manifest; see `data.folder`.
        out: the folder to create, or an unused prefix in an object store, such as
            ``s3://bucket/packed``. Its shards are written to a temporary folder first.
        size: size limit of a shard, in megabytes; only a shard with a single larger image exceeds
            it.
        workers: threads that read images; one per core by default.
        progress: takes the number of images and returns a function to call after each image.

    Raises:
        DataError: ``data`` cannot be trained on, or a file in it cannot be read.
        OutputError: ``out`` exists or cannot be written.
    """
    url = object_url(out)
    if url is not None:
        used = [key for key, _ in object_store.list_objects(url)]
        if used:
            raise OutputError(
                f"{url} is in use: it holds {min(used)}. Expected an empty prefix. Name another one"
            )
        with tempfile.TemporaryDirectory(prefix="resnet-shard-") as temporary:
            folder = Path(temporary) / "packed"
            written = write_shards(data, folder, size, workers, progress)
            names = sorted(os.listdir(folder), key=lambda name: (name == SHARDS, name))
            for name in names:
                object_store.upload(folder / name, f"{url}/{name}")
        return written
    out = Path(out)
    storage.refuse_existing(out)
    storage.refuse_unwritable(out)
    dataset = read_dataset(data)
    rows = _Rows(dataset)
    advance = progress(len(rows.paths))
    workers = default_workers() if workers is None else workers
    index = _Index()
    unreadable: dict[str, str] = {}
    with storage.atomic_folder(out) as folder, _Tars(folder, size * 10**6) as tars:
        storage.make_output(folder)
        results = prefetch_map(rows.read, range(len(rows.paths)), workers)
        for row, (image, error) in enumerate(results):
            path = rows.paths[row]
            if error is not None:
                unreadable[path] = error
            split, label = rows.split_and_label(row)
            members = {member_name(row, path): image, f"{row:08d}.cls": str(label).encode()}
            index.add(tars.add(split, members), image)
            advance("")
        tars.finish()
        (folder / INDEX).write_bytes(index.to_bytes(rows.paths))
        manifest = Manifest(
            dataset.name,
            dataset.classes,
            _counts(dataset),
            shards=tuple(tars.shards),
            index_sha256=storage.sha256(folder / INDEX),
        )
        manifest.write(folder / SHARDS)
    return Written(manifest, unreadable, remarks=dataset.remarks)


class _Rows:
    """The images of all splits in one sequence, with the paths that they get in the shards."""

    def __init__(self, dataset: Dataset) -> None:
        self._names = list(dataset.splits)
        self._splits = list(dataset.splits.values())
        self._starts = np.cumsum([0, *map(len, self._splits)])
        self.paths = Paths(_inner_paths(dataset))

    def _find(self, row: int) -> tuple[int, int]:
        """Return the number of an image's split, and the image's index in that split."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return number, row - int(self._starts[number])

    def split_and_label(self, row: int) -> tuple[str, int]:
        """Return the name of an image's split and the index of its class."""
        number, index = self._find(row)
        return self._names[number], int(self._splits[number].labels[index])

    def read(self, row: int) -> tuple[bytes, str | None]:
        """Return the bytes of an image, and the error message if they cannot be decoded.

        Raises:
            DataError: the file cannot be read.
        """
        number, index = self._find(row)
        path = self._splits[number].path(index)
        try:
            contents = files.read_file(path)
        except ImageError as error:
            raise DataError(
                f"{error}. Nothing was written. Repair or remove the file; `resnet check` lists "
                "all such files"
            ) from error
        try:
            decode(contents, _WORKING_SIZE, value_range="image")
        except ImageError as error:
            return contents, str(error).removeprefix(f"{UNNAMED}: ")
        return contents, None


def _inner_paths(dataset: Dataset) -> Iterator[str]:
    """Yield the path that each image gets: as in the dataset, or relative to a common parent.

    A CSV manifest may name images outside its folder, but a path in shards must not lead out of
    them.
    """
    paths = [posixpath.normpath(path) for split in dataset.splits.values() for path in split.paths]
    if not any(os.path.isabs(path) or path.startswith("../") for path in paths):
        yield from paths
        return
    base = next(iter(dataset.splits.values())).root.absolute()
    full = [os.path.normpath(base / path) for path in paths]
    try:
        parent = os.path.commonpath([os.path.dirname(path) for path in full])
    except ValueError as error:  # on different Windows drives
        raise DataError(f"{dataset.root} names images on several drives. Use one drive") from error
    for path in full:
        yield Path(path).relative_to(parent).as_posix()


def _counts(dataset: Dataset) -> dict[str, dict[str, int]]:
    counts = {name: split.counts(len(dataset.classes)) for name, split in dataset.splits.items()}
    return {
        name: {label: n for label, n in zip(dataset.classes, by_class, strict=True) if n}
        for name, by_class in counts.items()
    }


class _Index:
    """The columns of the index, one value per image."""

    def __init__(self) -> None:
        self.offsets = array("Q")
        self.sizes = array("I")
        self.digests = bytearray()

    def add(self, offset: int, image: bytes) -> None:
        self.offsets.append(offset)
        self.sizes.append(len(image))
        self.digests += sha256(image).digest()

    def to_bytes(self, paths: Paths) -> bytes:
        """Return the contents of the index file.

        Raises:
            DataError: a path is too long, or two different images have the same path.
        """
        text, lengths = paths.to_buffers()
        if lengths.max() > np.iinfo(np.uint16).max:
            raise DataError(f"The path {paths[int(lengths.argmax())][:80]}... is too long")
        by_path = np.array(sorted(range(len(paths)), key=paths.encoded), np.uint32)
        digests = np.frombuffer(self.digests, np.uint8).reshape(-1, 32)
        for row, other in pairwise(by_path.tolist()):
            is_same = paths.encoded(row) == paths.encoded(other)
            if is_same and not np.array_equal(digests[row], digests[other]):
                raise DataError(
                    f"Two different images would have the path {paths[row]} in the shards. "
                    "Nothing was written. Write paths without '..' after a link to a folder, and "
                    "do not change images while they are being packed"
                )
        arrays = {
            "paths": text,
            "lengths": lengths.astype(np.uint16),
            "offsets": np.array(self.offsets, np.uint64),
            "sizes": np.array(self.sizes, np.uint32),
            "sha256": digests,
            "by_path": by_path,
        }
        return safetensors.numpy.save(arrays)


class _Tars:
    """Tar files written in sequence, each of at most ``limit`` bytes.

    They hold only names, sizes and contents: no times, owners or other traces of this machine.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.shards: list[Shard] = []
        self._folder = folder
        self._limit = limit
        self._split = ""
        self._images = 0
        self._bytes = 0
        self._file: BinaryIO | None = None
        self._hash = sha256()

    def __enter__(self) -> _Tars:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, split: str, members: dict[str, bytes]) -> int:
        """Write the tar members for an image; return the offset of the first member's contents."""
        needed = sum(BLOCK + len(part) + -len(part) % BLOCK for part in members.values())
        if split != self._split or self._bytes + needed + len(_END) > self._limit:
            self.finish()
            self._split = split
        if self._file is None:
            number = sum(shard.name.startswith(f"{split}-") for shard in self.shards)
            self._file = (self._folder / f"{split}-{number:06d}.tar").open("wb")
        begin = self._bytes + BLOCK
        for name, contents in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(contents)
            header.mode = _MODE
            self._write(header.tobuf(tarfile.USTAR_FORMAT))
            self._write(contents)
            self._write(bytes(-len(contents) % BLOCK))
        self._images += 1
        return begin

    def finish(self) -> None:
        """End the current tar, if there is one."""
        if self._file is None:
            return
        self._write(_END)
        self._file.close()
        name = os.path.basename(self._file.name)
        digest = self._hash.hexdigest()
        self.shards.append(Shard(name, self._images, self._bytes, sha256=digest))
        self._file = None
        self._images = 0
        self._bytes = 0
        self._hash = sha256()

    def _write(self, part: bytes) -> None:
        assert self._file is not None
        self._file.write(part)
        self._hash.update(part)
        self._bytes += len(part)
