"""Command-line arguments -> images."""

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
from ..text import printable


def check_usage(model: Path, images: Sequence[str]) -> None:
    """Check that a model file comes first and at least one image follows.

    Raises:
        RecipeError: otherwise; the message shows the command to type.
    """
    is_misplaced = is_image(str(model)) or model.is_dir()
    if not is_misplaced and images:
        return
    if is_misplaced:
        runs = sorted(Path("runs").glob("*/model.safetensors"), key=os.path.getmtime)
        file = str(runs[-1]) if runs else "model.safetensors"
        problem = f"The model file must come before the images; got {model}"
        names = [shlex.quote(name) for name in (str(model), *images)]
    else:
        file = str(model)
        problem = "No image was given"
        names = ["IMAGE..."]
    more = " ..." if len(names) > 3 else ""
    raise RecipeError(
        f"{problem}. Type:\n  resnet predict {shlex.quote(file)} {' '.join(names[:3])}{more}"
    )


def expand_sources(
    arguments: Iterable[str], note: Callable[[str], None] | None = None
) -> Iterator[str | bytes | Unreadable]:
    """Yield the images that arguments name, in order.

    An argument is a file, a folder (walked to any depth, sorted), a glob, ``@list.txt``, ``@-``
    (paths from standard input) or ``-`` (the bytes of one image from standard input). A file is
    yielded as it is, even if it does not exist: reading it reports the error. A folder, glob or
    list that has no images or cannot be read is yielded as `Unreadable`.

    Args:
        arguments: what the user typed.
        note: called with a line for each kind of file that is left out of a folder; the rules are
            those of training.
    """
    for argument in arguments:
        if argument == "-":
            yield sys.stdin.buffer.read()
        elif argument == "@-":
            paths = _parse_paths(_decode_lines(sys.stdin.buffer))
            yield from _or_unreadable(paths, argument, "standard input lists no images")
        elif argument.startswith("@") and not os.path.exists(argument):
            yield from _read_list(argument)
        elif os.path.isdir(argument):
            left_out = LeftOut()
            inside = _walk_folder(argument, left_out)
            yield from _or_unreadable(inside, argument, "no images in this folder")
            for line in left_out.lines() if note is not None else []:
                assert note is not None
                note(f"Left out of {printable(argument)}: {printable(line)}.")
        elif glob.has_magic(argument) and not os.path.exists(argument):
            matches = sorted(glob.iglob(argument, recursive=True))
            yield from _or_unreadable(iter(matches), argument, "nothing matches")
        else:
            yield argument


def count_sources(arguments: Sequence[str]) -> int | None:
    """Return how many images `expand_sources` yields; None if a source can be read only once."""
    lists = (a[1:] for a in arguments if a.startswith("@") and not os.path.exists(a))
    if "-" in arguments or not all(map(os.path.isfile, lists)):  # standard input, a pipe
        return None
    return sum(1 for _ in expand_sources(arguments))


def _read_list(argument: str) -> Iterator[str | Unreadable]:
    try:
        with open(argument[1:], "rb") as file:
            paths = _parse_paths(_decode_lines(file))
            yield from _or_unreadable(paths, argument, "this list names no images")
    except OSError as error:
        yield Unreadable(argument, f"the list {argument[1:]}: {error.strerror}")


def _walk_folder(
    folder: str, left_out: LeftOut, parents: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str | Unreadable]:
    """Yield the images of a folder in order, and `Unreadable` for a folder that cannot be read.

    Links to folders are followed, except to one of ``parents``, which would loop.
    """
    try:
        identity = tree.identity(folder)
        if identity in parents:
            left_out.add(tree.LOOP, folder)
            return
        if parents and (reason := tree.output(folder)):  # a folder given by the user is read
            left_out.add(reason, folder)
            return
        names = []
        folders = []
        others = []
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
    images = Paths(sorted(names))  # half the memory of a list, for a million names
    del names
    for name in images:
        yield os.path.join(folder, name)
    for name in sorted(folders):
        path = os.path.join(folder, name)
        if is_system(name):
            left_out.add(tree.SYSTEM, path)
        else:
            yield from _walk_folder(path, left_out, parents | {identity})


def _decode_lines(file: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a list in UTF-8, or in UTF-16 with a BOM, as PowerShell writes files."""
    lines = iter(file)
    first = next(lines, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from (first + b"".join(lines)).decode("utf-16", "replace").splitlines()
        return
    for line in itertools.chain([first], lines):
        yield line.decode("utf-8", "surrogateescape")


def _parse_paths(lines: Iterable[str]) -> Iterator[str]:
    """Yield the paths of a list, without blank lines and the BOM that some editors write."""
    for number, line in enumerate(lines):
        line = line.rstrip("\r\n").removeprefix("\ufeff" if number == 0 else "")
        if line.strip():
            yield os.fsdecode(line.encode("utf-8", "surrogateescape"))


def _or_unreadable(
    paths: Iterator[str | Unreadable] | Iterator[str], argument: str, message: str
) -> Iterator[str | Unreadable]:
    """Yield the paths, or `Unreadable` with ``message`` if there are none."""
    is_empty = True
    for path in paths:
        is_empty = False
        yield path
    if is_empty:
        yield Unreadable(argument, f"{argument}: {message}")
