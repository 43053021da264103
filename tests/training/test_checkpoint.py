from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors import SafetensorError

from resnetkit import storage
from resnetkit.errors import OutputError, TrainingError
from resnetkit.training import checkpoint
from resnetkit.training.checkpoint import Checkpoints, Snapshot


def snapshot(step, epoch=0):
    return Snapshot(
        {"w": torch.full((3, 2), float(step))}, {"step": step, "epoch": epoch, "batch": 7}
    )


def saved(folder, *steps):
    """Write generations for these steps, as a run would leave them; return the newest."""
    before = None
    for step in steps:
        before = checkpoint.write_generation(folder, snapshot(step), before)
    return before


def step_in(folder):
    found = checkpoint.read_newest(folder)
    if found is None:
        return None
    assert found.tensors["w"].tolist() == [[float(found.values["step"])] * 2] * 3
    return found.values["step"]


def test_the_newest_is_read_and_two_generations_are_kept(tmp_path):
    state = tmp_path / "state"
    assert checkpoint.read_newest(state) is None
    newest = saved(state, 5, 17, 23)
    assert checkpoint.read_newest(state).values == snapshot(23).values
    assert checkpoint.read_newest(state).generation == newest
    names = sorted(path.name for path in state.iterdir())
    assert [name[:7] for name in names] == ["000002-", "000003-", "manifes"]
    digest = storage.sha256(newest)
    assert names[1] == f"000003-{digest}.safetensors"
    manifest = json.loads((state / "manifest.json").read_text())
    assert manifest == {"step": 23, "epoch": 0, "batch": 7, "files": {names[1]: digest}}


@pytest.mark.parametrize("how", ["flip", "cut", "empty", "remove", "folder"])
def test_a_damaged_newest_generation_falls_back_aloud(tmp_path, capsys, how):
    path = saved(tmp_path, 17, 23)
    contents = bytearray(path.read_bytes())
    path.unlink()
    if how == "flip":
        contents[len(contents) // 2] ^= 1
        path.write_bytes(bytes(contents))
    elif how in ("cut", "empty"):
        path.write_bytes(contents[: len(contents) // 2 if how == "cut" else 0])
    elif how == "folder":
        path.mkdir()
    found = checkpoint.read_newest(tmp_path)
    assert found.values["step"] == 17
    assert ("damaged" in capsys.readouterr().err) == (how != "remove")
    if how == "folder":
        path.rmdir()
    newer = checkpoint.write_generation(
        tmp_path, snapshot(31), found.generation
    )  # the run continues
    assert set(tmp_path.glob("0*")) == {found.generation, newer}  # both are intact
    assert step_in(tmp_path) == 31


def test_two_damaged_generations_are_an_error(tmp_path):
    saved(tmp_path, 17, 23)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"No saved state can be read.*000002.*000001"):
        checkpoint.read_newest(tmp_path)


def test_files_that_are_not_ours_stay(tmp_path):
    saved(tmp_path, 17, 23)
    strange = [".nfs00000000ee14004c", "notes.txt", "000001.safetensors", ".000001"]
    for name in strange:
        (tmp_path / name).write_text("")
    (tmp_path / "folder").mkdir()
    ours = [".000007.0123456789abcdef", ".manifest.json.0123456789abcdef"]
    for name in ours:  # what a killed run leaves behind
        (tmp_path / name).write_text("")
    checkpoint.write_generation(tmp_path, snapshot(31))
    left = {path.name for path in tmp_path.iterdir()}
    assert left >= {*strange, "folder"}
    assert not left & set(ours)
    assert step_in(tmp_path) == 31


def test_a_state_that_is_read_does_not_hang_on_its_file(tmp_path):
    path = saved(tmp_path, 17)
    found = checkpoint.read_newest(tmp_path)
    with path.open("r+b") as file:  # in place, so that a memory mapping of the file would change
        file.write(b"\xff" * path.stat().st_size)
    assert found.tensors["w"].tolist() == [[17.0] * 2] * 3


def test_a_removal_that_fails_is_said_once_and_the_save_is_whole(tmp_path, monkeypatch, capsys):
    real = os.unlink

    def busy(path, *args, **kwargs):
        if checkpoint.GENERATION.fullmatch(os.path.basename(path)):
            raise OSError(16, "Device or resource busy")
        real(path, *args, **kwargs)

    monkeypatch.setattr(os, "unlink", busy)
    checkpoints = Checkpoints(tmp_path, seconds=0.0)
    for step in (1, 2, 3, 4):
        checkpoints.save(snapshot(step))
    checkpoints.finish()
    assert step_in(tmp_path) == 4
    assert capsys.readouterr().err.count("cannot be removed (Device or resource busy)") == 1


class Stop(Exception):
    pass


@pytest.mark.parametrize("operation", ["fsync", "replace", "unlink", "open"])
@pytest.mark.parametrize("damaged", [False, True])
def test_a_failure_at_any_operation_leaves_the_old_or_the_new_state(
    tmp_path, monkeypatch, operation, damaged
):
    """Fail at the n-th fsync, rename, unlink or new file, for every n, while a step is saved again.

    Runs do that at the end of an epoch, where only the position has changed since the last batch.
    """
    real, n, done = getattr(os, operation), 0, False
    while not done:
        n += 1
        folder = tmp_path / f"{operation}-{n}"
        newest = saved(folder, 1, 2)
        if damaged:
            newest.write_bytes(b"")
        before, calls = checkpoint.read_newest(folder), 0

        def failing(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:  # noqa: B023
                raise Stop
            return real(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(os, operation, failing)
            try:
                checkpoint.write_generation(folder, snapshot(2, epoch=1), before.generation)
                done = True
            except Stop:
                pass
        left = checkpoint.read_newest(folder)
        assert left.values in (snapshot(2, epoch=1).values, before.values)
        assert not done or left.values["epoch"] == 1
        checkpoint.write_generation(folder, snapshot(4), left.generation)
        assert step_in(folder) == 4
        assert set(checkpoint.list_generations(folder)[1][2:]) == {left.generation}
    assert n > 1


def test_saving_goes_on_in_the_background_and_its_errors_come_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "state", seconds=0.0)
    checkpoints.save(snapshot(1))
    checkpoints.save(snapshot(2))
    checkpoints.wait()
    assert step_in(tmp_path / "state") == 2
    assert checkpoints.is_due()

    def full(*_):
        raise OSError(28, "No space left on device")

    real = os.fsync
    monkeypatch.setattr(os, "fsync", full)
    checkpoints.save(snapshot(3))
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    monkeypatch.setattr(os, "fsync", real)
    assert step_in(tmp_path / "state") == 2
    checkpoints.save(snapshot(5))
    checkpoints.finish()
    assert step_in(tmp_path / "state") == 5
    assert len(list((tmp_path / "state").glob("0*"))) == 1


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    checkpoints = Checkpoints(tmp_path / "state", seconds=0.0)
    monkeypatch.setattr(checkpoint, "save_file", full)
    checkpoints.save(snapshot(1))
    with pytest.raises(OutputError, match=r"Cannot save.*No space left.*--resume"):
        checkpoints.wait()
