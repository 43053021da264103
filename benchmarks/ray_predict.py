"""Compare bulk prediction on Ray with `resnet predict`: speed, memory, and kills.

    python benchmarks/ray_predict.py speed MODEL PHOTOS --sizes 1000 3000
    python benchmarks/ray_predict.py memory MODEL --sizes 2000 20000
    python benchmarks/ray_predict.py kills MODEL --count 20

`speed` predicts the first photos under a folder with both, twice per size. The rate is that of the
additional photos, so that startup (seconds for Ray) does not count; the total times are printed
too. `memory` sums the proportional memory of all processes of the command, twice a second, while it
predicts small generated images. `kills` sends SIGKILL to a process of the command at random moments
(an actor, the driver, a raylet, the control store, or any process), runs the same command again,
and compares the rows at the end with those of `resnet predict`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image
from pyarrow import parquet

RESNET = [sys.executable, "-m", "resnetkit", "predict"]
KILLABLE = """
import sys
from pathlib import Path
from resnetkit.cli.sources import expand_sources
from resnetkit.scale import BatchPredictor, listing
from resnetkit.scale.listing import list_items
from resnetkit.scale.ray_data import predict_on_ray

listing.BLOCK_BYTES = 64 * listing.LEAST_BYTES
items = list_items([sys.argv[2]], expand_sources)
predict_on_ray(BatchPredictor(sys.argv[1]), items, Path(sys.argv[3]), seconds=0.2)
"""


def draw(folder: Path, count: int) -> Path:
    """Write small images: squares on noise, a thousand different ones."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(min(count, 1000)):
        pixels = rng.integers(90, 170, (40, 40, 3), dtype=np.uint8)
        left, top = rng.integers(0, 20, 2)
        pixels[top : top + 18, left : left + 18] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{number:07d}.png")
    for number in range(1000, count):
        os.link(folder / f"{number % 1000:07d}.png", folder / f"{number:07d}.png")
    return folder


def children(pid: int) -> list[int]:
    """Return the descendants of a process."""
    below: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        below.setdefault(parent, []).append(int(path.parent.name))
    found, waiting = [], [pid]
    while waiting:
        new = below.get(waiting.pop(), [])
        found += new
        waiting += new
    return found


def memory(pids: list[int]) -> int:
    """Return the bytes of these processes; shared memory is counted once."""
    total = 0
    for pid in pids:
        try:
            rows = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(1024 * int(row.split()[1]) for row in rows if row.startswith("Pss:"))
    return total


def run(command: list[str]) -> tuple[float, int]:
    """Return the seconds and the peak bytes of a command."""
    began, peak = time.perf_counter(), 0
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    while process.poll() is None:
        peak = max(peak, memory([process.pid, *children(process.pid)]))
        time.sleep(0.5)
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    assert process.returncode == 0, errors
    return time.perf_counter() - began, peak


def commands(model: str, source: str, base: Path) -> dict[str, list[str]]:
    """Return both commands, with new outputs."""
    out = Path(tempfile.mkdtemp(dir=base))
    return {
        "local": [*RESNET, model, source, "--out", str(out / "rows.jsonl")],
        "ray": [*RESNET, model, source, "--on", "ray", "--out", str(out / "rows")],
    }


def measure_speed(model: str, photos: Path, sizes: list[int], base: Path) -> None:
    paths = sorted(map(str, photos.rglob("*.jpg")))
    assert len(paths) >= sizes[-1], f"{photos} has only {len(paths)} photos"
    seconds: dict[tuple[str, int], list[float]] = {}
    for _ in range(2):
        for size in sizes:
            (base / "list.txt").write_text("\n".join(paths[:size]))
            for name, command in commands(model, f"@{base / 'list.txt'}", base).items():
                seconds.setdefault((name, size), []).append(run(command)[0])
    rates = {}
    for name in ("local", "ray"):
        small, large = (min(seconds[name, size]) for size in sizes)
        rates[name] = (sizes[1] - sizes[0]) / (large - small)
        times = ", ".join(f"{n}: {min(seconds[name, n]):.1f} s" for n in sizes)
        print(f"{name:6} {rates[name]:7.1f} images/s   {times}", flush=True)
    print(f"ray / local: {rates['ray'] / rates['local']:.1%}")


def measure_memory(model: str, sizes: list[int], base: Path) -> None:
    peaks = {}
    for size in sizes:
        folder = draw(base / f"{size}", size)
        took, peaks[size] = run(commands(model, str(folder), base)["ray"])
        print(f"{size:8,} images: {peaks[size] / 2**20:7,.0f} MiB, {took:.0f} s", flush=True)
    print(f"growth: {peaks[sizes[-1]] / peaks[sizes[0]] - 1:+.1%}")


def kill_one(process: subprocess.Popen[bytes], kind: str, wait: float) -> bool:
    """Kill a process of the command some seconds after its actor has started."""
    while process.poll() is None:
        names = {pid: command_line(pid) for pid in children(process.pid)}
        if any((kind == "any" and wait > 3) or "MapWorker" in name for name in names.values()):
            break
        time.sleep(0.05)
    time.sleep(wait)
    names = {pid: command_line(pid) for pid in children(process.pid)}
    victims = [pid for pid, name in names.items() if kind == "any" or kind in name]
    victims = [process.pid] if kind == "driver" else victims
    if process.poll() is not None or not victims:
        return False
    os.kill(random.choice(victims), signal.SIGKILL)
    return True


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def rows_in(folder: Path) -> list[dict[str, object]]:
    parts = sorted(folder.glob("part-*"))
    return [row for part in parts for row in parquet.read_table(part).to_pylist()]


def measure_kills(model: str, count: int, images: int, base: Path) -> None:
    folder, out = draw(base / "images", images), base / "rows"
    rng = random.Random(0)
    random.seed(0)
    done: Counter[str] = Counter()
    survived = 0
    while done.total() < count:
        kind = ("MapWorker", "driver", "raylet/raylet", "gcs_server", "any")[done.total() % 5]
        command = [sys.executable, "-c", KILLABLE, model, str(folder), str(out)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        began = time.perf_counter()
        killed = kill_one(process, kind, rng.uniform(0, 6))
        process.wait(600)
        done[kind] += killed
        survived += killed and process.returncode == 0
        sources = [row["source"] for row in rows_in(out)]
        assert len(set(sources)) == len(sources), "an image has two rows"
        took = time.perf_counter() - began
        print(f"{kind:13} killed {killed}, {len(sources):6,} rows, {took:.0f} s", flush=True)
        if len(sources) == images:
            check_rows(rows_in(out), model, folder, base)
            out = Path(tempfile.mkdtemp(dir=base)) / "rows"
    subprocess.run([sys.executable, "-c", KILLABLE, model, str(folder), str(out)], check=True)
    check_rows(rows_in(out), model, folder, base)
    print(f"{done.total()} kills ({survived} runs survived): {dict(done)}")


def check_rows(rows: list[dict[str, object]], model: str, folder: Path, base: Path) -> None:
    """Check rows against those of `resnet predict`."""
    file = base / "local.jsonl"
    if not file.exists():
        subprocess.run([*RESNET, model, str(folder), "--out", str(file)], check=True)
    wanted = {row["source"]: row for row in map(json.loads, file.read_text().splitlines())}
    assert sorted(str(row["source"]) for row in rows) == sorted(wanted)
    worst = 0.0
    for row in rows:
        local = wanted[row["source"]]
        assert row["class"] == local["class"], (row, local)
        worst = max(worst, abs(float(str(row["probability"])) - local["probability"]))
    print(f"the {len(rows):,} rows are those of resnet predict; probabilities within {worst:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("speed", "memory", "kills"))
    parser.add_argument("model")
    parser.add_argument("photos", type=Path, nargs="?")
    parser.add_argument("--sizes", type=int, nargs=2, default=[1000, 3000])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--images", type=int, default=3000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.what == "speed":
            measure_speed(arguments.model, arguments.photos, arguments.sizes, Path(folder))
        elif arguments.what == "memory":
            measure_memory(arguments.model, arguments.sizes, Path(folder))
        else:
            measure_kills(arguments.model, arguments.count, arguments.images, Path(folder))


if __name__ == "__main__":
    main()
