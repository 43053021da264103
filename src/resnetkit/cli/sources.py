"""What a person types for pictures -> pictures."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..data.paths import is_picture
from ..errors import DataError


def expand(arguments: Iterable[str]) -> Iterator[str | bytes]:
    """Files, folders (to any depth, sorted), globs, ``@list.txt``, ``@-`` (paths from standard
    input) and ``-`` (the bytes of one picture from it), one after another.

    A file is given on as it is, also where it does not exist: the answer then says so.

    Raises:
        DataError: a folder, glob or list without pictures, or a folder that cannot be read.
    """
    for argument in arguments:
        if argument == "-":
            yield sys.stdin.buffer.read()
        elif argument == "@-":
            yield from _some(_lines(sys.stdin), "Standard input names no pictures")
        elif argument.startswith("@") and not os.path.exists(argument):
            path = Path(argument[1:])
            if not path.is_file():
                raise DataError(f"The list {path} does not exist")
            with path.open(encoding="utf-8", errors="surrogateescape") as lines:
                yield from _some(_lines(lines), f"The list {path} names no pictures")
        elif os.path.isdir(argument):
            yield from _some(_walk(argument), f"No pictures in the folder {argument}")
        elif glob.has_magic(argument) and not os.path.exists(argument):
            found = sorted(glob.glob(argument, recursive=True))
            yield from _some(iter(found), f"Nothing matches {argument}")
        else:
            yield argument


def _walk(folder: str) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}") from error

    for directory, subfolders, files in os.walk(folder, onerror=refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in sorted(files):
            if is_picture(name):
                yield os.path.join(directory, name)


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _some(paths: Iterator[str], message: str) -> Iterator[str]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        raise DataError(message)
