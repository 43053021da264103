"""Sources -> the images that they name, with versions; images -> blocks of bounded size."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..data.object_store import READERS, ObjectNotFound, find_version, list_versions
from ..data.paths import is_image, object_url
from ..data.tree import SHARDS
from ..errors import RecipeError
from ..inference.images import ImageLike, Unreadable, source_name
from ..prefetch import prefetch_map
from .batches import local_path, utf8
from .parts import image_key

if TYPE_CHECKING:
    import pyarrow as pa

BLOCK_BYTES = 256 * 2**20
"""Bytes of image files in one block, the unit of work of an actor."""

LEAST_BYTES = 2**20
"""Minimum bytes to count per image, so that a block of small images does not take minutes."""

COLUMNS = ("bytes", "image", "path")
"""Columns of a Parquet file that may hold the images; the first one present is used."""

Expand = Callable[[Sequence[str]], Iterator[str | bytes | Unreadable]]


class Item(NamedTuple):
    """An image: its location and its version.

    Args:
        source: the image's name in the rows.
        version: the size and modification time of a file, the entity tag of an object in a store,
            or the SHA-256 of bytes; empty if there is nothing to read.
        size: number of bytes to read.
        image: a path, the bytes, or the reason why there is no image.
        column, row: the place of the bytes in the Parquet file ``image``.
    """

    source: str
    version: str
    size: int
    image: str | bytes | Unreadable
    column: str | None = None
    row: int | None = None


def list_items(arguments: Iterable[str], expand: Expand) -> Iterator[Item]:
    """Yield the images that arguments name, in order.

    Args:
        arguments: what `resnet predict` takes, ``file://`` URLs, and Parquet files or folders of
            them on this machine, with a column of paths or bytes: ``photos.parquet#column``.
        expand: yields the images of arguments that are not Parquet files.

    Raises:
        RecipeError: an address has an unsupported scheme, or a Parquet file has no images.
        DataError: an object store cannot be listed.
    """
    versions = _Versions()
    for argument in arguments:
        path = local_path(argument)
        url = object_url(path)
        if url is not None and not is_image(url):
            _refuse_remote_parquet(url)
            versions.list(url)
        files, column = ([], None) if url is not None else _parquet_files(path, expand)
        if files:
            for file in files:
                yield from _read_parquet(file, column, versions)
        else:
            yield from _items(expand([path]), versions)


def _items(images: Iterable[str | bytes | Unreadable], versions: _Versions) -> Iterator[Item]:
    """Yield images with their versions, asking an object store about many at once."""
    for is_remote, group in groupby(images, lambda image: _object_url(image) is not None):
        yield from prefetch_map(versions.item, group, READERS if is_remote else 0)


def _object_url(image: str | bytes | Unreadable) -> str | None:
    return object_url(image) if isinstance(image, str) else None


class _Versions:
    """Finds the versions of images; those under a listed prefix need no further request."""

    def __init__(self) -> None:
        self._prefix = ""
        self._listed: dict[str, tuple[str, int]] = {}  # the objects under the prefix
        self._manifests: dict[str, str] = {}  # folder -> version of the shards there or above it

    def list(self, url: str) -> None:
        """List the objects under a prefix."""
        self._prefix = url.rstrip("/") + "/"
        self._listed = list_versions(url)

    def item(self, image: str | bytes | Unreadable) -> Item:
        """Return an image with its version."""
        source = utf8(source_name(image))
        if isinstance(image, bytes):
            return Item(source, sha256(image).hexdigest(), len(image), image)
        if isinstance(image, Unreadable):
            return Item(source, "", 0, image)
        url = object_url(image)
        return Item(source, *(_version(image) if url is None else self._find(url)), image=image)

    def _find(self, url: str) -> tuple[str, int]:
        """Return the version and size of an object, or the version of the shards that it is in."""
        if self._prefix and url.startswith(self._prefix):
            if url in self._listed:
                return self._listed[url]
        else:
            with suppress(ObjectNotFound):
                return find_version(url)
        version = self._find_manifest(url.rpartition("/")[0])
        return (f"shards-{version}", 0) if version else ("", 0)

    def _find_manifest(self, folder: str) -> str:
        if folder.count("/") < 2:
            return ""
        if folder not in self._manifests:
            try:
                self._manifests[folder] = find_version(f"{folder}/{SHARDS}")[0]
            except ObjectNotFound:
                self._manifests[folder] = self._find_manifest(folder.rpartition("/")[0])
        return self._manifests[folder]


def _refuse_remote_parquet(url: str) -> None:
    if url.rpartition("#")[0].endswith(".parquet") or url.endswith(".parquet"):
        raise RecipeError(
            f"{url}: Parquet files must be on this machine; the paths in them may be URLs. "
            "Copy the file, and name the copy"
        )


def _version(path: str) -> tuple[str, int]:
    """Return a file's version (its size and modification time, as text) and its size.

    An image in shards has the version of the shards' manifest. A missing file has no version: its
    row says that the file is missing.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        folder = next((p for p in Path(path).parents if os.path.isdir(p)), None)
        if folder is None or not (folder / SHARDS).is_file():
            return "", 0
        return f"shards-{_version(str(folder / SHARDS))[0]}", 0
    return f"{status.st_size}-{status.st_mtime_ns}", status.st_size


def _parquet_files(argument: str, expand: Expand) -> tuple[list[str], str | None]:
    """Return the Parquet files that an argument names, if any, and the column in ``#column``.

    A folder with images in it is read as a folder of images, even if it also has a Parquet file,
    for example with labels.
    """
    path, mark, column = argument, "", ""
    if "#" in argument and not os.path.exists(argument):
        path, mark, column = argument.rpartition("#")
    found: list[str] = []
    if os.path.isdir(path):
        if mark or isinstance(next(expand([path])), Unreadable):
            found = sorted(
                str(file)
                for file in Path(path).rglob("*.parquet")
                if not any(map(_is_hidden, file.relative_to(path).parts))
            )
    elif path.endswith(".parquet"):
        found = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
    files = [file for file in found if not _is_hidden(os.path.basename(file))]
    if mark and not files:
        raise RecipeError(f"{argument}: there is no Parquet file at {path}")
    return files, column or None


def _is_hidden(name: str) -> bool:
    """Return whether Spark and Hive skip a file or folder; ``_year=2024`` is a partition."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _read_parquet(path: str, column: str | None, versions: _Versions) -> Iterator[Item]:
    """Yield the images in a Parquet file. A column of paths is read, a column of bytes is not."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        yield versions.item(Unreadable(path, f"{path} is not a readable Parquet file ({error})"))
        return
    with file:
        names = file.schema_arrow.names
        default = next((name for name in COLUMNS if name in names), None)
        name = column or default
        if name not in names:
            raise RecipeError(
                f"{path} has no column {column or ' or '.join(COLUMNS)}. Name the column of paths "
                f"or bytes: {path}#COLUMN; it has {', '.join(names)}"
            )
        kind = file.schema_arrow.field(name).type
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            for batch in file.iter_batches(columns=[name]):
                missing = Unreadable(path, f"{path}: a row has no path")
                values = batch[0].to_pylist()
                paths = (missing if v is None else local_path(v) for v in values)
                yield from _items(paths, versions)
            return
        if not _holds_bytes(kind):
            raise RecipeError(f"{path}: column {name} must hold paths or bytes; it holds {kind}")
        version = _version(path)[0]
        source = utf8(path) if name == default else f"{utf8(path)}#{name}"
        start = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            size = group.total_byte_size // max(1, group.num_rows)
            for row in range(start, start + group.num_rows):
                yield Item(f"{source}:{row}", version, size, path, name, row)
            start += group.num_rows


def _holds_bytes(kind: pa.DataType) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):  # images in Hugging Face's format: {"bytes", "path"}
        return any(f.name == "bytes" and _holds_bytes(f.type) for f in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def cut_blocks(items: Iterable[Item], seen: set[bytes]) -> Iterator[pa.Table]:
    """Yield the images that have no row yet, as tables of bounded size for `open_block`.

    An image that is named twice gets one row.

    Args:
        items: the images.
        seen: the keys of the images that have a row; the others are added.
    """
    block: list[dict[str, Any]] = []
    size = 0
    number = 0
    for item in items:
        key = image_key(item.source, item.version)
        if key in seen:
            continue
        seen.add(key)
        block.append(
            {
                "number": number,
                "source": item.source,
                "version": item.version,
                "path": os.fsencode(item.image) if isinstance(item.image, str) else None,
                "bytes": item.image if isinstance(item.image, bytes) else None,
                "reason": item.image.error if isinstance(item.image, Unreadable) else None,
                "column": item.column,
                "row": item.row,
            }
        )
        number += 1
        size += max(item.size, LEAST_BYTES)
        if size >= BLOCK_BYTES:
            yield _table(block)
            block, size = [], 0
    if block:
        yield _table(block)


def _table(block: list[dict[str, Any]]) -> pa.Table:
    import pyarrow as pa

    columns = {"number": pa.int64(), "source": pa.string(), "version": pa.string()}
    columns |= {"path": pa.binary(), "bytes": pa.large_binary(), "reason": pa.string()}
    columns |= {"column": pa.string(), "row": pa.int64()}
    return pa.Table.from_pylist(block, schema=pa.schema(list(columns.items())))


def open_block(block: pa.Table) -> Iterator[ImageLike | None]:
    """Yield the images in a block from `cut_blocks`, in order; called on the host that predicts.

    None stands for a missing value in a Parquet file.
    """
    rows = block.to_pylist()
    for (path, column), together in groupby(rows, lambda row: (row["path"], row["column"])):
        if column is not None:
            yield from _bytes_of_rows(os.fsdecode(path), column, [row["row"] for row in together])
            continue
        for row in together:
            if row["reason"] is not None:
                yield Unreadable(row["source"], row["reason"])
            else:
                yield row["bytes"] if path is None else os.fsdecode(path)


def _bytes_of_rows(path: str, column: str, rows: Sequence[int]) -> Iterator[bytes | None]:
    """Yield the values in the given rows of a Parquet column; ``rows`` is in ascending order."""
    from pyarrow import parquet

    wanted = iter(rows)
    row = next(wanted, None)
    start = 0
    with parquet.ParquetFile(path) as file:
        for number in range(file.num_row_groups):
            end = start + file.metadata.row_group(number).num_rows
            if row is not None and row < end:
                for batch in file.iter_batches(64, row_groups=[number], columns=[column]):
                    while row is not None and row < start + len(batch):
                        value = batch[0][row - start].as_py()
                        yield value.get("bytes") if isinstance(value, dict) else value
                        row = next(wanted, None)
                    if row is None:
                        return
                    start += len(batch)
            start = end
