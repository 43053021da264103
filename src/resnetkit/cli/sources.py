"""What a person types for pictures -> pictures."""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from ..data import tree
from ..data.paths import LeftOut, Paths, is_image, is_system
from ..errors import RecipeError
from ..inference.images import Unreadable
from ..progress import printable


def check_usage(model: Path, images: Sequence[str]) -> None:
    """Make sure that a model file comes first and a picture after it.

    Raises:
        RecipeError: not so; the message says what to type.
    """
    given = [str(model), *images]
    misplaced = is_image(str(model)) or model.is_dir()
    if not misplaced and images:
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


def expand(
    arguments: Iterable[str], note: Callable[[str], None] | None = None
) -> Iterator[str | bytes | Unreadable]:
    """Files, folders (to any depth, sorted), globs, ``@list.txt``, ``@-`` (paths from standard
    input) and ``-`` (the bytes of one picture from it), one after another.

    A file is given on as it is, also where it does not exist: the answer then says so. A folder,
    glob or list that has no pictures or cannot be read is given on with what is wrong with it.
    ``note`` is told what is left out of folders, as training leaves it out.
    """
    for argument in arguments:
        if argument == "-":
            yield sys.stdin.buffer.read()
        elif argument == "@-":
            lines = _lines(sys.stdin.buffer)
            yield from _some(_named(lines), argument, "standard input names no pictures")
        elif argument.startswith("@") and not os.path.exists(argument):
            yield from _list(argument)
        elif os.path.isdir(argument):
            left_out = LeftOut()
            inside = _walk(argument, left_out)
            yield from _some(inside, argument, "no pictures in this folder")
            for line in left_out.lines() if note is not None else []:
                assert note is not None
                note(f"Left out of {printable(argument)}: {printable(line)}.")
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
        with open(argument[1:], "rb") as file:
            yield from _some(_named(_lines(file)), argument, "this list names no pictures")
    except OSError as error:
        yield Unreadable(argument, f"the list {argument[1:]}: {error.strerror}")


def _walk(
    folder: str, left_out: LeftOut, above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str | Unreadable]:
    """The pictures of a folder in order; of a folder in it that cannot be read, what is wrong.
    Links to folders are followed, but not to one of those ``above``, which would lead round."""
    try:
        own = tree.identity(folder)
        if own in above:
            left_out.add(tree.LOOP, folder)
            return
        if above and (wrote := tree.output(folder)):  # what was named itself is answered
            left_out.add(wrote, folder)
            return
        names, folders, others = [], [], []
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_system(entry.name) or tree.leads_to(entry.is_dir):
                    folders.append(entry.name)
                elif is_image(entry.name):
                    names.append(entry.name)
                else:
                    others.append(entry.path)
    except OSError as error:
        yield Unreadable(folder, f"{folder}: {error.strerror}")
        return
    for path in sorted(others):
        left_out.add(tree.OTHER, path)
    images = Paths(sorted(names))  # a million of them take half the memory of a list
    del names
    for name in images:
        yield os.path.join(folder, name)
    for name in sorted(folders):
        path = os.path.join(folder, name)
        if is_system(name):
            left_out.add(tree.SYSTEM, path)
        else:
            yield from _walk(path, left_out, above | {own})


def _lines(file: Iterable[bytes]) -> Iterator[str]:
    """The lines of a list in UTF-8, or in UTF-16 with its mark, as PowerShell writes files."""
    rest = iter(file)
    first = next(rest, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from (first + b"".join(rest)).decode("utf-16", "replace").splitlines()
        return
    for line in itertools.chain([first], rest):
        yield line.decode("utf-8", "surrogateescape")


def _named(lines: Iterable[str]) -> Iterator[str]:
    """The paths of a list in UTF-8, of which an editor may have put a mark at the beginning."""
    for number, line in enumerate(lines):
        line = line.rstrip("\r\n").removeprefix("\ufeff" if number == 0 else "")
        if line.strip():
            yield os.fsdecode(line.encode("utf-8", "surrogateescape"))


def _some(
    paths: Iterator[str | Unreadable] | Iterator[str], argument: str, message: str
) -> Iterator[str | Unreadable]:
    empty = True
    for path in paths:
        empty = False
        yield path
    if empty:
        yield Unreadable(argument, f"{argument}: {message}")
