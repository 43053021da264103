"""What is wrong with a data set, before a run finds out: every picture is read once, none changed.

What is found has one of three levels. An **error** would spoil a run or its figures; a **warning**
is for a person to look at; a **note** says how something unusual is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError, ImageError
from ..prefetch import prefetch_map
from ..runtime import default_workers
from . import files, folder, near_duplicates, ranges
from .cache import digest
from .decode import DIM, Depth, Traits, decode, depth, is_dim_colour, traits

FEW = 20
"""Training pictures that a class should have at least."""

UNBALANCED = 10
"""Times that the largest class may have as many training pictures as the smallest."""

TINY, LONG = 32, 5
"""Pixels that the shorter side should have at least; times that the longer may have as many."""
_WORKING = 64  # pixels of the shorter side: enough for `likeness`, and quickly decoded
_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "DIB": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif"),
}
_ORDER = ("all", "train", "val", "test", folder.UNDECIDED)
Groups = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Finding:
    """``groups`` are the paths that it is about, those together that belong together; ``details``
    says something of each group, or is empty."""

    kind: str
    level: str
    text: str
    groups: Groups = ()
    details: Sequence[str] = ()


@dataclass(frozen=True)
class Examination:
    """``counts`` is ``{split: {class: pictures}}``; ``findings`` come gravest first."""

    root: Path
    counts: dict[str, dict[str, int]]
    findings: tuple[Finding, ...]

    @property
    def spoilt(self) -> bool:
        """Whether there is an error."""
        return any(finding.level == "error" for finding in self.findings)

    def to_dict(self) -> dict[str, Any]:
        """What ``resnet check --format json`` prints."""
        findings = [asdict(finding) for finding in self.findings]
        return {"data": str(self.root), "pictures": self.counts, "findings": findings}


def examine(
    data: str | os.PathLike[str],
    workers: int | None = None,
    progress: Callable[[int], Callable[[str], None]] = lambda total: lambda text: None,
) -> Examination:
    """Read every picture of a folder or manifest and say what is wrong.

    Args:
        workers: threads that read pictures; by default one a core.
        progress: given the number of pictures, gives what to call after each.

    Raises:
        DataError: there is no such folder, or no picture in it.
    """
    found = folder.survey(data, ask=False)
    splits = {name: found.splits[name] for name in _ORDER if name in found.splits}
    rows = [
        Row(split, name, path)
        for split, classes in splits.items()
        for name, paths in classes.items()
        for path in paths
    ]
    counts = {
        split: {name: len(classes[name]) for name in sorted(classes)}
        for split, classes in splits.items()
    }
    workers = default_workers() if workers is None else workers
    ward = _read(found.base, rows, workers, progress(len(rows)))
    asked = [Finding("layout", "error", found.question)] if found.question else []
    findings = [*(asked or _classes(counts)), *_images(ward), *_deep(ward)]
    findings += [Finding("left-out", "note", line) for line in found.left_out.lines()]
    findings += [Finding("reading", "warning", note) for note in found.notes]
    rank = ("error", "warning", "note").index
    return Examination(found.root, counts, tuple(sorted(findings, key=lambda f: rank(f.level))))


@dataclass(frozen=True)
class Row:
    """Where a picture is, and what for."""

    split: str
    label: str
    path: str


@dataclass
class Ward:
    """What reading every picture once found; one row a picture."""

    rows: list[Row]
    digests: list[str]  # empty where the file cannot be read at all
    errors: dict[int, str]
    traits: dict[int, Traits]
    depths: dict[int, Depth | None]  # of those that can be read
    hashes: np.ndarray  # (n,) uint64
    thumbs: np.ndarray  # (n, 16, 16, 3) uint8
    flat: np.ndarray  # (n,) bool, also where it cannot be read
    dim: set[int] = field(default_factory=set)  # see `is_dim_colour`; only looked up in


def _read(base: Path, rows: list[Row], workers: int, advance: Callable[[str], None]) -> Ward:
    count = len(rows)
    thumbs = np.zeros((count, 16, 16, 3), np.uint8)
    hashes, flat = np.zeros(count, np.uint64), np.ones(count, bool)
    ward = Ward(rows, [], {}, {}, {}, hashes, thumbs, flat)

    def one(index: int) -> tuple[str, Traits | None, near_duplicates.Look | str]:
        name, seen, row = "", None, rows[index]
        try:
            contents = files.read(base / row.path, "the picture")
            name, seen = digest(contents), traits(contents)
            ward.depths[index] = depth(contents)
            if is_dim_colour(contents):
                ward.dim.add(index)
            pixels = decode(contents, _WORKING, value_range="image")  # which number is white
            return name, seen, near_duplicates.look(pixels)  # changes little in how it compares
        except ImageError as error:
            return name, seen, str(error).removeprefix("the picture: ")

    for index, (name, seen, look) in enumerate(prefetch_map(one, range(count), workers)):
        ward.digests.append(name)
        if seen is not None:
            ward.traits[index] = seen
        if isinstance(look, str):
            ward.errors[index] = look
        else:
            ward.hashes[index], ward.thumbs[index], ward.flat[index] = (
                look.hash,
                look.thumb,
                look.flat,
            )
        advance("")
    return ward


def _classes(counts: dict[str, dict[str, int]]) -> Iterator[Finding]:
    """What the numbers of pictures say."""
    leading = next(split for split in ("train", "all", "val", "test") if split in counts)
    own = counts[leading]

    def about(kind: str, level: str, names: Iterable[str], text: str) -> Iterator[Finding]:
        named = [f"{name} ({own[name]})" if name in own else name for name in names]
        named[10:] = [f"and {len(named) - 10:,} more"] if len(named) > 10 else []
        if named:
            yield Finding(kind, level, f"{text}: {', '.join(named)}")

    yield from about(
        "empty-class", "error", (n for n in own if not own[n]), "classes without any picture"
    )
    if len(own) < 2:
        yield from about(
            "one-class", "error", own, "a classifier needs two classes or more; there is only one"
        )
    for split, other in counts.items():
        unknown = [name for name in other if name not in own]
        yield from about(
            "unknown-class", "error", unknown, f"classes of {split} that {leading} does not have"
        )
        absent = [name for name in own if not other.get(name) and split != leading]
        yield from about(
            "absent-class", "warning", absent, f"classes that {split} has no picture of"
        )
    if leading in ("train", "all") and "val" not in counts:
        single = [name for name in own if own[name] == 1]
        text = "classes of one picture, of which validation needs another"
        yield from about("single-picture", "error", single, text)
    few = [name for name in own if 1 < own[name] < FEW]
    yield from about("few-pictures", "warning", few, f"classes of fewer than {FEW} pictures")
    ordered = sorted((name for name in own if own[name]), key=lambda name: own[name])
    if ordered and own[ordered[-1]] > UNBALANCED * own[ordered[0]]:
        text = f"the largest class has more than {UNBALANCED} times the pictures of the smallest"
        yield from about("unbalanced", "warning", (ordered[-1], ordered[0]), text)


def _images(ward: Ward) -> Iterator[Finding]:
    """What the pictures say."""
    rows = ward.rows
    if ward.errors:
        broken = [[rows[i].path] for i in ward.errors]
        text = "pictures that cannot be read; repair or remove them"
        yield Finding("unreadable", "error", text, broken, list(ward.errors.values()))
    same: dict[str, list[int]] = {}
    for i, name in enumerate(ward.digests):
        if i not in ward.errors:
            same.setdefault(name, []).append(i)
    exact = [members for members in same.values() if len(members) > 1]
    yield from _copies(rows, exact, "copy", "exactly the same picture", "error")
    first = [members[0] for members in same.values() if not ward.flat[members[0]]]
    chosen = np.array(first, np.int64)
    alike = near_duplicates.groups(ward.hashes[chosen], ward.thumbs[chosen])
    near = [[first[i] for i in group] for group in alike]
    yield from _copies(rows, near, "near-copy", "nearly the same picture", "warning")
    for kind, level, text, is_so in _TRAITS:
        yield from _listed(
            rows, kind, level, text, (i for i in ward.traits if is_so(ward.traits[i], rows[i]))
        )
    blank = (i for i in np.flatnonzero(ward.flat).tolist() if i not in ward.errors)
    yield from _listed(rows, "blank", "warning", "pictures of almost one colour", blank)


def _deep(ward: Ward) -> Iterator[Finding]:
    """What training makes of grey of 16 or 32 bits, and of nothing but grey."""
    deep = [i for i, found in ward.depths.items() if found is not None]
    if deep:
        text, level = (
            "images of 16 or 32 bits of grey: training makes {} black, {} white",
            "note",
        )
        order = {"train": 0, "all": 0, folder.UNDECIDED: 0, "val": 1}
        seen: list[list[Depth | None]] = [[], []]
        for i, found in ward.depths.items():
            if ward.rows[i].split in order:
                seen[order[ward.rows[i].split]].append(found)
        try:
            low, high = ranges.settle(seen) or (0, 65535)
            text = text.format(f"{low:,g}", f"{high:,g}")
        except DataError as error:
            text, level = str(error), "error"
        yield from _listed(ward.rows, "deep", level, text, deep)
    yield from _listed(ward.rows, "dim", "warning", DIM, sorted(ward.dim))
    modes = {seen.mode for seen in ward.traits.values()}
    if modes and all(mode in ("1", "L", "F") or mode.startswith("I") for mode in modes):
        text = "all images are grey: training reads them as RGB; --channels 1 for one channel"
        yield Finding("grey", "note", text)


def _copies(
    rows: list[Row], groups: list[list[int]], kind: str, what: str, gravest: str
) -> Iterator[Finding]:
    """Findings about groups of the same picture, by what they would do to a run."""
    sorts: dict[str, list[list[str]]] = {"labels": [], "splits": [], "": []}
    for group in groups:
        labels, splits = {rows[i].label for i in group}, {rows[i].split for i in group}
        if folder.UNDECIDED in splits:  # a folder need not be a class
            labels = set()
        which = "labels" if len(labels) > 1 else "splits" if len(splits) > 1 else ""
        sorts[which].append([rows[i].path for i in group])
    where = "" if rows and rows[0].split == folder.UNDECIDED else " in a class"
    texts = {
        "labels": (gravest, f"{what} under two classes: one of them is wrong"),
        "splits": (gravest, f"{what} in two splits: what is measured on it flatters"),
        "": ("warning", f"{what} more than once{where}"),
    }
    for which, (level, text) in texts.items():
        if sorts[which]:
            suffix = {"labels": "-in-two-classes", "splits": "-in-two-splits", "": ""}[which]
            yield Finding(f"{kind}{suffix}", level, text, sorts[which])


def _listed(
    rows: list[Row], kind: str, level: str, text: str, indices: Iterable[int]
) -> Iterator[Finding]:
    groups = [[rows[i].path] for i in indices]
    if groups:
        yield Finding(kind, level, text, groups)


def _misnamed(seen: Traits, row: Row) -> bool:
    return os.path.splitext(row.path)[1].lower() not in _SUFFIXES[seen.format]


_TRAITS: tuple[tuple[str, str, str, Callable[[Traits, Row], bool]], ...] = (
    (
        "misnamed",
        "warning",
        "pictures of another format than their name says; read all the same",
        _misnamed,
    ),
    (
        "tiny",
        "warning",
        f"pictures whose shorter side has fewer than {TINY} px",
        lambda t, r: min(t.size) < TINY,
    ),
    (
        "long",
        "warning",
        f"pictures more than {LONG} times as long as wide: the centre cut shows little of them",
        lambda t, r: max(t.size) > LONG * min(t.size),
    ),
    (
        "animated",
        "note",
        "pictures of several frames or pages: the first is taken",
        lambda t, r: t.animated,
    ),
    ("turned", "note", "pictures that EXIF turns or mirrors: read upright", lambda t, r: t.turned),
    ("transparent", "note", "transparent pictures: laid over white", lambda t, r: t.transparent),
    ("palette", "note", "pictures with a palette: read as RGB", lambda t, r: t.mode in ("P", "PA")),
    ("cmyk", "note", "pictures in CMYK: read as RGB", lambda t, r: t.mode == "CMYK"),
)
