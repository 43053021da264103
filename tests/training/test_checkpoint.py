from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from resnetkit import storage
from resnetkit.errors import OutputError, TrainingError
from resnetkit.training import checkpoint
from resnetkit.training.checkpoint import Checkpoints, Snapshot


def snapshot(step):
    values = {"step": step, "epoch": step // 10, "batch": step % 10, "loss": 0.1 + step}
    return Snapshot({"w": torch.full((3, 2), float(step))}, values)


def step_in(folder):
    found = checkpoint.read(folder)
    if found is None:
        return None
    assert found.tensors["w"].tolist() == [[float(found.values["step"])] * 2] * 3
    return found.values["step"]


def test_the_newest_is_read_and_two_generations_are_kept(tmp_path):
    assert checkpoint.read(tmp_path / "state") is None
    for step in (5, 17, 23):
        checkpoint.write(tmp_path / "state", snapshot(step))
        assert checkpoint.read(tmp_path / "state").values == snapshot(step).values
    names = {path.name for path in (tmp_path / "state").iterdir()}
    assert names == {
        "manifest.json", "previous.json", "000000017.json", "000000017.safetensors",
        "000000023.json", "000000023.safetensors",
    }  # fmt: skip
    manifest = json.loads((tmp_path / "state" / "manifest.json").read_text())
    assert (manifest["step"], manifest["epoch"], manifest["batch"]) == (23, 2, 3)
    for name, digest in manifest["files"].items():
        assert storage.sha256(tmp_path / "state" / name) == digest


@pytest.mark.parametrize("name", ["manifest.json", "000000023.json", "000000023.safetensors"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_newest_generation_falls_back_aloud(tmp_path, capsys, name, how):
    for step in (17, 23):
        checkpoint.write(tmp_path, snapshot(step))
    path = tmp_path / name
    contents = bytearray(path.read_bytes())
    if how == "flip":
        contents[len(contents) // 2] ^= 1
        path.write_bytes(bytes(contents))
    elif how == "cut":
        path.write_bytes(contents[: len(contents) // 2])
    else:
        path.unlink()
    assert step_in(tmp_path) == 17
    if (name, how) != ("manifest.json", "remove"):
        assert "damaged" in capsys.readouterr().err
    checkpoint.write(tmp_path, snapshot(31))  # and life goes on
    assert step_in(tmp_path) == 31


def test_two_damaged_generations_are_an_error(tmp_path):
    for step in (17, 23):
        checkpoint.write(tmp_path, snapshot(step))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(TrainingError, match=r"No saved state can be read.*manifest.*previous"):
        checkpoint.read(tmp_path)


class Stop(Exception):
    pass


@pytest.mark.parametrize("operation", ["fsync", "replace", "unlink", "mkstemp"])
def test_a_failure_at_any_operation_leaves_the_old_or_the_new_state(
    tmp_path, monkeypatch, operation
):
    """Fail at the n-th fsync, rename, unlink or new file of a save, for every n there is."""
    real = {
        "fsync": os.fsync, "replace": os.replace, "unlink": os.unlink,
        "mkstemp": storage.tempfile.mkstemp,
    }[operation]  # fmt: skip
    n, done = 0, False
    while not done:
        n += 1
        folder = tmp_path / f"{operation}-{n}"
        checkpoint.write(folder, snapshot(1))
        checkpoint.write(folder, snapshot(2))
        calls = 0

        def failing(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == n:  # noqa: B023
                raise Stop
            return real(*args, **kwargs)

        owner = storage.tempfile if operation == "mkstemp" else os
        with monkeypatch.context() as patch:
            patch.setattr(owner, operation, failing)
            try:
                checkpoint.write(folder, snapshot(3))
                done = True
            except Stop:
                pass
        assert step_in(folder) in ((3,) if done else (2, 3))
        checkpoint.write(folder, snapshot(4))
        assert step_in(folder) == 4
    assert n > 2


def test_saving_goes_on_in_the_background_and_its_errors_come_back(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path / "state", seconds=0.0)
    checkpoints.save(snapshot(1))
    checkpoints.save(snapshot(2))
    checkpoints.wait()
    assert step_in(tmp_path / "state") == 2
    assert checkpoints.due()

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
    assert len(list(Path(tmp_path / "state").iterdir())) == 3


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    def full(*_):
        raise SafetensorError("No space left on device")

    checkpoints = Checkpoints(tmp_path / "state", seconds=0.0)
    monkeypatch.setattr(checkpoint, "save_file", full)
    checkpoints.save(snapshot(1))
    with pytest.raises(OutputError, match=r"cannot be saved.*No space left.*--resume"):
        checkpoints.wait()
