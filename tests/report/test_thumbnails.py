from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from resnetkit.evaluation.explain import Explanation
from resnetkit.report.thumbnails import write_overlays

ONE, TWO = "\u00e9", "E\u0301"  # the same letter, as one code point and as two


def write_all(sources, out):
    """Write an overlay per source; return the names of the files."""
    heat = np.zeros((8, 8), np.float32)
    items = [
        Explanation(Path(source), image=np.full((8, 8, 3), 10 * i, np.uint8), heat=heat)
        for i, source in enumerate(sources)
    ]
    return [file.name for _, file in write_overlays(items, out)]


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["x/a-2.jpg", "x/a.jpg", "y/a.jpg"], ["a-2.png", "a.png", "a-3.png"]),
        (["x/a.jpg", "y/a.jpg", "x/a-2.jpg"], ["a.png", "a-2.png", "a-2-2.png"]),
        (["a.jpg", "A.png", "a.png"], ["a.png", "A-2.png", "a-3.png"]),
        ([f"{ONE}.jpg", f"{TWO}.jpg"], [f"{ONE}.png", f"{TWO}-2.png"]),
        (["a.b.jpg", "a.b.png"], ["a.b.png", "a.b-2.png"]),
    ],
)
def test_every_image_gets_a_unique_file_name(tmp_path, sources, names):
    assert write_all(sources, tmp_path / "first") == names
    assert sorted(file.name for file in (tmp_path / "first").glob("*.png")) == sorted(names)
    assert write_all(sources, tmp_path / "again") == names


def test_long_names_and_names_that_are_not_utf8_are_written(tmp_path):
    sources = ["花" * 84 + ".j", "花" * 84 + ".p", "caf\udce9.png"]
    names = write_all(sources, tmp_path / "out")
    assert len(set(names)) == 3
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == set(names)
