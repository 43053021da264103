"""A folder of Parquet parts with exactly one row per image; a later run can continue it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputError
from ..storage import atomic, discard, locked, make_output, refuse_used, write_json

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 20_000
"""Number of rows in one part; a part has fewer if ``seconds`` pass first."""

SETTINGS = "_settings.json"  # readers of Parquet folders skip names that begin with _ or .


def image_key(source: str, version: str) -> bytes:
    """Return the key that identifies an image among the rows of a folder."""
    return blake2b(f"{source}\0{version}".encode(), digest_size=16).digest()


class Parts:
    """A folder of Parquet parts, locked while it is open.

    All rows in a folder are answers from one model with the same settings. A part is written under
    a temporary name and renamed, so readers see only complete parts, and a killed run leaves only
    complete parts. A lock lets one process at a time write to the folder.

    Args:
        folder: the folder; new, empty, or written with the same settings.
        settings: the settings that the rows depend on, including the model's SHA-256, as JSON
            values.
        schema: the columns; ``source``, ``version`` and ``error`` are among them.
        seconds: maximum time that rows wait for more rows before they are written. A killed run
            loses at most the rows that arrived within this time.

    Attributes:
        done: the `image_key` of each row that was already in the folder.
        rows: the number of rows.
        failed: the number of rows with an error.

    Raises:
        OutputError: the folder is in use, has other settings, or cannot be written.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], schema: pa.Schema, seconds: float = 30.0
    ) -> None:
        self.folder = folder
        self._settings = settings
        self._schema = schema
        self._seconds = seconds
        self.done: set[bytes] = set()
        self.rows = 0
        self.failed = 0
        self._waiting: list[pa.Table] = []
        self._flushed = self._added = time.monotonic()
        self._number = 0
        self._stack = ExitStack()

    def __enter__(self) -> Parts:
        if not (self.folder / SETTINGS).is_file():
            refuse_used(self.folder)
        make_output(self.folder)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.folder / ".lock", wait=False))
            except BlockingIOError:
                raise OutputError(
                    f"Another command is writing to {self.folder}. Wait until it ends, or name "
                    "another folder with --out"
                ) from None
            self._check_settings()
            for unfinished in self.folder.glob(".part-*"):  # left by a killed run
                discard(unfinished)
            self._read()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        with self._stack:
            self.flush()  # even after an error: the buffered rows are complete

    def _check_settings(self) -> None:
        path = self.folder / SETTINGS
        if not path.is_file():
            write_json(path, self._settings)
            return
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise OutputError(f"{path} is not valid JSON. Name another folder with --out") from None
        for name in {**found, **self._settings}:
            if found.get(name) != self._settings.get(name):
                raise OutputError(
                    f"{self.folder} has rows with {name} {found.get(name)}; now it is "
                    f"{self._settings.get(name)}. Use that one, or name another folder with --out"
                )

    def _read(self) -> None:
        from pyarrow import parquet

        for path in sorted(self.folder.glob("part-*.parquet")):
            columns = parquet.read_table(path, columns=["source", "version", "error"]).to_pydict()
            self.done.update(map(image_key, columns["source"], columns["version"]))
            self.rows += len(columns["source"])
            self.failed += sum(error is not None for error in columns["error"])
            self._number = int(path.stem.removeprefix("part-")) + 1

    def add(self, table: pa.Table) -> None:
        """Add rows; they are written once there are enough for a part, or by `flush`.

        They are also written if the part would be too old by the time more rows arrive, which is
        expected to take as long as these rows took.
        """
        self._waiting.append(table.select(self._schema.names).cast(self._schema))
        now = time.monotonic()
        next_rows = now + (now - self._added)
        self._added = now
        if sum(map(len, self._waiting)) >= ROWS or next_rows - self._flushed >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write the waiting rows as one part.

        Raises:
            OutputError: the part cannot be written.
        """
        import pyarrow as pa
        from pyarrow import parquet

        self._flushed = time.monotonic()
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting)
        self._waiting = []
        with atomic(self.folder / f"part-{self._number:06d}.parquet") as temporary:
            parquet.write_table(table, temporary)
        self._number += 1
        self.rows += len(table)
        self.failed += len(table) - table["error"].null_count
