"""An output folder of parts: one row per image, one model, one writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from resnetkit.errors import OutputError
from resnetkit.scale.parts import Parts, image_key

pa = pytest.importorskip("pyarrow", reason="bulk prediction needs the extra ray")
parquet = pytest.importorskip("pyarrow.parquet", reason="bulk prediction needs the extra ray")

SCHEMA = pa.schema([(name, pa.string()) for name in ("source", "version", "error")])
SETTINGS = {"model": "abc", "top_k": 5}


def rows(*names, error=None):
    columns = {"source": names, "version": ["1"] * len(names), "error": [error] * len(names)}
    return pa.table({"number": range(len(names)), **columns})


def names_in(folder):
    return parquet.read_table(folder)["source"].to_pylist()


def test_rows_are_kept_and_counted(tmp_path):
    folder = tmp_path / "new" / "rows"
    with Parts(folder, SETTINGS, SCHEMA) as parts:
        parts.add(rows("a", "b"))
        parts.add(rows("c", error="bad"))
        assert list(folder.glob("*.parquet")) == []
    assert names_in(folder) == ["a", "b", "c"]
    assert (parts.rows, parts.failed) == (3, 1)
    with Parts(folder, SETTINGS, SCHEMA) as parts:
        assert parts.done == {image_key(name, "1") for name in "abc"}
        assert (parts.rows, parts.failed) == (3, 1)
        parts.add(rows("d"))
        parts.flush()
        parts.add(rows("e"))
    assert sorted(path.name for path in folder.glob("*.parquet")) == [
        f"part-{number:06d}.parquet" for number in range(3)
    ]
    assert sorted(names_in(folder)) == list("abcde")


def test_a_part_is_written_after_some_rows_or_some_time(tmp_path, monkeypatch):
    monkeypatch.setattr("resnetkit.scale.parts.ROWS", 3)
    with Parts(tmp_path / "rows", SETTINGS, SCHEMA) as parts:
        parts.add(rows("a", "b"))
        assert parts.rows == 0
        parts.add(rows("c"))
        assert parts.rows == 3
    with Parts(tmp_path / "rows", SETTINGS, SCHEMA, seconds=0) as parts:
        parts.add(rows("d"))
        assert parts.rows == 4


def test_rows_do_not_wait_for_others_that_would_come_too_late(tmp_path, monkeypatch):
    now = 0
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("resnetkit.scale.parts.time", clock)
    with Parts(tmp_path / "rows", SETTINGS, SCHEMA, seconds=30) as parts:
        for now, written in ((8, 0), (16, 0), (24, 3), (44, 4)):
            parts.add(rows(f"image {now}"))
            assert parts.rows == written


def test_rows_that_arrived_before_an_error_are_kept(tmp_path):
    with pytest.raises(KeyboardInterrupt), Parts(tmp_path / "rows", SETTINGS, SCHEMA) as parts:
        parts.add(rows("a"))
        raise KeyboardInterrupt
    assert names_in(tmp_path / "rows") == ["a"]


def test_a_folder_belongs_to_one_model_and_one_kind_of_rows(tmp_path):
    folder = tmp_path / "rows"
    with Parts(folder, SETTINGS, SCHEMA):
        pass
    for other in ({"model": "def"}, {"top_k": 3}, {"coverage": 0.9}):
        name = next(iter(other))
        message = f"has rows with {name} .*; now it is {other[name]}.*--out"
        with pytest.raises(OutputError, match=message), Parts(folder, SETTINGS | other, SCHEMA):
            pass
    (folder / "_settings.json").write_text("{")
    with pytest.raises(OutputError, match="not valid JSON"), Parts(folder, SETTINGS, SCHEMA):
        pass


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    for folder in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(OutputError), Parts(folder, SETTINGS, SCHEMA):
            pass


KILLED = """
import os, sys
from pathlib import Path
import pyarrow as pa
from pyarrow import parquet
from resnetkit.scale.parts import Parts

schema = pa.schema([(name, pa.string()) for name in ("source", "version", "error")])
with Parts(Path(sys.argv[1]), {"model": "abc", "top_k": 5}, schema) as parts:
    parts.add(pa.table({name: ["a"] for name in schema.names}))
    parts.flush()
    parquet.write_table = lambda table, path: (Path(path).write_bytes(b"PAR1"), print(flush=True),
                                               sys.stdin.read())
    parts.add(pa.table({name: ["b"] for name in schema.names}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_one_writer_whose_unfinished_part_is_removed_after_a_kill(tmp_path):
    folder = tmp_path / "rows"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, folder], stdin=pipe, stdout=pipe
    ) as process:
        process.stdout.readline()  # in the middle of the second part
        unfinished = list(folder.glob(".part-*"))
        assert len(unfinished) == 1
        with pytest.raises(OutputError, match="Another command"), Parts(folder, SETTINGS, SCHEMA):
            pass
        os.kill(process.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert unfinished[0].exists()
    assert names_in(folder) == ["a"]
    with Parts(folder, SETTINGS, SCHEMA) as parts:
        assert parts.rows == 1
        assert not unfinished[0].exists()
