"""The full state of a run on disk: two generations, checksummed, atomic.

``state/manifest.json`` names the newest generation and ``state/previous.json`` the one before. A
generation is two files, tensors and values, that are complete before a manifest names them; so a
crash at any write, fsync or rename leaves at least one generation that can be read.
"""

from __future__ import annotations

import errno
import json
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .. import storage
from ..errors import OutputError, TrainingError
from ..progress import say

NEWEST, PREVIOUS, LOCK = "manifest.json", "previous.json", ".lock"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Args:
        tensors: weights, buffers and moments, by name.
        values: everything else, as JSON; ``step``, ``epoch`` and ``batch`` say where it is.
    """

    tensors: dict[str, Tensor]
    values: dict[str, Any]


class Checkpoints:
    """Saves snapshots into a folder, in a thread, one after another.

    Args:
        folder: ``state/`` of the run.
        seconds: between two saves, for `due`.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.seconds = folder, seconds
        self._last = time.monotonic()
        self._pending: Future[None] | None = None
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
        self._pending = writer.submit(write, self.folder, snapshot)
        writer.shutdown(wait=False)

    def wait(self) -> None:
        """Until what was saved is on the disk.

        Raises:
            OutputError: it could not be written.
        """
        pending, self._pending = self._pending, None
        try:
            if pending is not None:
                pending.result()
        except OSError as error:
            raise OutputError(
                f"The state cannot be saved to {self.folder} ({error.strerror}). What was saved "
                "before is kept; make room and resume with --resume"
            ) from error

    def finish(self) -> None:
        """Wait, and keep only the newest generation."""
        self.wait()
        (self.folder / PREVIOUS).unlink(missing_ok=True)
        _clean(self.folder, set(_files_of((self.folder / NEWEST).read_text(encoding="utf-8"))))


def write(folder: Path, snapshot: Snapshot) -> None:
    """Make ``snapshot`` the newest generation, and the newest the previous one."""
    name = f"{snapshot.values['step']:09d}"
    files = {}
    with storage.atomic(folder / f"{name}.safetensors") as temporary:
        plain = {key: tensor.contiguous() for key, tensor in snapshot.tensors.items()}
        try:
            save_file(plain, temporary)
        except SafetensorError as error:  # its word for a full disk, too
            raise OSError(errno.EIO, str(error)) from error
        files[f"{name}.safetensors"] = storage.sha256(temporary)
    with storage.atomic(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(snapshot.values))
        files[f"{name}.json"] = storage.sha256(temporary)
    newest = folder / NEWEST
    keep = set(files)
    if newest.exists():
        old = newest.read_text(encoding="utf-8")
        keep |= set(_files_of(old))
        storage.write_text(folder / PREVIOUS, old)
    place = {key: snapshot.values[key] for key in ("step", "epoch", "batch")}
    storage.write_json(newest, {**place, "files": files})
    _clean(folder, keep)


def _clean(folder: Path, keep: set[str]) -> None:
    for path in folder.iterdir():
        if path.name not in keep | {NEWEST, PREVIOUS, LOCK}:
            path.unlink()


def read(folder: Path) -> Snapshot | None:
    """The newest generation that is whole; None where none was ever saved.

    Falls back to the previous generation, and says so.

    Raises:
        TrainingError: there are generations, and neither can be read.
    """
    problems = []
    for name in (NEWEST, PREVIOUS):
        manifest = folder / name
        if not manifest.exists():
            continue
        try:
            snapshot = _read_generation(manifest)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            problems.append(f"{manifest}: {error}")
            continue
        if problems:
            say(f"The newest saved state is damaged ({problems[0]}); going on from the one before.")
        return snapshot
    if problems:
        raise TrainingError("No saved state can be read. " + "; ".join(problems))
    return None


def _read_generation(manifest: Path) -> Snapshot:
    """Raises ValueError, KeyError, OSError or SafetensorError where something is not as written."""
    content = json.loads(manifest.read_text(encoding="utf-8"))
    tensors, values = {}, None
    for name, digest in content["files"].items():
        path = manifest.parent / name
        if storage.sha256(path) != digest:
            raise ValueError(f"{name} has another checksum than it was written with")
        if name.endswith(".safetensors"):
            tensors = load_file(path)
        else:
            values = json.loads(path.read_text(encoding="utf-8"))
    if values is None or values["step"] != content["step"]:
        raise ValueError(f"{manifest.name} is damaged")
    return Snapshot(tensors, values)


def _files_of(manifest: str) -> list[str]:
    try:
        return list(json.loads(manifest)["files"])
    except (ValueError, KeyError, TypeError):  # a damaged manifest keeps nothing alive
        return []
