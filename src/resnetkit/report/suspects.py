"""Labels that look wrong: ``suspects.csv``, where the user judges them, and a page to view them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..data.color import to_rgb
from ..data.dataset import Images
from ..errors import ImageError
from ..evaluation.label_errors import Suspect
from .files import write_rows
from .html import render, shorten_path
from .thumbnails import data_uri

MAX_SHOWN = 100
"""Maximum number of suspects on the page; the file has all of them."""

COLUMNS = (
    *("path", "label", "suggested", "score", "verdict", "new_label"),
    *("neighbor_1", "neighbor_2", "neighbor_3"),
)
"""The columns of ``suspects.csv``, which `data.corrections` reads once verdicts are filled in."""


def write_suspects(
    path: Path, suspects: Sequence[Suspect], images: Images, classes: Sequence[str]
) -> None:
    """Write ``suspects.csv``, the most suspect label first; only a header line if there are none.

    Args:
        path: the file.
        suspects: the labels that look wrong.
        images: the training images; ``suspects`` contains indices into them.
        classes: the class names.
    """
    paths = images.split.paths
    rows = []
    for suspect in suspects:
        row: list[Any] = [paths[suspect.index], classes[suspect.label], classes[suspect.suggested]]
        row += [round(suspect.score, 4), "", ""]
        row += [paths[neighbor] for neighbor in suspect.neighbors]
        rows.append(row + [""] * (len(COLUMNS) - len(row)))
    write_rows(path, COLUMNS, rows)


def write_suspects_page(
    path: Path,
    suspects: Sequence[Suspect],
    images: Images,
    classes: Sequence[str],
    *,
    data: str | Path,
    note: str = "",
) -> None:
    """Write a page that shows each suspect next to its nearest neighbors, with their labels.

    Args:
        path: the file, next to ``suspects.csv``.
        suspects: the labels that look wrong; the first `MAX_SHOWN` are shown.
        images: the training images; ``suspects`` contains indices into them.
        classes: the class names.
        data: the data of the run, for the command that trains again.
        note: a remark about the search, for the reader.
    """
    file = path.with_name("suspects.csv")
    command = f"resnet train {_quoted(data)} --corrections {_quoted(file, parts=2)}"
    render(
        path,
        "suspects.html",
        title=f"{path.absolute().parent.name}: labels that look wrong",
        count=len(suspects),
        total=len(images),
        rows=list(_rows(suspects[:MAX_SHOWN], images, classes)),
        command=command,
        note=note,
    )


def _quoted(path: str | Path, parts: int = 1) -> str:
    return shlex.quote(shorten_path(path, parts))


def _rows(
    suspects: Sequence[Suspect], images: Images, classes: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield the page's content for each suspect: the image itself, and its neighbors."""
    for suspect in suspects:
        yield {
            **_card(suspect.index, images, classes),
            "suggested": classes[suspect.suggested],
            "score": suspect.score,
            "neighbors": [_card(neighbor, images, classes) for neighbor in suspect.neighbors],
        }


def _card(index: int, images: Images, classes: Sequence[str]) -> dict[str, Any]:
    try:
        crop = images.preprocessing.crop(images[index]).permute(1, 2, 0).numpy()
    except ImageError:  # the page shows a message instead
        thumbnail = ""
    else:
        thumbnail = data_uri(to_rgb(crop))
    return {
        "thumbnail": thumbnail,
        "label": classes[int(images.split.labels[index])],
        "path": images.split.paths[index],
    }
