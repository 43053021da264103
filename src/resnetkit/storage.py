"""Atomic and durable writes, locks, CSV and JSON, and checks of output paths."""

from __future__ import annotations

import contextlib
import csv
import errno
import functools
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OutputError, ResnetkitError

MARKER = ".resnetkit"
"""Name of the file that marks a folder as a command's output, whose images are not photos."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and rename it to ``path`` on exit.

    The data reaches the disk before the file is renamed, and the rename itself before this returns,
    so a crash leaves either the old file or the new one. If an exception is raised, the old file
    is kept.

    Raises:
        OutputError: the folder cannot be written to, the disk is full or fails, or ``path`` is a
            folder.
    """
    with temporary(path) as unfinished:
        yield unfinished
        publish(unfinished, path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Yield a temporary path next to ``path``, for `publish`; remove it on exit if it still exists.

    Raises:
        OutputError: for the same reasons as in `atomic`.
    """
    unfinished = _unfinished(path)
    with _as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The system subtracts the umask from 0o666. Python can read the umask only by setting it,
        # for every thread of the process.
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _as_output_error(path):
            yield unfinished
    finally:
        discard(unfinished)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``, and rename it to ``path`` on exit.

    Its files reach the disk before the rename. If an exception is raised, the folder is removed.

    Raises:
        OutputError: for the same reasons as in `atomic`, or because ``path`` already exists.
    """
    unfinished = _unfinished(path)
    with _as_output_error(path):
        unfinished.mkdir(parents=True)
    try:
        with _as_output_error(path):
            yield unfinished
            for file in unfinished.iterdir():
                _fsync(file)
            refuse_existing(path)  # checked again: another command may have created it
            publish(unfinished, path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(path: Path) -> Path:
    """Return a temporary path next to ``path``; long names are truncated, so that they fit."""
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}")


@contextlib.contextmanager
def _as_output_error(path: Path) -> Iterator[None]:
    try:
        yield
    except ResnetkitError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        output_error = OutputError(
            f"{path} cannot be written ({reason}). Choose a path that can be written to"
        )
        output_error.strerror = reason
        raise output_error from error


@contextlib.contextmanager
def kept_permissions(path: Path) -> Iterator[None]:
    """Restore the permissions of a file that a library may replace.

    safetensors 0.8 writes a new file that only its owner can read, and renames it.
    """
    mode = stat.S_IMODE(path.stat().st_mode)
    yield
    path.chmod(mode)


def publish(temporary: Path, path: Path) -> None:
    """Flush a finished file to the disk, then rename it to ``path`` in the same folder."""
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold the lock on ``path`` while this context is open.

    The system releases the lock if the process dies. The empty file stays: deleting it would let
    two processes each lock a file of that name. On a file system without locks (some network
    folders), this prints a warning and continues without one.

    Args:
        path: the lock file; it is created if missing.
        wait: whether to wait for another process to release it.

    Raises:
        BlockingIOError: another process holds the lock, and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            _lock(file, wait)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _warn_once(
                f"{path.parent} is on a file system without locks ({error.strerror}). Continuing "
                "without one: make sure that no other process writes there"
            )
        yield  # closing the file unlocks it


def discard(path: Path) -> None:
    """Remove a file that is no longer needed, if it exists.

    If that fails, as it can on NFS while a program has the file open, warn once per folder and
    continue: nothing that was saved is affected.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _warn_once(f"Old files in {path.parent} cannot be removed ({error.strerror})")


@functools.cache
def _warn_once(text: str) -> None:
    from .progress import say  # slow to import, and rarely needed

    say(text)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically.

    Bytes in file names that are not valid UTF-8 (Python stores them as lone surrogates) are written
    as escapes, as in JSON.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically.

    Lists of numbers are written on one line, so that a matrix has one line per row.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_text(path, _NUMBERS.sub(lambda row: _BREAK.sub(" ", row[0].strip()), text) + "\n")


_NUMBERS = re.compile(r"(?<=\[)\n[-+.\deE,\n ]+(?=\])")  # JSON strings hold no line breaks
_BREAK = re.compile(r"\n *")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_line(values: Iterable[Any]) -> str:
    r"""Return a row of a CSV file, with its newline.

    Spreadsheets run text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return as
    a formula. Such text gets an apostrophe in front, and so does text with only apostrophes before
    one of these characters. Numbers stay numbers.

    >>> csv_line(["=1+1", "rose", -0.5])
    "'=1+1,rose,-0.5\n"
    """
    cells = [f"'{v}" if isinstance(v, str) and _FORMULA.match(v) else v for v in values]
    row = io.StringIO()
    csv.writer(row, lineterminator="\r\n").writerow(cells)  # so cells with \r or \n are quoted
    return row.getvalue()[:-2] + "\n"


def csv_text(cell: str) -> str:
    """Return the text that `csv_line` wrote as ``cell``.

    >>> csv_text("'=1+1"), csv_text("'90s")
    ('=1+1', "'90s")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def refuse_used(folder: Path | None) -> None:
    """Check that ``folder`` is new or empty, so that nothing is overwritten. None passes.

    Raises:
        OutputError: the folder contains files, is a file, or cannot be created.
    """
    if folder is None:
        return
    if not os.path.lexists(folder):
        refuse_unwritable(folder)
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out must name a folder")
    files = sum(not path.name.startswith(".") for path in folder.iterdir())
    if files:
        count = "1 file" if files == 1 else f"{files} files"
        raise OutputError(
            f"{folder} is in use: it holds {count}. Name another folder with --out, "
            "or remove this one"
        )


def make_output(folder: Path) -> None:
    """Create a folder for a command's output, and mark it with a `MARKER` file.

    A marked folder among photos is skipped when the photos are read.

    Raises:
        OutputError: the folder cannot be created.
    """
    with _as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / MARKER
        marker.write_text(
            "Written by resnetkit. The images in this folder are left out when photos are read.\n",
            encoding="utf-8",
        )


def refuse_unwritable(path: Path) -> None:
    """Check, before long work starts, that ``path`` can be created. Writes nothing.

    Raises:
        OutputError: a parent is a file, a name is too long, or permission is missing.
    """
    path = path.absolute()
    parent = next(parent for parent in path.parents if os.path.lexists(parent))
    problem = None if parent.is_dir() else f"{parent} is a file"
    try:
        for name in path.relative_to(parent).parts if problem is None else ():
            with contextlib.suppress(FileNotFoundError):
                os.stat(parent / name)  # fails if the name is too long for this disk
    except OSError as error:
        problem = error.strerror
    if problem is None and not os.access(parent, os.W_OK | os.X_OK):
        problem = f"no permission to write in {parent}"
    if problem is not None:
        raise OutputError(f"Cannot write to {path}: {problem}. Name another path with --out")


def refuse_existing(file: Path) -> None:
    """Check that a file or folder does not exist yet.

    Raises:
        OutputError: the file or folder exists.
    """
    if os.path.lexists(file):
        raise OutputError(f"{file} exists. Name another path, or remove it")


def sha256(path: Path) -> str:
    """Return the file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _lock(file: IO[str], wait: bool) -> None:
    if sys.platform == "win32":
        import msvcrt

        while True:
            try:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:  # LK_LOCK gives up after ten seconds
                if not wait:
                    raise BlockingIOError(str(error)) from error
                if error.errno != errno.EDEADLOCK:
                    raise
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fsync(path: Path) -> None:
    is_windows = os.name == "nt"
    if is_windows and path.is_dir():  # Windows cannot open a folder
        return
    # Windows syncs only files that are open for writing.
    handle = os.open(path, os.O_RDWR if is_windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
