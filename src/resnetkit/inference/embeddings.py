"""Write the features of many images to one ``.npz`` file, using little memory, and read it."""

from __future__ import annotations

import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import DataError, OutputError
from ..storage import atomic

CHUNK = 2**20  # bytes copied at a time


class EmbeddingsFile:
    """A writer that collects features in temporary files and writes the file on a clean exit.

    The file holds ``features``, ``(n, C)`` float32, and ``sources``, ``(n,)`` strings: one row per
    readable image, in the order of the images. ``model`` is the digest of the model file.

    Args:
        path: the file to write.
        model: the first 12 hex digits of the model file's SHA-256.

    Raises:
        OutputError: the file exists, is not named ``.npz``, or its folder cannot be written to.
    """

    def __init__(self, path: Path, model: str) -> None:
        if path.suffix != ".npz":
            raise OutputError(f"The embeddings file must end in .npz; got {path}")
        if path.exists():
            raise OutputError(f"{path} exists. Name another file, or remove this one")
        self.path = path
        self.model = model
        self.count = 0
        self.width = 0
        self._longest = 1
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._features = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
            self._sources = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror})") from error

    def __enter__(self) -> EmbeddingsFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        with self._features, self._sources:
            if kind is None:
                self._write_archive()

    def add(self, source: str, features: np.ndarray) -> None:
        """Append the features of one image, ``(C,)`` float32."""
        name = source.encode("utf-8", "surrogateescape")
        self._longest = max(self._longest, len(source))
        try:
            self._features.write(features.astype("<f4").tobytes())
            self._sources.write(len(name).to_bytes(4, "little") + name)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror})") from error
        self.count += 1
        self.width = len(features)

    def _write_archive(self) -> None:
        self._features.seek(0)
        self._sources.seek(0)
        with atomic(self.path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as file:
                _write_header(file, "<f4", (self.count, self.width))
                while chunk := self._features.read(CHUNK):
                    file.write(chunk)
            # NumPy pads every string to the length of the longest, at 4 bytes per character. The
            # zeros compress well.
            info = zipfile.ZipInfo("sources.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                _write_header(file, f"<U{self._longest}", (self.count,))
                for _ in range(self.count):
                    length = int.from_bytes(self._sources.read(4), "little")
                    name = self._sources.read(length).decode("utf-8", "surrogateescape")
                    # NumPy strings cannot hold bytes that are not UTF-8: they become "?".
                    encoded = name.encode("utf-32-le", "replace")
                    file.write(encoded.ljust(4 * self._longest, b"\0"))
            with archive.open("model.npy", "w") as file:
                np.lib.format.write_array(file, np.array(self.model))


def read_embeddings(path: Path) -> tuple[np.ndarray, list[str], str]:
    """Read a file that `EmbeddingsFile` wrote.

    Returns:
        The features ``(n, C)`` float32, the sources, and the digest of the model file, which is
        empty if an older version wrote the file.

    Raises:
        DataError: the file cannot be read, or is not an embeddings file.
    """
    expected = "expected a file that `resnet predict --embeddings FILE.npz` wrote"
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            features = archive["features"]
            sources = archive["sources"]
            model = str(archive["model"]) if "model" in archive else ""
    except (
        OSError,
        KeyError,
        ValueError,
        TypeError,
        EOFError,
        MemoryError,  # the header claims a huge array
        RuntimeError,  # the archive is encrypted
        zlib.error,
        zipfile.BadZipFile,
    ) as error:
        raise DataError(f"{path} cannot be read ({error}); {expected}") from error
    is_float = np.issubdtype(features.dtype, np.floating)
    if features.ndim != 2 or not is_float or sources.shape != features.shape[:1]:
        raise DataError(
            f"{path} has features {features.dtype} {features.shape} and sources {sources.shape}; "
            f"{expected}"
        )
    return features.astype(np.float32, copy=False), [str(name) for name in sources], model


def _write_header(file: IO[bytes], dtype: str, shape: tuple[int, ...]) -> None:
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
