"""The full state of a run on disk: two generations, checksummed, atomic.

A generation is one file, ``state/000012-<sha256>.safetensors``: its number in the order of saving,
and the checksum of what it holds. It gets this name once it is complete, and no file is ever
written again; so a crash at any write, fsync or rename leaves the generations before it untouched.
``state/manifest.json`` tells people and monitors which is the newest and where the run is; reading
the state does not need it.
"""

from __future__ import annotations

import errno
import json
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import storage
from ..errors import OutputError, TrainingError
from ..progress import say

MANIFEST, LOCK = "manifest.json", ".lock"
GENERATION = re.compile(r"(\d{6,})-([0-9a-f]{64})\.safetensors")
UNFINISHED = re.compile(r"\.(\d{6,}|manifest\.json)\.\w{8,}")
"""What `storage.temporary` calls a file that a killed run left."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Args:
        tensors: weights, buffers and moments, by name.
        values: everything else, as JSON; ``step``, ``epoch`` and ``batch`` say where it is.
        generation: which one it was read from.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    generation: Path | None = None


class Checkpoints:
    """Saves snapshots into a folder, in a thread, one after another.

    Args:
        folder: ``state/`` of the run.
        seconds: between two saves, for `due`.
        resumed: the snapshot that the run goes on from. It is kept until two newer ones are there;
            one that turned out to be damaged is not.
    """

    def __init__(self, folder: Path, seconds: float, resumed: Snapshot | None = None) -> None:
        self.folder, self.seconds = folder, seconds
        self._before = None if resumed is None else resumed.generation
        self._last = time.monotonic()
        self._pending: Future[Path] | None = None
        self._lock = ExitStack()

    def __enter__(self) -> Checkpoints:
        return self

    def hold(self) -> None:
        """Hold the folder until this is left: two runs never write to one.

        Raises:
            OutputError: another process holds it.
        """
        try:
            self._lock.enter_context(storage.locked(self.folder / LOCK, wait=False))
        except BlockingIOError:
            raise OutputError(f"Another run is writing to {self.folder.parent} right now") from None

    def __exit__(self, *error: object) -> None:
        """What was saved reaches the disk, also when the run ends by an error."""
        if self._pending is not None:
            wait([self._pending])
        self._lock.close()

    def due(self) -> bool:
        """Whether ``seconds`` have passed since the last save."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, snapshot: Snapshot) -> None:
        """Write ``snapshot``, whose tensors must not change any more, while training goes on.

        Raises:
            OutputError: the save before this one could not be written.
        """
        self.wait()
        self._last = time.monotonic()
        # A thread of its own each time: copying tensors gives a thread a team of compute threads,
        # and as long as that team lives, OpenMP thinks the machine is overbooked and halves the
        # speed of training.
        writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = writer.submit(write, self.folder, snapshot, self._before)
        writer.shutdown(wait=False)

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            OutputError: it could not be written.
        """
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                self._before = pending.result()
        except OSError as error:
            raise OutputError(
                f"The state cannot be saved to {self.folder} ({error.strerror}). What was saved "
                "before is kept; make room and resume with --resume"
            ) from error

    def finish(self) -> None:
        """Wait, and keep only the newest generation."""
        self.wait()
        _clean(self.folder, {self._before})


def write(folder: Path, snapshot: Snapshot, before: Path | None = None) -> Path:
    """Make ``snapshot`` the newest generation, keep that and ``before``, and return its path."""
    number = max((number for number, _, _ in generations(folder)), default=0) + 1
    plain = {key: tensor.contiguous() for key, tensor in snapshot.tensors.items()}
    with storage.temporary(folder / f"{number:06d}") as unfinished:
        try:
            save_file(plain, unfinished, {"values": json.dumps(snapshot.values)})
        except SafetensorError as error:  # its word for a full disk, too
            raise OSError(errno.EIO, str(error)) from error
        digest = storage.sha256(unfinished)
        path = folder / f"{number:06d}-{digest}.safetensors"
        storage.publish(unfinished, path)
    place = {key: snapshot.values[key] for key in ("step", "epoch", "batch")}
    storage.write_json(folder / MANIFEST, {**place, "files": {path.name: digest}})
    _clean(folder, {path, before})
    return path


def _clean(folder: Path, keep: set[Path | None]) -> None:
    """Remove generations, and what killed runs left of them; other files are not ours, such as the
    ``.nfs...`` of one that is removed while it is open."""
    for path in folder.iterdir():
        ours = GENERATION.fullmatch(path.name) or UNFINISHED.fullmatch(path.name)
        if ours and path not in keep:
            storage.discard(path)


def generations(folder: Path) -> list[tuple[int, str, Path]]:
    """Number, checksum and path of what was saved, the newest first."""
    names = [] if not folder.exists() else [path.name for path in folder.iterdir()]
    matches = [match for match in map(GENERATION.fullmatch, names) if match]
    return sorted(((int(m[1]), m[2], folder / m[0]) for m in matches), reverse=True)


def read(folder: Path) -> Snapshot | None:
    """The newest generation that is whole; None where none was ever saved.

    Falls back to the one before, and says so.

    Raises:
        TrainingError: there are generations, and none can be read.
    """
    problems = []
    for _, digest, path in generations(folder):
        try:
            snapshot = _read_generation(path, digest)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            problems.append(f"{path}: {error}")
            continue
        if problems:
            say(f"The newest saved state is damaged ({problems[0]}); going on from the one before.")
        return snapshot
    if problems:
        raise TrainingError("No saved state can be read. " + "; ".join(problems))
    return None


def _read_generation(path: Path, digest: str) -> Snapshot:
    """Raises ValueError, KeyError, OSError or SafetensorError where something is not as written."""
    if storage.sha256(path) != digest:
        raise ValueError("it has another checksum than it was written with")
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["values"])
        names = file.keys()
        # Copies: a tensor of the file itself keeps the file open, and it could not be removed.
        tensors = {name: file.get_tensor(name).clone() for name in names}
    return Snapshot(tensors, values, path)
