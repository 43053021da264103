"""Files that are there whole or not at all, and hashes of what they hold."""

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
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OutputError, ResnetkitError

MARKER = ".resnetkit"
"""The name of the file that marks a folder as written by a command: its images are no photos."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Gives a temporary path in the same folder; what was written there becomes ``path``.

    The data reach the disk before the name does, and the name before this returns, so that a
    crash leaves either the old file or the new one. On an exception the old one stays.

    Raises:
        OutputError: there is no writing to that folder, the disk is full or fails, or ``path`` is a
            folder itself.
    """
    with temporary(path) as unfinished:
        yield unfinished
        publish(unfinished, path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside ``path``, for `publish`; what is left there is removed.

    Raises:
        OutputError: as `atomic`.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    with _told(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # 0o666 less the umask, which the system subtracts: asking for the umask means setting it,
        # for every thread of the process.
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        with _told(path):
            yield unfinished
    finally:
        discard(unfinished)


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except ResnetkitError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        told = OutputError(f"{path} cannot be written ({why}); name a place that can be")
        told.strerror = why
        raise told from error


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file of the same folder its name: its data are on the disk before that."""
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Wait until no other process holds ``path``, hold it, let it go; the system lets it go if
    the process dies. The empty file stays: deleting it would let two processes hold two of them.

    On a file system without locks (some network folders) say so, and go on without one.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            _lock(file, wait)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
            _say_once(
                f"{path.parent} is on a file system without locks ({error.strerror}). Going on "
                "without one: make sure that no other process writes there"
            )
        yield  # closing the file unlocks it


def discard(path: Path) -> None:
    """Remove a file of ours that nobody needs any more, if it is there. If that fails, as on NFS
    while a program has the file open, say so once for the folder, and go on: what was saved is
    whole."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _say_once(f"Old files in {path.parent} cannot be removed ({error.strerror}); they stay")


@functools.cache
def _say_once(text: str) -> None:
    from .progress import say  # it takes time to import, and is hardly ever needed

    say(text)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically. Names of files that are no text (which Python holds as
    lone surrogates) are escaped as JSON does, so that what is written is text."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically; numbers in a row stand on one line, so that a
    table of a thousand rows and columns has a thousand lines."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    write_text(path, _NUMBERS.sub(lambda row: _BREAK.sub(" ", row[0].strip()), text) + "\n")


_NUMBERS = re.compile(r"(?<=\[)\n[-+.\deE,\n ]+(?=\])")  # a text holds no line break
_BREAK = re.compile(r"\n *")


_FORMULA = re.compile(r"'*[=+\-@\t\r]")


def csv_line(values: Iterable[Any]) -> str:
    """Return a row of a CSV file, with its newline. A spreadsheet runs text that begins with ``=``,
    ``+``, ``-``, ``@``, a tab or a carriage return as a formula, so such text gets an apostrophe in
    front, and so does text with apostrophes before one of these. Numbers stay numbers.

    >>> csv_line(["=1+1", "rose", -0.5])
    "'=1+1,rose,-0.5\\n"
    """
    cells = [f"'{v}" if isinstance(v, str) and _FORMULA.match(v) else v for v in values]
    row = io.StringIO()
    csv.writer(row, lineterminator="\r\n").writerow(cells)  # which also quotes both letters
    return row.getvalue()[:-2] + "\n"


def csv_text(cell: str) -> str:
    """Return the text for which `csv_line` wrote ``cell``.

    >>> csv_text("'=1+1"), csv_text("'90s")
    ('=1+1', "'90s")
    """
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def refuse_used(folder: Path | None) -> None:
    """Make sure that nothing is overwritten: ``folder`` must be new or empty (None is neither).

    Raises:
        OutputError: it holds something, is a file, or cannot be made.
    """
    if folder is None:
        return
    if not os.path.lexists(folder):
        refuse_unwritable(folder)
        return
    if not folder.is_dir():
        raise OutputError(f"{folder} is a file; --out names a folder")
    files = sum(not path.name.startswith(".") for path in folder.iterdir())
    if files:
        raise OutputError(
            f"{folder} is in use: it holds {files} file(s). Name another folder with --out, "
            "or remove this one"
        )


def make_output(folder: Path) -> None:
    """Make a folder for what a command writes, and mark it, so that nobody takes the images in it
    for photos when it lies among them.

    Raises:
        OutputError: it cannot be made.
    """
    with _told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / MARKER
        marker.write_text(
            "Written by resnetkit. The images in this folder are left out when photos are read.\n",
            encoding="utf-8",
        )


def refuse_unwritable(path: Path) -> None:
    """Make sure, before long work, that a file or folder can be made where ``path`` says. Nothing
    is written.

    Raises:
        OutputError: a part of it is a file or too long a name, or its folder refuses.
    """
    path = path.absolute()
    above = next(parent for parent in path.parents if os.path.lexists(parent))
    why = None if above.is_dir() else f"{above} is a file"
    try:
        for name in path.relative_to(above).parts if why is None else ():
            with contextlib.suppress(FileNotFoundError):
                os.stat(above / name)  # fails where the name is too long for this disk
    except OSError as error:
        why = error.strerror
    if why is None and not os.access(above, os.W_OK | os.X_OK):
        why = f"no permission to write in {above}"
    if why is not None:
        raise OutputError(f"cannot write to {path}: {why}. Name another place with --out")


def refuse_existing(file: Path) -> None:
    """Make sure that ``file`` is not there yet.

    Raises:
        OutputError: it is.
    """
    if file.exists():
        raise OutputError(f"{file} exists; name another file, or remove this one")


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hex digits."""
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
            except OSError as error:  # waiting, it gives up after ten seconds
                if not wait:
                    raise BlockingIOError(str(error)) from error
                if error.errno != errno.EDEADLOCK:
                    raise
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


def _fsync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
