"""Measure images per second from a folder to answers: resnetkit against the plain scripts.

    python benchmarks/predict_speed.py --photos 192 --rounds 4

The photos are generated: 500x375, noise and shapes, JPEG, quality 90. The network is a ResNet-50 at
224 px with random weights and 1,000 classes. Four methods take turns in one process, so that
threads and environment are the same for all of them. This includes GOMP_SPINCOUNT, which the
command ``resnet`` sets and this script sets for all. The results are medians of the rounds, after a
warm-up round:

- plain, batched: Pillow, torchvision's transforms v1 and ResNet-50, fp32, batches of 32
- plain, one by one: the same with batches of one (on the first 64 photos)
- ours: `Predictor.stream` with the engine ``auto`` and each engine that is installed
- bare: the same engines on prepared batches of 32 random inputs

Then the command itself is timed from a cold start to its end: on one photo, and on the folder.
"""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # the same for all methods

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image, ImageDraw
from torchvision import transforms

from resnetkit import load
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.inference import engines
from resnetkit.inference.predictor import FEW
from resnetkit.models.weights import modelfile
from resnetkit.runtime import environment

SIZE, BATCH, ALONE = (500, 375), 32, 64
WAYS = {"eager fp32": ("eager", "fp32"), "eager bf16": ("eager", "bf16"),
        "openvino fp32": ("openvino", "fp32"), "onnx fp32": ("onnx", "fp32"),
        "auto": ("auto", "auto")}  # fmt: skip


def photo(path: Path, seed: int) -> None:
    """Write a JPEG of smooth noise, shapes of one color, and grain."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image = coarse.resize(SIZE, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, side = (int(v) for v in rng.integers((0, 0, 20), (480, 350, 160)))
        color = tuple(int(v) for v in rng.integers(0, 256, 3))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + side, y + side), fill=color)
    grain = rng.normal(0, 8, (SIZE[1], SIZE[0], 3))
    pixels = (np.asarray(image) + grain).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, "JPEG", quality=90)


def plain(model: torch.nn.Module, paths: list[Path], batch_size: int) -> list[int]:
    """Predict as in every tutorial."""
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    answers: list[int] = []
    for start in range(0, len(paths), batch_size):
        part = paths[start : start + batch_size]
        images = torch.stack([prepare(Image.open(path).convert("RGB")) for path in part])
        with torch.no_grad():
            answers += torch.softmax(model(images), 1).topk(5).indices[:, 0].tolist()
    return answers


def write_model(path: Path) -> torch.nn.Module:
    """Return torchvision's ResNet-50 with random weights, and write it as a model file."""
    torch.manual_seed(0)
    model = torchvision.models.resnet50(weights=None).eval()
    classes = tuple(f"class {i}" for i in range(1000))
    header = modelfile.Header("resnet50", {"num_classes": 1000}, classes, Preprocessing(256, 224))
    modelfile.write(path, model.state_dict(), header)
    return model


def cold(arguments: list[str]) -> float:
    """Return the seconds that the command takes from start to end."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-m", "resnetkit", "predict", *arguments],
                   check=True, capture_output=True)  # fmt: skip
    return time.perf_counter() - begun


def measure(folder: Path, count: int, rounds: int, every: bool) -> None:
    paths = [folder / f"{number:04d}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        photo(path, number)
    file = folder / "model.safetensors"
    model = write_model(file)
    ready = torch.randn(BATCH, 3, 224, 224).contiguous(memory_format=torch.channels_last)
    runs: dict[str, tuple[int, Callable[[], object]]] = {
        "plain, batches of 32": (count, lambda: plain(model, paths, BATCH)),
        "plain, one by one": (ALONE, lambda: plain(model, paths[:ALONE], 1)),
    }
    for name, (engine, precision) in WAYS.items():
        if not every and name != "auto":
            continue
        predictor = load(file, "cpu", engine, precision)
        taken = engines.resolve_engine(
            engines.EngineChoice(engine, precision), predictor.device, many=True
        )
        bare = engines.start_engine(taken, predictor.model, 224, predictor.device, BATCH)
        label = f"{name} ({' '.join(taken)})" if name == "auto" else name

        def idle(bare: engines.Engine = bare) -> None:
            with torch.inference_mode():
                for _ in range(count // BATCH):
                    bare.features(ready)

        runs[f"ours, {label}"] = count, lambda p=predictor: list(p.stream(paths))  # type: ignore[misc]
        runs[f"bare, {label}"] = count // BATCH * BATCH, idle
    times: dict[str, list[float]] = {way: [] for way in runs}
    for number in range(rounds + 1):
        for way, (_, run) in runs.items():
            begun = time.perf_counter()
            run()
            if number:  # the first round warms up
                times[way].append(time.perf_counter() - begun)
    report(times, {way: images for way, (images, _) in runs.items()})
    one = statistics.median(cold([str(file), str(paths[0])]) for _ in range(3))
    whole = cold([str(file), *map(str, paths)])
    print(f"\nthe command, cold: one photo {one:.1f} s (median of 3), {count} photos {whole:.1f} s")


def report(times: dict[str, list[float]], images: dict[str, int]) -> None:
    rates = {way: images[way] / statistics.median(taken) for way, taken in times.items()}
    print("\n| method | images/s | spread | x plain batched | x plain one by one | share of bare |")
    print("|---|---|---|---|---|---|")
    for way, rate in rates.items():
        low, high = images[way] / max(times[way]), images[way] / min(times[way])
        bare = rates.get(way.replace("ours", "bare"))
        share = f"{rate / bare:.0%}" if way.startswith("ours") and bare else ""
        ratios = [f"{rate / rates[peer]:.2f}" for peer in list(rates)[:2]]
        print(f"| {way} | {rate:.1f} | {low:.1f} to {high:.1f} | {' | '.join(ratios)} | {share} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--every", action="store_true", help="measure each engine, not only auto")
    args = parser.parse_args()
    if args.photos < FEW:
        parser.error(f"--photos must be at least {FEW}: with fewer, auto keeps the eager engine")
    machine = environment(torch.device("cpu"))
    machine["GOMP_SPINCOUNT"] = os.environ["GOMP_SPINCOUNT"]
    machine["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "not set")
    print(json.dumps(machine))
    print(f"{args.photos} photos, {args.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder), args.photos, args.rounds, args.every)


if __name__ == "__main__":
    main()
