"""Disks that fail or are full: a run continues or ends with a clear error, and resuming it gives
the same bits as an uninterrupted run."""

from __future__ import annotations

import itertools
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from resnetkit import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's strace and limits"),
]
FILES = ("model.safetensors", "last.safetensors", "history.csv", "metrics.json", "split.csv")


def command(data: Path, out: Path) -> list[str]:
    return [sys.executable, "-m", "resnetkit", "train", str(data), "--out", str(out), "--resume",
            "--model", "cifar_resnet20", "--set", "model_options={width: 8}", "--epochs", "2",
            "--batch-size", "16", "--image-size", "32", "--set", "checkpoint_seconds=1000",
            "--set", "precision=fp32", "--workers", "1"]  # fmt: skip


def go_on(data: Path, out: Path) -> None:
    """Do what `command` does, in this process, where PyTorch is already loaded."""
    settings = {"model_options": {"width": 8}, "checkpoint_seconds": 1000, "precision": "fp32"}
    settings |= {"model": "cifar_resnet20", "epochs": 2, "batch_size": 16, "image_size": 32}
    train(data, out=out, resume=True, workers=1, **settings)


def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=900, env=environment, **options
    )


def same(first: Path, second: Path) -> None:
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def named(done: subprocess.CompletedProcess[str]) -> bool:
    """Return whether the process failed; check that it then ended with a clear error."""
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    if done.returncode:
        assert done.returncode == 1, done.stderr[-3000:]
        assert re.search(
            r"^resnet: .*(cannot be|error|full|large|no usable)", done.stderr, re.MULTILINE | re.I
        )
    return done.returncode != 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The data, and an uninterrupted run."""
    base = tmp_path_factory.mktemp("faults")
    from PIL import Image

    for color in ("red", "blue"):
        (base / "data" / color).mkdir(parents=True)
        for number in range(20):
            shade = Image.new("RGB", (32, 32), color)
            shade.putpixel((number, 3), (255, 255, 255))
            shade.save(base / "data" / color / f"{number}.png")
    done = run(command(base / "data", base / "whole"))
    assert done.returncode == 0, done.stderr
    return base / "data", base / "whole"


def calls(trace: Path, name: str) -> int:
    return len(re.findall(rf"\b{name}\(", trace.read_text()))


@pytest.mark.parametrize(("call", "errors"), [("fsync", ["EIO"]), ("rename", ["ENOSPC", "EIO"])])
def test_every_call_may_fail_once(whole, tmp_path, call, errors):
    """One flush or rename of a run fails, with each of several errors in turn.

    Six calls are tried, from the first to the last, or with RESNETKIT_EVERY_CALL=1 all of them (a
    quarter of an hour). test_checkpoint.py simulates the failure of every call.
    """
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: NO FAILING DISK IS TESTED (apt-get install strace)")
    data, unbroken = whole
    trace = tmp_path / "trace"
    inside = ["strace", "-f", "--seccomp-bpf", "-o", str(trace), "-e", f"trace={call}"]
    probe = run([*inside, *command(data, tmp_path / "probe")])
    if "ptrace" in probe.stderr and not trace.exists():
        pytest.skip("tracing is not permitted here: NO FAILING DISK IS TESTED")
    assert probe.returncode == 0, probe.stderr
    count = calls(trace, call)
    assert count >= 8
    chosen = range(1, count + 1)
    if "RESNETKIT_EVERY_CALL" not in os.environ:
        chosen = sorted({1 + round(i * (count - 1) / 8) for i in range(6)})
    tried = failed = 0
    for number, error in zip(chosen, itertools.cycle(errors), strict=False):
        out = tmp_path / f"run{number}"
        inject = ["-e", f"inject={call}:error={error}:when={number}"]
        done = run([*inside, *inject, *command(data, out)])
        if "(INJECTED)" not in trace.read_text():
            break  # strace counts per thread, and no thread makes this many calls
        tried += 1
        failed += named(done)
        go_on(data, out)
        same(unbroken, out)
        shutil.rmtree(out)
    assert tried >= 4
    assert failed > tried // 2


@pytest.mark.parametrize("room", [0, 100, 5_000, 100_000, 300_000])
def test_files_may_not_grow(whole, tmp_path, room):
    """Limit the file size, which has the effect of a disk that fills up during a write."""
    data, unbroken = whole

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))

    done = run(command(data, tmp_path / "run"), preexec_fn=limit)
    assert named(done)
    go_on(data, tmp_path / "run")
    same(unbroken, tmp_path / "run")


@pytest.mark.parametrize("kilobytes", [64, 512])
def test_a_disk_that_is_full(whole, tmp_path, kilobytes):
    data, unbroken = whole
    small = tmp_path / "disk"
    small.mkdir()
    size = f"size={kilobytes}k"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "none", str(small)], check=False,
                             capture_output=True)  # fmt: skip
    if mounted.returncode:
        pytest.skip("mounting is not permitted here: NO FULL DISK IS TESTED")
    try:
        done = run(command(data, small / "run"))
        assert named(done)
        subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
        go_on(data, small / "run")
        same(unbroken, small / "run")
    finally:
        subprocess.run(["umount", str(small)], check=True)
