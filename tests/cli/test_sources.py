"""Command-line arguments -> images, and what is left out of folders."""

from __future__ import annotations

import os

import pytest

from resnetkit.cli.sources import count_sources, expand_sources
from resnetkit.storage import make_output


def touch(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")
    return root


def test_files_left_out_of_a_folder_are_reported(tmp_path):
    touch(tmp_path, "a.png", "q", "q.jpg_large", "@eaDir/a.png/S.jpg", "b/c.jpg", "b/.hidden.jpg")
    touch(tmp_path, "runs/x/environment.json", "runs/x/recipe.yaml", "runs/x/curves.png")
    make_output(tmp_path / "drawn")
    touch(tmp_path, "drawn/a.jpg")
    notes = []
    found = list(expand_sources([str(tmp_path)], notes.append))
    assert found == [str(tmp_path / "a.png"), str(tmp_path / "b" / "c.jpg")]
    assert count_sources([str(tmp_path)]) == 2
    assert [note.split("Left out of ")[1].split(": ")[1] for note in notes] == [
        f"2 files of another kind, such as {tmp_path / 'q'}.",
        f"2 hidden or system files, such as {tmp_path / '@eaDir'}.",
        f"1 folder that resnet wrote, such as {tmp_path / 'drawn'}.",
        f"1 folder of a run, whose images are figures, such as {tmp_path / 'runs' / 'x'}.",
    ]
    own = list(expand_sources([str(tmp_path / "drawn")]))
    assert own == [str(tmp_path / "drawn" / "a.jpg")]  # named explicitly


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_may_begin_with_a_bom(tmp_path, mark, monkeypatch):
    names = ["a.png", " b.png ", os.fsdecode(b"caf\xe9.png"), "\N{SNOWMAN}.png"]
    text = mark + b"\r\n".join(map(os.fsencode, names))
    (tmp_path / "list.txt").write_bytes(text)
    assert list(expand_sources([f"@{tmp_path / 'list.txt'}"])) == names

    class Stdin:
        buffer = text.splitlines(keepends=True)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert list(expand_sources(["@-"])) == names


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_a_list_may_be_in_utf_16_as_powershell_writes_it(tmp_path, encoding, monkeypatch):
    names = ["a.png", " b.png ", "\N{LATIN SMALL LETTER C WITH DOT ABOVE}.png", "\N{SNOWMAN}.png"]
    names += ["line\u2028break.png", "next\x85line.png"]
    text = ("\ufeff" + "\r\n".join(names) + "\r\n").encode(encoding)
    (tmp_path / "list.txt").write_bytes(text)
    assert list(expand_sources([f"@{tmp_path / 'list.txt'}"])) == names

    class Stdin:
        buffer = text.splitlines(keepends=True)

    monkeypatch.setattr("sys.stdin", Stdin)
    assert list(expand_sources(["@-"])) == names
