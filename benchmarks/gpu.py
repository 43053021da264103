"""What a GPU does with resnetkit and with its peers, in one run.

    python benchmarks/gpu.py --cifar cifar10.tar.gz --out benchmarks/gpu_CARD_DATE.md
    python benchmarks/gpu.py --device cpu --batch 2 --size 32 --steps 2 --rounds 1 --no-compile

- The limits of the card: multiply-adds a second of a large bf16 matrix product, and bytes a second
  of a copy within its memory (each byte is read once and written once: two).
- ResNet-50 training: ``resnetkit.models``, ``torchvision.models`` and ``timm`` (``pip install
  timm``) in the same loop: bf16 autocast, channels_last, fused SGD, no loss fetched between steps;
  with and without ``torch.compile``. *Synthetic* batches lie ready on the card. *Cached* ones come
  from resnetkit's loader for all three: made photos of 500x375, decoded once to 8/7 of the size,
  cut at random and mirrored by threads, copied and normalised on the card; the time of an epoch,
  with the wait for its first batch. *Loader alone* is the same without a network.
- The optimiser's step alone, the one part of a step whose bytes are known: it reads weight,
  gradient and momentum, and writes weight and momentum, in fp32.
- CIFAR-10 (``--cifar``, pictures under ``train/<class>/`` and ``test/<class>/`` in a folder or a
  .tar.gz): seconds from the start of the process to the first epoch that names ``--target`` of the
  test pictures rightly; ``resnet train`` against `plain_cifar.py`, the same network and recipe.

All ways take turns; medians of the rounds, after one that warms up (and compiles). A training step
is counted as three times the multiply-adds of its forward pass.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import gpu_cifar
import numpy as np
import torch
import torchvision
from data_path import write_photos
from torch import Tensor, nn
from torch.nn import functional as F

from resnetkit import models, runtime
from resnetkit.data import cache, folder
from resnetkit.data.loader import Loader
from resnetkit.data.transforms import Augmentation, Preprocessing, normalize

Batches = Iterable[tuple[Tensor, Tensor]]
PHOTOS = 512  # different ones; an epoch shows each as often as it needs
NO_GPU = (
    "this machine has no CUDA device; to try the script without one, tiny and meaningless:\n"
    "  python benchmarks/gpu.py --device cpu --batch 2 --size 32 --steps 2 --rounds 1 --no-compile"
)


def networks() -> dict[str, Callable[[], nn.Module]]:
    found: dict[str, Callable[[], nn.Module]] = {
        "resnetkit": models.resnet50,
        "torchvision": torchvision.models.resnet50,
    }
    if importlib.util.find_spec("timm"):
        import timm

        found["timm"] = partial(timm.create_model, "resnet50")
    return found


class Training:
    """A network and its optimiser: the loop that is the same for all."""

    def __init__(self, model: nn.Module, compiled: bool, where: runtime.Runtime) -> None:
        self.where = where
        self.model = model.to(where.device, memory_format=torch.channels_last).train()
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4, fused=True
        )

    def backward(self, images: Tensor, labels: Tensor) -> None:
        with self.where.autocast():
            loss = F.cross_entropy(self.forward(images), labels)
        loss.backward()

    def run(self, batches: Batches) -> None:
        for images, labels in batches:
            self.backward(images, labels)
            self.optimizer.step()
            self.optimizer.zero_grad()


def synthetic(args: argparse.Namespace, device: torch.device) -> Callable[[], Batches]:
    """The same batch of random numbers, ready on the device."""
    images = torch.randn(args.batch, 3, args.size, args.size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.randint(1000, (args.batch,), device=device)
    return lambda: itertools.repeat((images, labels), args.steps)


def cached(args: argparse.Namespace, device: torch.device, place: Path) -> Callable[[], Batches]:
    """Epochs of ``steps`` batches of photos that are decoded once."""
    pictures = args.steps * args.batch
    write_photos(place / "photos", 500, 375, min(PHOTOS, pictures))
    os.environ["RESNETKIT_CACHE"] = str(place / "cache")  # used where memory is short
    preset = Preprocessing(round(args.size * 8 / 7), args.size)
    part = folder.read(place / "photos").parts["train"]
    kept = cache.scan(part, preset, args.workers, lambda text: None).pictures
    rows = np.resize(np.arange(len(part)), pictures)
    shown = cache.Pictures(part.select(rows), preset, kept.kept, rows)
    loader = Loader(shown, args.batch, args.workers)
    epochs = itertools.count()

    def epoch() -> Batches:
        augmentation = Augmentation(crop_scale=(0.08, 1.0))
        for batch in loader.training(augmentation, args.size, 0, next(epochs)):
            yield normalize(batch.images.to(device), preset), batch.labels.to(device)

    return epoch


def in_turns(
    runs: dict[str, Callable[[], object]], rounds: int, where: runtime.Runtime
) -> dict[str, list[float]]:
    """Seconds of each way in each round, behind one round that warms up."""
    taken: dict[str, list[float]] = {way: [] for way in runs}
    for number in range(rounds + 1):
        for way, run in runs.items():
            where.synchronize()
            begun = time.perf_counter()
            run()
            where.synchronize()
            if number:
                taken[way].append(time.perf_counter() - begun)
        print(f"round {number} of {rounds} is done", file=sys.stderr, flush=True)
    return taken


def limits(args: argparse.Namespace, where: runtime.Runtime) -> tuple[float, float]:
    """Multiply-adds a second of a bf16 matrix product, bytes a second of a copy: best rounds."""
    large = where.device.type == "cuda"
    side, count, times = (8192, 2**30, 50) if large else (512, 2**24, 2)
    a, b = (torch.randn(side, side, device=where.device).bfloat16() for _ in range(2))
    out = torch.empty_like(a)
    source = torch.zeros(count, dtype=torch.uint8, device=where.device)
    target = torch.empty_like(source)
    runs = {
        "product": lambda: [torch.mm(a, b, out=out) for _ in range(times)],
        "copy": lambda: [target.copy_(source) for _ in range(times)],
    }
    with torch.inference_mode():
        taken = in_turns(runs, max(3, args.rounds), where)
    return times * side**3 / min(taken["product"]), 2 * times * count / min(taken["copy"])


def spread(amount: float, taken: list[float]) -> str:
    low, middle, high = (amount / f(taken) for f in (max, statistics.median, min))
    return f"{middle:,.1f} | {low:,.1f} to {high:,.1f}"


def throughput(
    args: argparse.Namespace, where: runtime.Runtime, product: float, copy: float
) -> list[str]:
    """The table of ResNet-50, and that of the optimiser's step."""
    built = {name: build() for name, build in networks().items()}
    macs = {name: models.summarize(model, args.size).macs for name, model in built.items()}
    trainings = {(name, ""): Training(model, False, where) for name, model in built.items()}
    if args.compile:
        for name, build in networks().items():
            trainings[name, "compiled"] = Training(build(), True, where)
    with tempfile.TemporaryDirectory() as place:
        ready = synthetic(args, where.device)
        photos = cached(args, where.device, Path(place))
        sources = {"synthetic": ready, "cached": photos}
        runs: dict[str, Callable[[], object]] = {
            f"{source} | {name} | {how or 'eager'}": lambda t=training, b=batches: t.run(b())
            for source, batches in sources.items()
            for (name, how), training in trainings.items()
        }
        runs["cached | loader alone | "] = lambda: [None for _ in photos()]
        taken = in_turns(runs, args.rounds, where)
    lines = [
        f"## ResNet-50 training: {args.size} px, bf16, channels_last, batch {args.batch}",
        f"\n{args.steps} steps a round, {args.rounds} rounds, {args.workers} loader threads\n",
        "| batches | network | how | images/s | spread | of the matrix product's limit |",
        "|---|---|---|---|---|---|",
    ]
    for way, times in taken.items():
        work = 3 * macs.get(way.split(" | ")[1], 0)
        rate = args.steps * args.batch / statistics.median(times)
        share = f"{rate * work / product:.1%}" if work else ""
        lines.append(f"| {way} | {spread(args.steps * args.batch, times)} | {share} |")
    if "timm" not in built:
        lines.append("\ntimm was not measured: it is not installed")
    eager = {name: training for (name, how), training in trainings.items() if not how}
    return lines + optimizer_table(args, where, eager, ready, copy)


def optimizer_table(
    args: argparse.Namespace,
    where: runtime.Runtime,
    trainings: dict[str, Training],
    ready: Callable[[], Batches],
    copy: float,
) -> list[str]:
    for training in trainings.values():  # which leaves gradients to step along
        training.backward(*next(iter(ready())))
    runs = {
        name: lambda t=training: [t.optimizer.step() for _ in range(args.steps)]
        for name, training in trainings.items()
    }
    taken = in_turns(runs, args.rounds, where)
    lines = [
        "\n## The optimiser's step alone\n",
        "| network | parameters | steps/s | spread | of the copy's limit |",
        "|---|---|---|---|---|",
    ]
    for name, times in taken.items():
        parameters = sum(p.numel() for p in trainings[name].model.parameters())
        share = 5 * 4 * parameters * args.steps / statistics.median(times) / copy
        lines.append(f"| {name} | {parameters:,} | {spread(args.steps, times)} | {share:.1%} |")
    return lines


def heading(where: runtime.Runtime, product: float, copy: float) -> list[str]:
    machine = runtime.environment(where.device)
    versions = machine["versions"] | {"python": machine["python"], "CUDA": torch.version.cuda}
    if importlib.util.find_spec("timm"):
        versions["timm"] = importlib.metadata.version("timm")
    device = (
        machine["gpu"] if where.device.type == "cuda" else f"{machine['processor']}, without a GPU"
    )
    return [
        f"# On {device}\n",
        f"    python {shlex.join(sys.argv)}\n",
        f"- {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {machine['cores']} cores "
        f"({machine['processor']}), {machine['platform']}",
        f"- {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"- limits: {product / 1e12:,.3f} T multiply-adds/s (bf16 matrix product), "
        f"{copy / 1e9:,.1f} GB/s (copy within the device, bytes read and written)\n",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch", type=int, default=256, help="smaller where memory is short")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--steps", type=int, default=50, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=runtime.default_workers())
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cifar", type=Path, metavar="FOLDER|TAR.GZ", help="measure CIFAR-10 too")
    parser.add_argument("--target", type=float, default=0.9, help="accuracy on its test pictures")
    parser.add_argument("--epochs", type=int, default=15, help="of a CIFAR-10 run")
    parser.add_argument("--seeds", type=int, default=3, help="CIFAR-10 runs of each way")
    parser.add_argument("--out", type=Path, help="Markdown file to write the tables to")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    if args.cifar and not args.cifar.exists():
        sys.exit(f"--cifar: there is no {args.cifar}; expected a folder or a .tar.gz")
    return args


def main() -> None:
    args = arguments()
    where = runtime.Runtime(torch.device(args.device), "bf16")
    lines: list[str] = []

    def publish(more: list[str]) -> None:
        print("\n".join(more), flush=True)
        lines.extend(more)
        if args.out:  # after each part, so that a later failure costs none
            args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")

    product, copy = limits(args, where)
    publish(heading(where, product, copy))
    publish(throughput(args, where, product, copy))
    if where.device.type == "cuda":
        torch.cuda.empty_cache()  # the runs that follow are other processes
    publish(
        gpu_cifar.table(args, product) if args.cifar else ["\nCIFAR-10: not measured (--cifar)"]
    )


if __name__ == "__main__":
    main()
