"""Measure the seconds to the plain script's best validation accuracy on one fixed split.

    python benchmarks/speed.py split SIGNS /tmp/split   # per class, 42 to test and 22 to val
    python benchmarks/plain_script.py /tmp/split --size 96 --out /tmp/plain.json
    python benchmarks/speed.py run /tmp/split /tmp/plain.json --epochs 14
    python benchmarks/speed.py run /tmp/split /tmp/plain.json --model resnet34 --epochs 8
    python benchmarks/speed.py today /tmp/split /tmp/plain.json --size 96

``run`` starts ``resnet train`` in a fresh process for each of three seeds, with the other arguments
of the command line, and records when it prints each epoch. If the data has a split ``test``, the
model is evaluated on it at the end.

The speed of a machine varies from hour to hour. ``today`` runs two epochs of the plain script, and
writes the seconds of one epoch, and those before the first, into its JSON file. ``run`` then
compares with the recorded curve, scaled to today's seconds per epoch.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EPOCH = re.compile(r"^epoch +(\d+)/\d+ .* val accuracy +([\d.]+)%")
RESNET = [sys.executable, "-m", "resnetkit"]


def split(photos: Path, folder: Path) -> None:
    """Link a flat folder into train, val and test (seed 7: the same on every machine)."""
    rng = random.Random(7)
    for category in sorted(path.name for path in photos.iterdir() if path.is_dir()):
        names = sorted(path.name for path in (photos / category).iterdir())
        rng.shuffle(names)
        for part, chosen in (("test", names[:42]), ("val", names[42:64]), ("train", names[64:])):
            (folder / part / category).mkdir(parents=True)
            for name in chosen:
                os.symlink((photos / category / name).absolute(), folder / part / category / name)


def one_run(data: Path, target: float, seed: int, more: list[str]) -> dict[str, float]:
    out = Path(f"/tmp/resnetkit-speed-{os.getpid()}-{seed}")
    command = [*RESNET, "train", str(data), "--out", str(out), "--seed", str(seed), *more]
    start = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    reached, best = float("nan"), 0.0
    for line in process.stderr:
        found = EPOCH.match(line)
        if found:
            best = max(best, float(found[2]) / 100)
            if best >= target - 5e-5 and reached != reached:
                reached = time.perf_counter() - start
    assert process.wait() == 0
    whole = time.perf_counter() - start
    row = {"reached": reached, "whole": whole, "val": best}
    if (data / "test").is_dir():
        subprocess.run(
            [*RESNET, "evaluate", str(out / "model.safetensors"), str(data), "--split", "test",
             "--out", str(out / "test")],
            check=True, capture_output=True,
        )  # fmt: skip
        row["test"] = json.loads((out / "test" / "metrics.json").read_text())["accuracy"]
    shutil.rmtree(out)
    return row


def today(data: Path, plain: Path, more: list[str]) -> None:
    """Record how long the plain script takes today."""
    recorded = json.loads(plain.read_text())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "plain.json"
        script = str(Path(__file__).with_name("plain_script.py"))
        command = [sys.executable, script, str(data), "--epochs", "2", "--out", str(out), *more]
        subprocess.run(command, check=True)
        ends = [row["seconds"] for row in json.loads(out.read_text())["epochs"]]
    epoch = ends[1] - ends[0]
    recorded["today"] = {"epoch": epoch, "start": max(0.0, ends[0] - epoch)}
    plain.write_text(json.dumps(recorded, indent=1))
    print(f"plain script: {epoch:.1f} s per epoch today")


def run(data: Path, plain: Path, more: list[str]) -> None:
    peer = json.loads(plain.read_text())
    target = peer["best"]
    first = next(row for row in peer["epochs"] if row["val_accuracy"] == target)
    seconds = first["seconds"]
    if "today" in peer:
        seconds = peer["today"]["start"] + first["epoch"] * peer["today"]["epoch"]
    print(f"plain script: best {target:.2%}, first in epoch {first['epoch']}, {seconds:.0f} s")
    rows = [one_run(data, target, seed, more) for seed in (0, 1, 2)]
    for row in rows:
        print("  " + "  ".join(f"{key} {value:.4g}" for key, value in row.items()))
    middle = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    print(
        f"resnet train {' '.join(more)}: median {middle['reached']:.0f} s to {target:.2%} "
        f"({seconds / middle['reached']:.1f} times as fast), "
        f"whole run {middle['whole']:.0f} s, best validation {middle['val']:.2%}"
        + (f", test {middle['test']:.2%}" if "test" in middle else "")
    )


def main() -> None:
    action, *rest = sys.argv[1:]
    if action == "split":
        split(Path(rest[0]), Path(rest[1]))
    elif action == "today":
        today(Path(rest[0]), Path(rest[1]), rest[2:])
    else:
        run(Path(rest[0]), Path(rest[1]), rest[2:])


if __name__ == "__main__":
    main()
