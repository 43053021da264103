"""Check a dataset before training: read every image once, and change nothing.

An issue has one of three levels. An **error** would ruin a run or its results. A **warning** needs
a person to look at it. A **note** says how something unusual is read.
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
from ..processes import default_workers
from . import files, folder, holes, near_duplicates, shards, tree
from .decode import (
    UNNAMED,
    Traits,
    decode,
    is_gray_mode,
    read_depth,
    read_traits,
)
from .gray import FULL_RANGE, Depth, dataset_range
from .near_duplicates import Signature, near_duplicate_groups
from .paths import shown
from .remote import read_ahead
from .value_range import resolve_value_range

FEW = 20
"""Classes with fewer training images than this raise a warning."""

UNBALANCED = 10
"""A class more than this many times as large as another raises a warning."""

TINY = 32
"""Images with a shorter side of fewer pixels than this raise a warning."""

LONG = 5
"""Images more than this many times as long as wide raise a warning."""

_WORKING_SIZE = 64  # shorter side in pixels: quick to decode, and enough for a signature
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
_SPLIT_ORDER = ("all", "train", "val", "test", folder.UNDECIDED)
_LEVELS = ("error", "warning", "note")
Groups = Sequence[Sequence[str]]


@dataclass(frozen=True)
class Issue:
    """Something wrong or unusual in a dataset.

    ``groups`` are the affected paths; paths that belong together are in one group. ``details`` has
    one message per group, or is empty.
    """

    kind: str
    level: str
    text: str
    groups: Groups = ()
    details: Sequence[str] = ()


@dataclass(frozen=True)
class CheckResult:
    """The number of images as ``{split: {class: count}}``, and the issues, errors first.

    ``value_range`` holds the values that become black and white when training reads images with
    more than 8 bits. It is None if there are no such images, or if an issue asks the user to set
    the range.
    """

    root: Path
    counts: dict[str, dict[str, int]]
    issues: tuple[Issue, ...]
    value_range: tuple[float, float] | None = None

    @property
    def has_errors(self) -> bool:
        """Whether at least one issue is an error."""
        return any(issue.level == "error" for issue in self.issues)

    def to_dict(self) -> dict[str, Any]:
        """Return what ``resnet check --format json`` prints."""
        issues = [asdict(issue) for issue in self.issues]
        return {
            "data": shown(self.root),
            "pictures": self.counts,
            "value_range": self.value_range,
            "findings": issues,
        }


def check_dataset(
    data: str | os.PathLike[str],
    workers: int | None = None,
    progress: Callable[[int], Callable[[str], None]] = lambda total: lambda text: None,
) -> CheckResult:
    """Read every image in a folder or manifest and report the problems.

    Args:
        data: the folder or the CSV manifest.
        workers: threads that read images; one per core by default.
        progress: takes the number of images and returns a function to call after each image.

    Raises:
        DataError: the folder does not exist or has no images.
    """
    survey = folder.survey(data, ask=False)
    splits = {name: survey.splits[name] for name in _SPLIT_ORDER if name in survey.splits}
    rows = [
        Row(split, label, path)
        for split, by_class in splits.items()
        for label, paths in by_class.items()
        for path in paths
    ]
    counts = {
        split: {label: len(by_class[label]) for label in sorted(by_class)}
        for split, by_class in splits.items()
    }
    workers = default_workers() if workers is None else workers
    contents = _read_all(survey.base, rows, workers=workers, advance=progress(len(rows)))
    if survey.question:
        issues = [Issue("layout", "error", survey.question)]
    else:
        leading = next(iter(survey.splits.values()))
        advice = folder.inner_folder_advice(survey.root, leading)
        issues = list(_class_issues(counts, advice))
    issues += _image_issues(contents)
    value_range, depth_issues = _check_depths(contents)
    issues += depth_issues
    issues += _gray_issues(contents)
    issues += _shard_issues(survey.root)
    issues += [Issue("left-out", "note", line) for line in survey.left_out.lines()]
    issues += [Issue("reading", "warning", note) for note in survey.notes]
    issues.sort(key=lambda issue: _LEVELS.index(issue.level))
    return CheckResult(survey.root, counts, issues=tuple(issues), value_range=value_range)


@dataclass(frozen=True, slots=True)
class Row:
    """One image: its split, class and path."""

    split: str
    label: str
    path: str


@dataclass
class _Contents:
    """The results of reading every image once, by row."""

    rows: list[Row]
    hashes: np.ndarray  # (n,) uint64
    thumbs: np.ndarray  # (n, 16, 16, 3) uint8
    flat: np.ndarray  # (n,) bool; True for unreadable images
    digests: list[str] = field(default_factory=list)  # empty for files that cannot be read at all
    errors: dict[int, str] = field(default_factory=dict)
    traits: dict[int, Traits] = field(default_factory=dict)
    depths: dict[int, Depth | None] = field(default_factory=dict)  # only of readable images
    empty_blocks: set[int] = field(default_factory=set)  # see `holes.has_empty_block`


def _read_all(
    base: Path, rows: list[Row], *, workers: int, advance: Callable[[str], None]
) -> _Contents:
    count = len(rows)
    contents = _Contents(
        rows=rows,
        hashes=np.zeros(count, np.uint64),
        thumbs=np.zeros((count, 16, 16, 3), np.uint8),
        flat=np.ones(count, bool),
    )

    def read_image(index: int) -> tuple[str, Traits | None, Signature | str]:
        digest = ""
        traits = None
        try:
            file = files.read_file(base / rows[index].path, UNNAMED)
            digest = files.digest(file)
            if holes.has_empty_block(file):
                contents.empty_blocks.add(index)
            traits = read_traits(file)
            depth = read_depth(file)
            contents.depths[index] = depth
            # The image's own value range is good enough: it hardly changes the signature.
            own_range = dataset_range([depth]) if depth else None
            pixels = decode(file, _WORKING_SIZE, value_range=own_range)
            return digest, traits, near_duplicates.signature(pixels)
        except ImageError as error:
            return digest, traits, str(error).removeprefix(f"{UNNAMED}: ")

    indices = read_ahead(range(count), lambda index: [base / rows[index].path])
    results = prefetch_map(read_image, indices, workers)
    for index, (digest, traits, signature) in enumerate(results):
        contents.digests.append(digest)
        if traits is not None:
            contents.traits[index] = traits
        if isinstance(signature, str):
            contents.errors[index] = signature
        else:
            contents.hashes[index] = signature.hash
            contents.thumbs[index] = signature.thumb
            contents.flat[index] = signature.flat
        advance("")
    return contents


def _class_issues(counts: dict[str, dict[str, int]], advice: str) -> Iterator[Issue]:
    """Yield the issues with the number of images per class.

    Args:
        counts: ``{split: {class: count}}``.
        advice: what to do if there is only one class, or "".
    """
    leading = next(split for split in ("train", "all", "val", "test") if split in counts)
    own = counts[leading]

    def about(kind: str, level: str, names: Iterable[str], text: str) -> Iterator[Issue]:
        named = [f"{name} ({own[name]})" if name in own else name for name in names]
        named[10:] = [f"and {len(named) - 10:,} more"] if len(named) > 10 else []
        if named:
            yield Issue(kind, level, f"{text}: {', '.join(named)}")

    if leading not in ("train", "all"):
        text = f"there are no training images, only {' and '.join(counts)}"
        yield Issue("no-training-images", "error", text)
    empty = [name for name in own if not own[name]]
    yield from about("empty-class", "error", empty, "classes without images")
    if len(own) < 2:
        text = "a classifier needs at least two classes; there is only one"
        text += f" ({advice})" if advice else ""
        yield from about("one-class", "error", own, text)
    for split, other in counts.items():
        unknown = [name for name in other if name not in own]
        text = f"classes in {split} that are not in {leading}"
        yield from about("unknown-class", "error", unknown, text)
        absent = [name for name in own if not other.get(name) and split != leading]
        yield from about("absent-class", "warning", absent, f"classes without images in {split}")
    if leading in ("train", "all") and "val" not in counts:
        single = [name for name in own if own[name] == 1]
        text = "classes with only one image; validation needs another"
        yield from about("single-picture", "error", single, text)
    few = [name for name in own if 1 < own[name] < FEW]
    yield from about("few-pictures", "warning", few, f"classes with fewer than {FEW} images")
    ordered = sorted((name for name in own if own[name]), key=lambda name: own[name])
    if ordered and own[ordered[-1]] > UNBALANCED * own[ordered[0]]:
        text = f"the largest class has more than {UNBALANCED} times as many images as the smallest"
        yield from about("unbalanced", "warning", (ordered[-1], ordered[0]), text)


def _image_issues(contents: _Contents) -> Iterator[Issue]:
    """Yield the issues with the images themselves."""
    rows = contents.rows
    if contents.errors:
        unreadable = [[rows[i].path] for i in contents.errors]
        details = list(contents.errors.values())
        text = "images that cannot be read; repair or remove them"
        yield Issue("unreadable", "error", text, groups=unreadable, details=details)
    by_digest: dict[str, list[int]] = {}
    for i, digest in enumerate(contents.digests):
        if i not in contents.errors:
            by_digest.setdefault(digest, []).append(i)
    exact = [members for members in by_digest.values() if len(members) > 1]
    yield from _copy_issues(rows, exact, kind="copy", what="exactly the same image", level="error")
    # One image from each set of exact copies.
    first = [members[0] for members in by_digest.values() if not contents.flat[members[0]]]
    indices = np.array(first, np.int64)
    near = near_duplicate_groups(contents.hashes, contents.thumbs, indices)
    yield from _copy_issues(
        rows, near, kind="near-copy", what="nearly the same image", level="warning"
    )
    for kind, level, text, applies in _TRAIT_CHECKS:
        matching = [i for i in contents.traits if applies(contents.traits[i], rows[i])]
        yield from _issue_if_any(rows, kind, level=level, text=text, indices=matching)
    holed = sorted(contents.empty_blocks - contents.errors.keys())
    text = "files with blocks of zeros, like interrupted copies: compare them with the originals"
    yield from _issue_if_any(rows, "zeros", level="warning", text=text, indices=holed)
    blank = [i for i in np.flatnonzero(contents.flat).tolist() if i not in contents.errors]
    yield from _issue_if_any(
        rows, "blank", level="warning", text="images with almost only one color", indices=blank
    )


def _shard_issues(root: Path) -> Iterator[Issue]:
    """Yield an issue if ``root`` has shards and some of them were changed."""
    details = list(shards.issues(root)) if tree.is_sharded(root) else []
    if details:
        text = "shards that were changed after they were written: write or copy them again"
        groups = [[detail.split(" ", 1)[0]] for detail in details]
        yield Issue("shards", "error", text, groups=groups, details=details)


def _check_depths(contents: _Contents) -> tuple[tuple[float, float] | None, list[Issue]]:
    """Return the value range of images with more than 8 bits, and the issues with them."""
    depths = dict(sorted(contents.depths.items()))  # threads add entries in any order
    deep = [i for i, depth in depths.items() if depth is not None]
    if not deep:
        return None, []
    training: list[Depth | None] = []
    validation: list[Depth | None] = []
    for i, depth in depths.items():
        split = contents.rows[i].split
        if split in ("train", "all", folder.UNDECIDED):
            training.append(depth)
        elif split == "val":
            validation.append(depth)
    value_range = None
    level = "note"
    try:
        value_range = resolve_value_range([training, validation]) or FULL_RANGE
        black, white = value_range
        text = (
            f"images with more than 8 bits per channel: in training, {black:,g} becomes black and "
            f"{white:,g} becomes white; use --set value_range=[LOW,HIGH] to change this"
        )
    except DataError as error:
        level = "error"
        text = str(error)
    return value_range, list(
        _issue_if_any(contents.rows, "deep", level=level, text=text, indices=deep)
    )


def _gray_issues(contents: _Contents) -> Iterator[Issue]:
    """Yield a note if all images are grayscale."""
    modes = {traits.mode for traits in contents.traits.values()}
    if modes and all(map(is_gray_mode, modes)):
        text = (
            "all images are grayscale: training from random weights reads them with one channel; "
            "use --channels 3 for RGB"
        )
        yield Issue("grey", "note", text)


def _copy_issues(
    rows: list[Row], groups: list[list[int]], *, kind: str, what: str, level: str
) -> Iterator[Issue]:
    """Yield issues about groups of copies: in two classes, in two splits, or in one class.

    Args:
        rows: all images.
        groups: indices of the images that are copies of each other.
        kind: kind of the issue.
        what: how the images in a group are related, as text.
        level: level if the copies are in two classes or two splits.
    """
    in_classes: list[list[str]] = []
    in_splits: list[list[str]] = []
    in_one_class: list[list[str]] = []
    for group in groups:
        labels = {rows[i].label for i in group}
        splits = {rows[i].split for i in group}
        paths = [rows[i].path for i in group]
        # If the layout is undecided, the folders may not be classes.
        if len(labels) > 1 and folder.UNDECIDED not in splits:
            in_classes.append(paths)
        elif len(splits) > 1:
            in_splits.append(paths)
        else:
            in_one_class.append(paths)
    if in_classes:
        text = f"{what} in two classes: one of the labels is wrong"
        yield Issue(f"{kind}-in-two-classes", level, text, groups=in_classes)
    if in_splits:
        text = f"{what} in two splits: results measured on them will look too good"
        yield Issue(f"{kind}-in-two-splits", level, text, groups=in_splits)
    if in_one_class:
        where = "" if rows[0].split == folder.UNDECIDED else " in a class"
        text = f"{what} more than once{where}"
        yield Issue(kind, "warning", text, groups=in_one_class)


def _issue_if_any(
    rows: list[Row], kind: str, *, level: str, text: str, indices: Iterable[int]
) -> Iterator[Issue]:
    groups = [[rows[i].path] for i in indices]
    if groups:
        yield Issue(kind, level, text, groups=groups)


def _is_misnamed(traits: Traits, row: Row) -> bool:
    return os.path.splitext(row.path)[1].lower() not in _SUFFIXES[traits.format]


_TRAIT_CHECKS: tuple[tuple[str, str, str, Callable[[Traits, Row], bool]], ...] = (
    (
        "misnamed",
        "warning",
        "images whose extension does not match their format; read anyway",
        _is_misnamed,
    ),
    (
        "tiny",
        "warning",
        f"images with a shorter side of less than {TINY} px",
        lambda traits, _: min(traits.size) < TINY,
    ),
    (
        "long",
        "warning",
        f"images more than {LONG} times as long as wide: the center crop shows little of them",
        lambda traits, _: max(traits.size) > LONG * min(traits.size),
    ),
    (
        "animated",
        "note",
        "images with several frames or pages: the first is used",
        lambda traits, _: traits.animated,
    ),
    (
        "turned",
        "note",
        "images that EXIF rotates or mirrors: read upright",
        lambda traits, _: traits.turned,
    ),
    (
        "transparent",
        "note",
        "transparent images: composited over white",
        lambda traits, _: traits.transparent,
    ),
    (
        "palette",
        "note",
        "images with a palette: read as RGB",
        lambda traits, _: traits.mode in ("P", "PA"),
    ),
    ("cmyk", "note", "images in CMYK: read as RGB", lambda traits, _: traits.mode == "CMYK"),
)
