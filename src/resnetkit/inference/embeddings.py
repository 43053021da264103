"""What the last layer sees of many pictures, into one ``.npz`` file, in little memory."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import OutputError
from ..storage import atomic

CHUNK = 2**20  # bytes that are copied at once


class EmbeddingsFile:
    """Collects vectors beside the file and writes it when it is closed without an error.

    ``numpy.load`` finds in it ``features``, ``(n, C)`` float32, and ``sources``, ``(n,)`` strings:
    one row for each picture that could be read, in the order of the pictures.

    Raises:
        OutputError: the file is there, or there is no writing to its folder.
    """

    def __init__(self, path: Path) -> None:
        if path.suffix != ".npz":
            raise OutputError(f"embeddings are written as .npz; got {path}")
        if path.exists():
            raise OutputError(f"{path} exists; name another file, or remove this one")
        self.path, self.count, self.width, self._longest = path, 0, 0, 1
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
                self._publish()

    def add(self, source: str, features: np.ndarray) -> None:
        """Append the ``(C,)`` float32 vector of one picture."""
        name = source.encode("utf-8", "surrogateescape")
        self._longest = max(self._longest, len(source))
        try:
            self._features.write(features.astype("<f4").tobytes())
            self._sources.write(len(name).to_bytes(4, "little") + name)
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written ({error.strerror})") from error
        self.count, self.width = self.count + 1, len(features)

    def _publish(self) -> None:
        self._features.seek(0)
        self._sources.seek(0)
        with atomic(self.path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
            with archive.open("features.npy", "w", force_zip64=True) as file:
                _write_header(file, "<f4", (self.count, self.width))
                while chunk := self._features.read(CHUNK):
                    file.write(chunk)
            # Four bytes a letter, as many as the longest name has: mostly zeros, which pack well.
            info = zipfile.ZipInfo("sources.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as file:
                _write_header(file, f"<U{self._longest}", (self.count,))
                for _ in range(self.count):
                    length = int.from_bytes(self._sources.read(4), "little")
                    name = self._sources.read(length).decode("utf-8", "surrogateescape")
                    # A byte that is no UTF-8 cannot stand in NumPy's strings: it is escaped.
                    letters = name.encode("utf-32-le", "replace")
                    file.write(letters.ljust(4 * self._longest, b"\0"))


def _write_header(file: IO[bytes], kind: str, shape: tuple[int, ...]) -> None:
    description = {"descr": kind, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, description)
