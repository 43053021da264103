"""Command-line arguments -> images."""

from __future__ import annotations

import codecs
import glob
import itertools
import os
import shlex
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from ..data import shards, tree
from ..data.folder import survey
from ..data.object_store import ObjectNotFound, list_objects, split_url
from ..data.paths import LeftOut, Paths, is_image, is_system, object_url
from ..errors import RecipeError
from ..inference.images import Unreadable
from ..storage import MARKER
from ..text import printable

PREDICT_ARGUMENTS = {"IMAGE...": "No image was given"}
"""The arguments required after the model file, and the problem to report if one is missing."""


def check_usage(
    model: Path,
    arguments: Sequence[str],
    command: str = "predict",
    expected: Mapping[str, str] = PREDICT_ARGUMENTS,
) -> None:
    """Check that a model file comes first and that enough arguments follow.

    Args:
        model: the first argument.
        arguments: the other arguments.
        command: the name of the command, for the message.
        expected: the arguments that must follow, each with the problem to report if it is missing.

    Raises:
        RecipeError: the arguments are wrong; the message shows the correct command.
    """
    is_misplaced = is_image(str(model)) or model.is_dir()
    missing = list(expected)[len(arguments) :]
    if not is_misplaced and not missing:
        return
    if is_misplaced:
        runs = sorted(sorted(Path("runs").glob("*/model.safetensors")), key=os.path.getmtime)
        file = str(runs[-1]) if runs else "model.safetensors"
        problem = f"The model file must come before the images; got {model}"
        names = [shlex.quote(name) for name in (str(model), *arguments)]
    else:
        file = str(model)
        problem = expected[missing[0]]
        names = [*map(shlex.quote, arguments), *missing]
    more = " ..." if len(names) > 3 else ""
    raise RecipeError(
        f"{problem}. Type:\n  resnet {command} {shlex.quote(file)} {' '.join(names[:3])}{more}"
    )


def expand_sources(
    arguments: Iterable[str], note: Callable[[str], None] | None = None
) -> Iterator[str | bytes | Unreadable]:
    """Yield the images that arguments name, in order.

    An argument is a file, a folder (walked to any depth, sorted), a glob, ``@list.txt``, ``@-``
    (paths from standard input) or ``-`` (the bytes of one image from standard input). In an object
    store, it is an image or a prefix, such as ``s3://bucket/photos``. A file is yielded unchanged,
    even if it does not exist: reading it reports the error. A folder, glob or list that has no
    images or cannot be read is yielded as `Unreadable`.

    Args:
        arguments: the arguments, as the user typed them.
        note: called with a line for each kind of file that is left out of a folder, by the same
            rules as in training.
    """
    for argument in arguments:
        if argument == "-":
            yield sys.stdin.buffer.read()
        elif argument == "@-":
            paths = _parse_paths(_decode_lines(sys.stdin.buffer))
            yield from _or_unreadable(paths, argument, "standard input lists no images")
        elif argument.startswith("@") and not os.path.exists(argument):
            yield from _read_list(argument)
        elif object_url(argument) is not None and is_image(argument):
            split_url(argument)
            yield argument
        elif os.path.isdir(argument) or object_url(argument) is not None:
            left_out = LeftOut()
            if object_url(argument) is None:
                inside = _walk_folder(argument, left_out)
            else:
                inside = _list_remote(argument.rstrip("/"), left_out)
            kind = "folder" if object_url(argument) is None else "prefix"
            yield from _or_unreadable(inside, argument, f"no images in this {kind}")
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
    # standard input, a pipe
    if {"-", "@-"} & set(arguments) or not all(map(os.path.isfile, lists)):
        return None
    return sum(1 for _ in expand_sources(arguments))


def expand_photos(
    argument: str, note: Callable[[str], None]
) -> tuple[list[str | Unreadable], list[str] | None]:
    """Return the photos that one argument names, and their labels if it is a manifest.

    The argument is a folder, a glob, ``@list.txt``, ``@-``, or a CSV manifest.

    Args:
        argument: the argument, as the user typed it.
        note: called with a line for each kind of file that is left out.

    Raises:
        RecipeError: the argument is a single image.
        DataError: the manifest is not valid.
    """
    is_glob = glob.has_magic(argument) and not os.path.exists(argument)
    if argument == "-" or (is_image(argument) and not is_glob and not os.path.isdir(argument)):
        raise RecipeError(
            f"PHOTOS must name many photos; got the single image {argument}. Expected a folder, "
            "'*.jpg' in quotes (without quotes, the shell replaces it), @list.txt, a CSV or an .npz"
        )
    if argument.lower().endswith(".csv") and os.path.isfile(argument):
        found = survey(argument, ask=False)
        for line in (*(f"left out: {line}" for line in found.left_out.lines()), *found.notes):
            note(f"Note: {printable(line)}.")
        rows = [
            (os.path.join(found.base, path), label)
            for by_class in found.splits.values()
            for label, paths in by_class.items()
            for path in paths
        ]
        return [path for path, _ in rows], [label for _, label in rows]
    images = [image for image in expand_sources([argument], note) if not isinstance(image, bytes)]
    return images, None


def _read_list(argument: str) -> Iterator[str | Unreadable]:
    try:
        with open(argument[1:], "rb") as file:
            paths = _parse_paths(_decode_lines(file))
            yield from _or_unreadable(paths, argument, "this list names no images")
    except OSError as error:
        yield Unreadable(argument, f"the list {argument[1:]}: {error.strerror}")


def _walk_folder(folder: str, left_out: LeftOut) -> Iterator[str | Unreadable]:
    """Yield the images in a folder in order, and `Unreadable` for a folder that cannot be read.

    Links to folders are followed last, and left out if they lead to a folder that was already read.
    """
    if tree.is_sharded(folder):
        for path in shards.open_shards(Path(folder)).paths:
            yield os.path.join(folder, path)
        return
    seen: set[tuple[int, int]] = set()
    waiting = deque([folder])  # the next folder is at the end
    while waiting:
        yield from _read_folder(waiting.pop(), left_out, seen=seen, waiting=waiting)


def _read_folder(
    folder: str, left_out: LeftOut, *, seen: set[tuple[int, int]], waiting: deque[str]
) -> Iterator[str | Unreadable]:
    """Yield the images directly in a folder, and add its sub-folders to ``waiting``."""
    try:
        identity = tree.identity(folder)
        output = tree.output(folder) if seen else None  # the folder the user named is always read
        reason = tree.LOOP if identity in seen else output
        if reason is not None:
            left_out.add(reason, folder)
            return
        seen.add(identity)
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
    images = Paths(sorted(names))  # takes half the memory of a list of a million names
    del names
    for name in images:
        yield os.path.join(folder, name)
    inside = []
    for name in sorted(folders):
        path = os.path.join(folder, name)
        if is_system(name):
            left_out.add(tree.SYSTEM, path)
        elif os.path.islink(path):
            waiting.appendleft(path)
        else:
            inside.append(path)
    waiting.extend(reversed(inside))


def _list_remote(url: str, left_out: LeftOut) -> Iterator[str]:
    """Yield the images under a prefix in an object store, as `_walk_folder` does for a folder."""
    with suppress(ObjectNotFound):
        for path in shards.open_shards(Path(url)).paths:
            yield f"{url}/{path}"
        return
    keys = sorted((key.split("/") for key in _keys(url)), key=_walking_order)
    folders = {tuple(key[:-1]): set[str]() for key in keys}
    for *folder, name in keys:
        folders[tuple(folder)].add(name)
    written = {
        folder: tree.OUTPUTS if MARKER in names else tree.RUNS
        for folder, names in folders.items()
        if folder and (MARKER in names or names >= tree.RUN_FILES)
    }
    seen = set[str]()
    for key in keys:
        path = "/".join(key)
        for depth in range(1, len(key) + 1):
            above = tuple(key[:depth])
            reason = tree.SYSTEM if is_system(key[depth - 1]) else written.get(above)
            if reason is not None:
                path = "/".join(above)
                break
        else:
            reason = None if is_image(path) else tree.OTHER
        if reason is None:
            yield f"{url}/{path}"
        elif path not in seen:
            seen.add(path)
            left_out.add(reason, f"{url}/{path}")


@lru_cache(maxsize=4)
def _keys(url: str) -> tuple[str, ...]:
    """Return the keys under a prefix; cached, because they are counted before they are read."""
    return tuple(key for key, _ in list_objects(url))


def _walking_order(key: Sequence[str]) -> list[tuple[bool, str]]:
    """Return a sort key for the order of a folder walk: a folder's own images, then deeper ones."""
    return [(depth < len(key) - 1, name) for depth, name in enumerate(key)]


def _decode_lines(file: Iterable[bytes]) -> Iterator[str]:
    """Yield the lines of a list in UTF-8, or in UTF-16 with a BOM, which PowerShell writes."""
    lines = iter(file)
    first = next(lines, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        yield from (first + b"".join(lines)).decode("utf-16", "replace").split("\n")
        return
    for line in itertools.chain([first], lines):
        yield line.decode("utf-8", "surrogateescape")


def _parse_paths(lines: Iterable[str]) -> Iterator[str]:
    """Yield the paths in a list, without blank lines or the BOM that some editors write."""
    for number, line in enumerate(lines):
        line = line.rstrip("\r\n").removeprefix("\ufeff" if number == 0 else "")
        if line.strip():
            if object_url(line) is not None:
                split_url(line)
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
