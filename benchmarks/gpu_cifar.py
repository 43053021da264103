"""The part of `gpu.py` that starts other processes: the time to an accuracy on CIFAR-10."""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from resnetkit.models import resnet18, summarize

EPOCH = re.compile(r"val accuracy +([\d.]+)%")
BATCH = 256
# `plain_cifar.py` does the same in plain PyTorch.
RECIPE = {
    "zero_init_residual": "false",
    "model_options": "{stem: small}",
    "resize_size": "32",
    "train_sizes": "[1.0, 1.0]",
    "crop_padding": "4",
    "optimizer": "sgd",
    "momentum": "0.9",
    "nesterov": "true",
    "weight_decay": "0.0005",
    "decay_norms": "true",
    "schedule": "onecycle",
    "warmup": "0.25",
    "label_smoothing": "0",
}


def arrange(given: Path, place: Path) -> Path:
    """Return ``place/data``, with ``test`` as val, so that every epoch is validated on it."""
    if given.is_file():
        with tarfile.open(given) as archive:
            archive.extractall(place / "archive", filter="data")
        given = place / "archive"
    found = sorted(path.parent for path in [given / "test", *given.glob("*/test")] if path.is_dir())
    if not found or not (found[0] / "train").is_dir():
        sys.exit(f"--cifar: {given} holds no train/<class>/ and test/<class>/")
    (place / "data").mkdir()
    (place / "data" / "train").symlink_to((found[0] / "train").absolute())
    (place / "data" / "val").symlink_to((found[0] / "test").absolute())
    return place / "data"


def ways(args: argparse.Namespace, data: Path) -> dict[str, list[str]]:
    """Return the command of each method, without seed and output."""
    kind = args.precision
    settings = [f"--set={key}={value}" for key, value in RECIPE.items()]
    common = [f"--epochs={args.epochs}", f"--device={args.device}", f"--workers={args.workers}"]
    ours = [sys.executable, "-m", "resnetkit", "train", str(data), *common, *settings]
    ours += ["--model=resnet18", "--image-size=32", f"--batch-size={BATCH}", "--lr=0.2"]
    ours += ["--recipe=fast", "--weights=none", f"--set=precision={args.precision}"]
    script = str(Path(__file__).with_name("plain_cifar.py"))
    plain = [sys.executable, script, str(data), *common, f"--batch-size={BATCH}"]
    compiled = (
        {f"resnetkit, {kind}, compiled": [*ours, "--set=compile=true"]} if args.compile else {}
    )
    return {
        f"resnetkit, {kind}": ours,
        **compiled,
        f"plain script, {kind}": [*plain, f"--precision={kind}"],
        "plain script, fp32": [*plain, "--precision=fp32"],
    }


def one_run(command: list[str], target: float) -> tuple[float, int, float, float]:
    """Return seconds and epochs to the target, best accuracy, and seconds of the process."""
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    reached, epochs, accuracies, said = float("inf"), 0, [], []
    for line in process.stdout:
        said.append(line)
        found = EPOCH.search(line)
        if found:
            accuracies.append(float(found[1]) / 100)
            if accuracies[-1] >= target and not epochs:
                reached, epochs = time.perf_counter() - begun, len(accuracies)
    if process.wait():
        sys.exit(f"{' '.join(command)} failed:\n{''.join(said[-20:])}")
    return reached, epochs, max(accuracies), time.perf_counter() - begun


def table(args: argparse.Namespace, product: float) -> list[str]:
    """Run every method with every seed, in turn; ``product`` is the limit of multiply-adds
    per second."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data = arrange(args.cifar, place)
        images = sum(1 for path in (data / "train").glob("*/*"))
        found: dict[str, list[tuple[float, int, float, float]]] = {}
        for seed in range(args.seeds):
            for number, (way, command) in enumerate(ways(args, data).items()):
                out = f"--out={place / f'run-{seed}-{number}'}"
                command = [*command, f"--seed={seed}"] + ([out] if "resnetkit" in way else [])
                found.setdefault(way, []).append(one_run(command, args.target))
                print(f"{way}, seed {seed}: {found[way][-1]}", file=sys.stderr, flush=True)
    work = 3 * summarize(resnet18(num_classes=10, stem="small"), 32).macs * images
    lines = [
        f"\n## CIFAR-10 to {args.target:.0%} of the test images: ResNet-18, 32 px, batch {BATCH}",
        f"\n{images:,} training images, {args.epochs} epochs, {args.seeds} seed(s), "
        f"{args.workers} loader threads (the plain script: processes); seconds are medians from "
        "the start of the process\n",
        "| method | seconds to it | each run | epochs | best accuracy | whole process, s "
        "| until it, training alone, of the matrix product's limit |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, runs in found.items():
        reached, epochs, best, whole = zip(*runs, strict=True)
        each = ", ".join("never" if s == float("inf") else f"{s:.1f}" for s in reached)
        middle = statistics.median(reached)
        share = statistics.median(
            n * work / s / product for s, n in zip(reached, epochs, strict=True)
        )
        lines.append(
            f"| {way} | {'never' if middle == float('inf') else f'{middle:.1f}'} | {each} "
            f"| {', '.join(str(n) if n else '-' for n in epochs)} "
            f"| {statistics.median(best):.2%} | {statistics.median(whole):.1f} "
            f"| {f'{share:.2%}' if share else '-'} |"
        )
    return lines
