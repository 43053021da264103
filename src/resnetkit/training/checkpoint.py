"""The full state of a run on disk: two generations, checksummed and atomic.

A generation is one file, ``state/000012-<sha256>.safetensors``, named after its sequence number and
the checksum of its contents. It gets this name once it is complete, and is never modified after
that. So a crash during any write, fsync or rename leaves the earlier generations untouched.
``state/manifest.json`` shows people and monitoring tools which generation is the newest and how far
the run has progressed; it is not needed to read the state.
"""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .. import storage
from ..errors import OutputError, TrainingError
from ..progress import say

MANIFEST = "manifest.json"
LOCK = ".lock"
GENERATION = re.compile(r"(\d{6,})-([0-9a-f]{64})\.safetensors")
UNFINISHED = re.compile(r"\..+\.[0-9a-f]{16}|\.(\d{6,}|manifest\.json)\.\w{8,}|\.tmp\w{6}")
"""Names of the half-written files of `storage.temporary` and safetensors that remain if the process
is killed."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Args:
        tensors: weights, buffers and moments, by name.
        values: everything else, as JSON; ``step``, ``epoch`` and ``batch`` give the position.
        generation: the file that the snapshot was read from, if any.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]
    generation: Path | None = None


class Checkpoints:
    """Saves snapshots to a folder, one at a time, in a background thread.

    Args:
        folder: the run's ``state/`` folder.
        seconds: time between saves; see `is_due`.
        resumed: the snapshot that the run resumes from. Its generation is kept until there are two
            newer ones; a newer generation that turned out to be damaged is removed.
    """

    def __init__(self, folder: Path, seconds: float, resumed: Snapshot | None = None) -> None:
        self.folder = folder
        self.seconds = seconds
        self._newest = None if resumed is None else resumed.generation
        self._last_save = time.monotonic()
        self._pending: Future[Path] | None = None
        self._lock = ExitStack()

    def __enter__(self) -> Checkpoints:
        return self

    def lock(self) -> None:
        """Lock the folder until this context ends, so that no other run writes to it.

        Raises:
            OutputError: another process holds the lock.
        """
        self._lock.enter_context(lock_run(self.folder.parent))
        for path in self.folder.parent.iterdir():
            if UNFINISHED.fullmatch(path.name):
                storage.discard(path)

    def __exit__(self, *error: object) -> None:
        """Wait for the pending save, even if the run ends with an error, and unlock the folder."""
        if self._pending is not None:
            wait([self._pending])
        self._lock.close()

    def is_due(self) -> bool:
        """Return whether ``seconds`` have passed since the last save."""
        return time.monotonic() - self._last_save >= self.seconds

    def save(self, snapshot: Snapshot) -> None:
        """Start writing a snapshot in the background; its tensors must not change meanwhile.

        Raises:
            OutputError: the previous save failed.
        """
        self.wait()
        self._last_save = time.monotonic()
        # Use a new thread for each save: a thread that copies tensors gets its own pool of compute
        # threads. While that pool exists, OpenMP treats the machine as oversubscribed, and training
        # runs at half speed.
        writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = writer.submit(write_generation, self.folder, snapshot, self._newest)
        writer.shutdown(wait=False)

    def wait(self) -> None:
        """Wait until the last snapshot is on disk.

        Raises:
            OutputError: the snapshot could not be written.
        """
        pending = self._pending
        self._pending = None
        try:
            if pending is not None:
                self._newest = pending.result()
        except OSError as error:
            raise OutputError(
                f"Cannot save the state to {self.folder} ({error.strerror}). Earlier saves are "
                "kept. Free some space and resume with --resume"
            ) from error

    def finish(self) -> None:
        """Wait for the last save, and keep only the newest generation."""
        self.wait()
        _remove_generations(self.folder, keep={self._newest})


@contextmanager
def lock_run(run: Path) -> Iterator[None]:
    """Lock a run folder while this context is open.

    Raises:
        OutputError: another process holds the lock.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(storage.locked(run / "state" / LOCK, wait=False))
        except BlockingIOError:
            raise OutputError(f"Another run is writing to {run} right now") from None
        yield


def write_generation(folder: Path, snapshot: Snapshot, previous: Path | None = None) -> Path:
    """Write a snapshot as the newest generation, and return its path.

    Of the older generations, only ``previous`` is kept.
    """
    number = max((number for number, _, _ in list_generations(folder)), default=0) + 1
    tensors = {key: tensor.contiguous() for key, tensor in snapshot.tensors.items()}
    with storage.temporary(folder / f"{number:06d}") as unfinished:
        try:
            with storage.kept_permissions(unfinished):
                save_file(tensors, unfinished, {"values": json.dumps(snapshot.values)})
        except SafetensorError as error:  # safetensors also reports a full disk this way
            raise OSError(errno.EIO, str(error)) from error
        digest = storage.sha256(unfinished)
        path = folder / f"{number:06d}-{digest}.safetensors"
        storage.publish(unfinished, path)
    position = {key: snapshot.values[key] for key in ("step", "epoch", "batch")}
    storage.write_json(folder / MANIFEST, {**position, "files": {path.name: digest}})
    _remove_generations(folder, keep={path, previous})
    return path


def _remove_generations(folder: Path, keep: set[Path | None]) -> None:
    """Remove all generations except ``keep``, and the unfinished files that killed runs left.

    Other files are left alone, such as the ``.nfs...`` file that NFS leaves when an open file is
    removed.
    """
    for path in folder.iterdir():
        is_ours = GENERATION.fullmatch(path.name) or UNFINISHED.fullmatch(path.name)
        if is_ours and path not in keep:
            storage.discard(path)


def list_generations(folder: Path) -> list[tuple[int, str, Path]]:
    """Return the number, checksum and path of each generation, newest first."""
    names = [] if not folder.exists() else [path.name for path in folder.iterdir()]
    matches = [match for match in map(GENERATION.fullmatch, names) if match]
    return sorted(((int(m[1]), m[2], folder / m[0]) for m in matches), reverse=True)


def read_newest(folder: Path) -> Snapshot | None:
    """Return the newest intact generation; None if nothing was ever saved.

    If the newest generation is damaged, print a message and read the one before it.

    Raises:
        TrainingError: there are generations, but none can be read.
    """
    problems = []
    for _, digest, path in list_generations(folder):
        try:
            snapshot = _read_generation(path, digest)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            problems.append(f"{path}: {error}")
            continue
        if problems:
            say(f"The newest saved state is damaged ({problems[0]}); using the one before it.")
        return snapshot
    if problems:
        raise TrainingError("No saved state can be read. " + "; ".join(problems))
    return None


def _read_generation(path: Path, digest: str) -> Snapshot:
    """Read a generation.

    Raises:
        ValueError, KeyError, OSError, SafetensorError: the file is damaged.
    """
    if storage.sha256(path) != digest:
        raise ValueError("its checksum does not match its name")
    with safe_open(path, "pt") as file:
        values = json.loads(file.metadata()["values"])
        names = file.keys()
        # Clone, because a tensor backed by the file would keep the file open, and Windows cannot
        # remove open files.
        tensors = {name: file.get_tensor(name).clone() for name in names}
    return Snapshot(tensors, values, path)
