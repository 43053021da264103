"""What a person types for pictures -> pictures."""

from __future__ import annotations

import glob
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..data.paths import Paths, is_picture
from ..data.tree import identity, leads_to
from ..errors import RecipeError
from ..inference.pictures import Unreadable


def check_usage(model: Path, pictures: Sequence[str]) -> None:
    """Make sure that a model file comes first and a picture after it.

    Raises:
        RecipeError: not so; the message says what to type.
    """
    given = [str(model), *pictures]
    misplaced = is_picture(str(model)) or model.is_dir()
    if not misplaced and pictures:
        return
    runs = sorted(Path("runs").glob("*/model.safetensors"), key=os.path.getmtime)
    file = str(runs[-1]) if runs else "model.safetensors"
    if misplaced:
        what, rest = f"a model file comes before the pictures; got {model}", given
    else:
        what, file, rest = "no picture was named", str(model), ["PICTURE..."]
    shown = [shlex.quote(a) if a != "PICTURE..." else a for a in rest[:3]]
    more = " ..." if len(rest) > 3 else ""
    raise RecipeError(
        f"{what}. Type:\n  resnet predict {shlex.quote(file)} {' '.join(shown)}{more}"
    )


def expand(arguments: Iterable[str]) -> Iterator[str | bytes | Unreadable]:
    """Files, folders (to any depth, sorted), globs, ``@list.txt``, ``@-`` (paths from standard
    input) and ``-`` (the bytes of one picture from it), one after another.

    A file is given on as it is, also where it does not exist: the answer then says so. A folder,
    glob or list that has no pictures or cannot be read is given on with what is wrong with it.
    """
    for argument in arguments:
        if argument == "-":
            yield sys.stdin.buffer.read()
        elif argument == "@-":
            lines = (os.fsdecode(line) for line in sys.stdin.buffer)
            yield from _some(_named(lines), argument, "standard input names no pictures")
        elif argument.startswith("@") and not os.path.exists(argument):
            yield from _list(argument)
        elif os.path.isdir(argument):
            yield from _some(_walk(argument), argument, "no pictures in this folder")
        elif glob.has_magic(argument) and not os.path.exists(argument):
            found = sorted(glob.iglob(argument, recursive=True))
            yield from _some(iter(found), argument, "nothing matches")
        else:
            yield argument


def count(arguments: Sequence[str]) -> int | None:
    """How many pictures `expand` will give; None where that can be read only once."""
    lists = (a[1:] for a in arguments if a.startswith("@") and not os.path.exists(a))
    if "-" in arguments or not all(map(os.path.isfile, lists)):  # standard input, a pipe
        return None
    return sum(1 for _ in expand(arguments))


def _list(argument: str) -> Iterator[str | Unreadable]:
    try:
        with open(argument[1:], encoding="utf-8", errors="surrogateescape") as lines:
            yield from _some(_named(lines), argument, "this list names no pictures")
    except OSError as error:
        yield Unreadable(argument, f"the list {argument[1:]}: {error.strerror}")


def _walk(
    folder: str, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str | Unreadable]:
    """The pictures of a folder in order; of a folder in it that cannot be read, what is wrong.
    Links to folders are followed, but not to one of those ``above``, which would lead round."""
    try:
        own = identity(folder)
        if own in above:
            return
        with os.scandir(folder) as entries:
            names, folders = [], []
            for entry in entries:
                if leads_to(entry.is_dir):
                    folders += [] if entry.name.startswith(".") else [entry.name]
                elif is_picture(entry.name):
                    names.append(entry.name)
    except OSError as error:
        yield Unreadable(folder, f"{folder}: {error.strerror}")
        return
    pictures = Paths(sorted(names))  # a million of them take half the memory of a list
    del names
    for name in pictures:
        yield os.path.join(folder, name)
    for name in sorted(folders):
        yield from _walk(os.path.join(folder, name), above | {own})


def _named(lines: Iterable[str]) -> Iterator[str]:
    return (line.rstrip("\r\n") for line in lines if line.strip())


def _some(
    paths: Iterator[str | Unreadable] | Iterator[str], argument: str, message: str
) -> Iterator[str | Unreadable]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        yield Unreadable(argument, f"{argument}: {message}")
