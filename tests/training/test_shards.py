"""Training on shards gives the same bytes as training on the photos that they were made from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from resnetkit import evaluate, load, train
from resnetkit.data import cache, folder
from resnetkit.data.shard_writer import write_shards
from resnetkit.errors import DataError
from resnetkit.training import checkpoint, loop

FILES = ("model.safetensors", "last.safetensors", "history.csv", "metrics.json", "split.csv")


class Stop(Exception):
    pass


def same(first, second):
    for name in FILES:
        if (first / name).exists() or name != "split.csv":
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.fixture
def packed(flat_folder, tmp_path):
    write_shards(flat_folder, tmp_path / "packed", size=1)
    return tmp_path / "packed"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_has_the_same_bytes(flat_folder, packed, small, tmp_path, workers):
    one = train(flat_folder, out=tmp_path / "one", **small)
    shutil.rmtree(flat_folder)  # shards do not need the original photos
    two = train(packed, out=tmp_path / "two", workers=workers, **small)
    same(one.folder, two.folder)


def test_without_a_cache_and_with_given_splits(split_folder, small, tmp_path, monkeypatch):
    write_shards(split_folder, tmp_path / "packed")
    monkeypatch.setattr(cache, "RAM_SHARE", 1e-12)  # every epoch reads each image again
    monkeypatch.setattr(cache, "_scan_to_disk", _refuse)
    one = train(split_folder, out=tmp_path / "one", workers=2, **small)
    two = train(tmp_path / "packed", out=tmp_path / "two", workers=2, **small)
    same(one.folder, two.folder)


def _refuse(*_, **__):
    raise OSError("there is no disk")


@pytest.mark.parametrize("resumed_on", ["shards", "photos"])
def test_a_run_stopped_within_an_epoch(
    flat_folder, packed, small, tmp_path, monkeypatch, resumed_on
):
    settings = {**small, "checkpoint_seconds": 0}
    whole = train(flat_folder, out=tmp_path / "whole", **settings)
    real, calls = loop.training_step, 0

    def step(*args):
        nonlocal calls
        calls += 1
        if calls > 7:
            raise Stop
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "training_step", step)
        with pytest.raises(Stop):
            train(packed, out=tmp_path / "run", workers=0, **settings)
    assert checkpoint.read_newest(tmp_path / "run" / "state").values["batch"] == 2
    data = packed if resumed_on == "shards" else flat_folder
    run = train(data, out=tmp_path / "run", resume=True, workers=2, **settings)
    same(whole.folder, run.folder)


def test_the_list_of_a_run_on_shards_is_a_dataset(packed, small, tmp_path):
    one = train(packed, out=tmp_path / "one", **small)
    dataset = folder.read_dataset(one.folder / "split.csv")
    assert [len(split) for split in dataset.splits.values()] == [42, 6]
    metrics = evaluate(one.model, one.folder / "split.csv", split="val").metrics
    assert metrics["accuracy"] == one.metrics["accuracy"]


def test_evaluate_and_predict(flat_folder, packed, trained):
    model = trained / "model.safetensors"
    assert evaluate(model, packed).metrics == evaluate(model, flat_folder).metrics
    predictor = load(model)
    answers = [predictor(root / "red" / "003.png") for root in (packed, flat_folder)]
    assert answers[0].top == answers[1].top


def test_images_that_cannot_be_decoded(flat_folder, small, tmp_path):
    broken = flat_folder / "red" / "003.png"
    broken.write_bytes(broken.read_bytes()[:100])
    write_shards(flat_folder, tmp_path / "packed")
    with pytest.raises(DataError, match=r"packed/red/003.png \(all-000000.tar/00000035.png\)"):
        train(tmp_path / "packed", out=tmp_path / "two", **small)
    one = train(flat_folder, out=tmp_path / "one", on_error="skip", **small)
    two = train(tmp_path / "packed", out=tmp_path / "two", on_error="skip", **small)
    same(one.folder, two.folder)


def test_a_changed_shard_stops_training(packed, small, tmp_path):
    with (packed / "all-000000.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"\0\0\0")
    message = r"packed/blue/000.png \(all-000000.tar/00000000.png\): it was changed"
    with pytest.raises(DataError, match=message):
        train(packed, out=tmp_path / "run", **small)


def resnet(*arguments, command=("-m", "resnetkit"), cwd):
    return subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "COLUMNS": "100"},
        timeout=300,
    )


FLAGS = [
    "--model", "cifar_resnet20", "--set", "model_options={width: 8}", "--epochs", "2",
    "--batch-size", "8", "--image-size", "32", "--set", "precision=fp32",
]  # fmt: skip


def test_the_commands(flat_folder, tmp_path):
    (flat_folder / "red" / "bad.png").write_bytes(b"no image")
    done = resnet("shard", "squares", "packed", "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "packed: 49 images in 1 shard, 0.2 MB\n"
    assert "1 image cannot be decoded" in done.stderr
    assert "  red/bad.png: " in done.stderr
    done = resnet("shard", "squares", "packed", cwd=tmp_path)
    assert done.returncode == 1
    assert "packed exists" in done.stderr
    done = resnet("check", "packed", cwd=tmp_path)
    assert done.returncode == 1
    assert "red/bad.png" in done.stdout
    done = resnet("train", "packed", *FLAGS, "--on-error", "skip", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = tmp_path / "runs" / "squares-cifar_resnet20" / "model.safetensors"
    done = resnet("predict", model, "packed", cwd=tmp_path)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 3
    assert len(rows) == 49
    assert rows[0]["source"] == os.path.join("packed", "blue", "000.png")
    assert "all-000000.tar/00000048.png" in rows[-1]["error"]
    done = resnet("evaluate", model, "packed", "--split", "val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_processes(flat_folder, packed, tmp_path):
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for data, out in ((flat_folder, "one"), (packed, "two")):
        command = (*launch, "-m", "resnetkit")
        done = resnet("train", data, "--out", out, *FLAGS, command=command, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    same(tmp_path / "one", tmp_path / "two")
