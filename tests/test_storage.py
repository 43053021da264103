from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import os
import stat

import pytest

from resnetkit import storage
from resnetkit.errors import OutputError


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
    path = tmp_path / "file"
    storage.write_text(path, "old")
    with pytest.raises(RuntimeError), storage.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("name", ["a" * 250 + ".json", "\N{SNOWMAN}" * 85])
def test_a_name_may_be_as_long_as_the_disk_allows(tmp_path, name):
    storage.refuse_unwritable(tmp_path / name)
    storage.write_json(tmp_path / name, {})
    with storage.atomic_folder(tmp_path / "folder" / name):
        pass
    assert os.listdir(tmp_path / "folder") == [name]


def test_atomic_gives_the_usual_permissions(tmp_path):
    storage.write_text(tmp_path / "a" / "new", "text")
    (tmp_path / "plain").write_text("text")
    mode = stat.S_IMODE((tmp_path / "a" / "new").stat().st_mode)
    assert mode == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o027, 0o077])
def test_the_umask_is_applied_and_never_changed(tmp_path, monkeypatch, umask):
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # setting it affects all threads
            storage.write_text(tmp_path / "new", "text")
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o666 & ~umask
    finally:
        os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="flock")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_warns_once_and_continues(
    tmp_path, monkeypatch, capsys, number
):
    import fcntl

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    for _ in range(2):
        with storage.locked(tmp_path / "lock", wait=False):
            pass
    output = " ".join(capsys.readouterr().err.split())
    assert output.count("without locks") == 1
    assert os.strerror(number) in output


def test_other_failures_of_a_lock_are_errors(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def failed(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", failed)
    with pytest.raises(OSError, match="Input/output"), storage.locked(tmp_path / "lock"):
        pass


def test_a_line_of_csv_is_read_by_the_standard_library():
    cells = ["=1", "a\rb", "a\nb", 'a"b', "a,b", "", "'", "'a", " x "]
    (row,) = csv.reader(io.StringIO(storage.csv_line(cells), newline=""))
    assert [storage.csv_text(cell) for cell in row] == cells
    assert row[1:] == cells[1:]


def test_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc" * 100_000)
    assert storage.sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_refuse_used(tmp_path):
    storage.refuse_used(None)
    storage.refuse_used(tmp_path)
    storage.refuse_used(tmp_path / "new")
    (tmp_path / "x").write_text("")
    with pytest.raises(OutputError, match=r"in use: it holds 1 file"):
        storage.refuse_used(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        storage.refuse_used(tmp_path / "x")


@pytest.mark.parametrize("name", ["file/below/new", "folder", "file/new"])
def test_a_path_that_cannot_be_written_to_is_named(tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match=r"cannot be written \(.*\)\. Choose a path") as raised:
        storage.write_text(tmp_path / name, "text")
    assert str(tmp_path / name) in str(raised.value)
    assert {p.name for p in tmp_path.iterdir()} == {"file", "folder"}


def test_json_keeps_numbers_in_a_row_on_one_line(tmp_path):
    value = {
        "row": [1, 2.5, -3e-9],
        "table": [[1, 2], [3, 4]],
        "texts": ["a\nb", "[\n1,\n2]", "7"],
        "mixed": [1, None],
        "nothing": [],
    }
    storage.write_json(tmp_path / "x.json", value)
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == value
    assert '  "row": [1, 2.5, -3e-09],\n' in text
    assert '  "table": [\n    [1, 2],\n    [3, 4]\n  ],\n' in text
    many = {"matrix": [[0] * 300] * 300}
    storage.write_json(tmp_path / "y.json", many)
    assert (tmp_path / "y.json").stat().st_size < 3.1 * 300 * 300


def test_an_impossible_path_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for path, problem in (
        (tmp_path / "file" / "x", "is a file"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        for check in (storage.refuse_unwritable, storage.refuse_used):
            with pytest.raises(OutputError, match=f"{problem}.*--out"):
                check(path)
    storage.refuse_used(tmp_path / "new" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_names_that_are_not_text_come_back_from_json(tmp_path):
    value = {"data": os.fsdecode(b"caf\xe9/\xff"), "text": "caf\u00e9 \\ud800"}
    storage.write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value
