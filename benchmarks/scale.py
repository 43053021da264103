"""Measure the time and memory per image of every step, from 1,000 to 1,000,000 images.

    python benchmarks/scale.py FOLDER --sizes 1000 10000 100000
    python benchmarks/scale.py FOLDER --sizes 1000000 --steps list check

The script writes different photos of 36 px (JPEG, every fourth PNG) in 20 class folders of FOLDER;
smaller sizes are hard links to the first of them. Each step is a separate process:

- list: read the names of all images
- check: `resnet check`, which reads every image and searches for near duplicates
- cache: decode all images into the cache on disk
- train: `resnet train`, one epoch of a CIFAR ResNet-20 of width 4 at 32 px
- predict, evaluate, report: `resnet predict`, `evaluate` and `report` with that model

The table shows CPU time and memory (peak RSS) of each process and, per additional image, how much
both grow from one size to the next, so that the time to start does not count. FOLDER keeps the
photos, `results.json` and the plot `growth.png`; run the command again with other sizes or steps to
add to them. Without an earlier `train` of a size, name a model file with `--model`.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from multiprocessing import Process
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 20
SIDE = 36
AT_ONCE = 500  # images generated at once
RESNET = [sys.executable, "-m", "resnetkit"]
LIST = "import sys; from resnetkit.data.folder import read_dataset; read_dataset(sys.argv[1])"
CACHE = """
import sys
from resnetkit.data import cache
from resnetkit.data.folder import read_dataset
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.processes import default_workers
cache.RAM_SHARE = 0
split = read_dataset(sys.argv[1]).splits["all"]
cache.scan(split, Preprocessing(36, 32), default_workers(), lambda text: None)
"""
TRAIN = "--model cifar_resnet20 --epochs 1 --image-size 32 --batch-size 128 --weights none"
NARROW = ["--set", "model_options={width: 4}"]
STEPS = ("list", "check", "cache", "train", "predict", "evaluate", "report")
MAX_PAGE = 20_000_000  # bytes of report.html
TOLERANCE = 0.2


def name(number: int) -> str:
    """Return the path of a photo; photos go to the classes in turn."""
    suffix = "png" if number % 4 == 3 else "jpg"
    return f"class{number % CLASSES:02d}/{number:07d}.{suffix}"


def write_photos(folder: Path, start: int, end: int) -> None:
    """Write photos: noise at three scales, stronger at the coarser ones, as in real photos."""
    for label in range(CLASSES):
        (folder / f"class{label:02d}").mkdir(parents=True, exist_ok=True)
    spread = {k: bilinear(k) for k in (4, 8, 16)}
    hues = np.random.default_rng(0).uniform(60, 195, (CLASSES, 1, 1, 3))
    for first in range(start, end, AT_ONCE):
        rng = np.random.default_rng([1, first])
        numbers = np.arange(first, min(first + AT_ONCE, end))
        pixels = hues[numbers % CLASSES] + np.zeros((1, SIDE, SIDE, 1))
        for cells, to_side in spread.items():
            coarse = rng.normal(0, 160 / cells, (AT_ONCE, cells, cells, 3))[: len(numbers)]
            pixels += np.einsum("ya,xb,nabc->nyxc", to_side, to_side, coarse, optimize=True)
        for number, image in zip(numbers.tolist(), pixels.clip(0, 255), strict=True):
            buffer = io.BytesIO()
            kind = "PNG" if number % 4 == 3 else "JPEG"
            options = {"compress_level": 1} if kind == "PNG" else {"quality": 85}
            Image.fromarray(image.astype(np.uint8)).save(buffer, kind, **options)
            (folder / name(number)).write_bytes(buffer.getvalue())


def bilinear(cells: int) -> np.ndarray:
    """Return the weights that enlarge ``cells`` values to `SIDE`, ``(SIDE, cells)``."""
    places = (np.arange(SIDE) + 0.5) * cells / SIDE - 0.5
    return np.maximum(0, 1 - np.abs(places.clip(0, cells - 1)[:, None] - np.arange(cells)))


def make_folders(base: Path, sizes: list[int]) -> None:
    """Write the photos that the largest folder lacks, and link the other folders to it."""
    everything, count = base / "everything", base / "everything.count"
    done = int(count.read_text()) if count.exists() else 0
    start = done // AT_ONCE * AT_ONCE
    process = Process(target=write_photos, args=(everything, start, max(sizes)))
    process.start()  # a process, so that its memory does not count in the peaks of the commands
    process.join()
    assert process.exitcode == 0
    count.write_text(str(max(done, *sizes)))
    for size in sizes:
        if (base / f"{size}").exists():
            continue
        partial = base / f"{size}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        for label in range(CLASSES):
            (partial / f"class{label:02d}").mkdir(parents=True)
        for number in range(size):
            os.link(everything / name(number), partial / name(number))
        partial.rename(base / f"{size}")


def commands(base: Path, size: int, model: Path) -> dict[str, list[str]]:
    """Return the command of each step."""
    data, out = str(base / f"{size}"), base / f"out-{size}"
    answered = [str(model), data, "--split", "all", "--out"]
    return {
        "list": [sys.executable, "-c", LIST, data],
        "check": [*RESNET, "check", data, "--format", "json"],
        "cache": [sys.executable, "-c", CACHE, data],
        "train": [*RESNET, "train", data, *TRAIN.split(), *NARROW, "--out", str(out / "run")],
        "predict": [*RESNET, "predict", str(model), data, "--out", str(out / "rows.jsonl")],
        "evaluate": [*RESNET, "evaluate", *answered, str(out / "evaluation")],
        "report": [*RESNET, "report", *answered, str(out / "report.html")],
    }


def measure(command: list[str], cache: Path) -> dict[str, float]:
    """Run a command; return its seconds of wall and CPU time and its peak RSS in bytes."""
    environment = {**os.environ, "RESNETKIT_CACHE": str(cache)}
    began = time.perf_counter()
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stderr is not None
        errors = process.stderr.read().decode()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, errors[-3000:]
    cpu = usage.ru_utime + usage.ru_stime
    return {
        "wall": time.perf_counter() - began,
        "cpu": cpu,
        "rss": usage.ru_maxrss * 1024,
    }


def run_step(base: Path, size: int, step: str, model: Path) -> dict[str, float]:
    out, cache = base / f"out-{size}", base / "cache"
    for path in (cache, out / "run" if step == "train" else out / "evaluation"):
        shutil.rmtree(path, ignore_errors=True)
    for path in (out / "rows.jsonl", out / "report.html"):
        path.unlink(missing_ok=True)
    out.mkdir(exist_ok=True)
    found = measure(commands(base, size, model)[step], cache)
    if step == "report":
        found["page"] = (out / "report.html").stat().st_size
    shutil.rmtree(cache, ignore_errors=True)
    return found


Results = dict[str, dict[str, dict[str, float]]]  # {step: {size: figures}}


def added(rows: dict[str, dict[str, float]], figure: str) -> dict[int, float]:
    """Return a figure per additional image, compared with the next smaller size."""
    ordered = sorted((int(size), row[figure]) for size, row in rows.items())
    return {
        size: (value - before) / (size - fewer)
        for (fewer, before), (size, value) in itertools.pairwise(ordered)
    }


def print_table(results: Results) -> None:
    """Print the figures, and which steps do not take constant time per image."""
    print(
        "\n| step | images | wall | CPU | per additional image | peak RSS | per additional image |"
    )
    print("|---|---|---|---|---|---|---|")
    for step in filter(results.get, STEPS):
        rows = results[step]
        cpu = {size: f"{1e6 * value:,.0f} us" for size, value in added(rows, "cpu").items()}
        memory = {size: f"{value:,.0f} B" for size, value in added(rows, "rss").items()}
        for size in sorted(map(int, rows)):
            row = rows[str(size)]
            print(
                f"| {step} | {size:,} | {row['wall']:,.1f} s | {row['cpu']:,.1f} s "
                f"| {cpu.get(size, '')} | {row['rss'] / 2**20:,.0f} MiB | {memory.get(size, '')} |"
            )
    print()
    for step, rows in results.items():
        times = list(added(rows, "cpu").values())
        if len(times) > 1 and times[-1] > (1 + TOLERANCE) * times[-2]:
            print(f"{step}: the last images take {times[-1] / times[-2] - 1:.0%} more time each")
    for size, row in results.get("report", {}).items():
        print(f"report.html of {int(size):,} images: {row['page'] / 1e6:.2f} MB")
        assert row["page"] < MAX_PAGE


def draw(results: Results, file: Path) -> None:
    """Draw time per additional image, and memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    for step in filter(results.get, STEPS):
        rows = results[step]
        times = added(rows, "cpu")
        peaks = {int(size): row["rss"] / 2**20 for size, row in rows.items()}
        left.plot(list(times), [1e6 * value for value in times.values()], marker="o", label=step)
        right.plot(sorted(peaks), [peaks[size] for size in sorted(peaks)], marker="o", label=step)
    for axes, title in ((left, "CPU time per additional image, us"), (right, "peak RSS, MiB")):
        axes.set(xscale="log", yscale="log", xlabel="images", title=title)
    right.legend(fontsize="small")
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--model", type=Path, help="model file for predict, evaluate and report")
    parser.add_argument("--write-only", action="store_true", help="write the photos and stop")
    options = parser.parse_args()
    base = options.folder.absolute()
    base.mkdir(parents=True, exist_ok=True)
    make_folders(base, options.sizes)
    if options.write_only:
        return
    file = base / "results.json"
    results: Results = json.loads(file.read_text()) if file.exists() else {}
    print(f"python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()}")
    for size in sorted(options.sizes):
        own = base / f"out-{size}" / "run" / "model.safetensors"
        for step in options.steps:
            figures = run_step(base, size, step, options.model or own)
            results.setdefault(step, {})[str(size)] = figures
            file.write_text(json.dumps(results, indent=1))
            shown = ", ".join(f"{key} {value:,.1f}" for key, value in figures.items())
            print(f"{step:9} {size:9,}: {shown}", flush=True)
    print_table(results)
    draw(results, base / "growth.png")


if __name__ == "__main__":
    main()
