"""Measure resnetkit and its peers on a GPU, in one run.

    python benchmarks/gpu.py --cifar cifar10.tar.gz --out benchmarks/gpu_CARD_DATE.md
    python benchmarks/gpu.py --device cpu --smoke

- The precision is the one that ``resnet train`` selects on the GPU: bf16 if the GPU supports it,
  else fp16 with a scaled loss (T4, V100), else fp32. ``--precision`` overrides it.
- The limits of the GPU: multiply-adds per second of a large matrix product in that precision, and
  bytes per second of a copy within its memory (each byte counts twice: read and written).
- ResNet-50 training. *resnetkit* is what ``resnet train`` runs: `training_step` with the recipe's
  optimizer and loss scaling, `to_device`, and the losses that `Outcomes` reads one step late.
  *torchvision* and *timm* (``pip install timm``), and *resnetkit's network* for comparison, run in
  a plain loop: autocast, channels_last, fused SGD, GradScaler in fp16, and no loss is read. All run
  with and without ``torch.compile``. *Synthetic* batches are on the GPU as uint8. *Cached* ones
  come from resnetkit's loader for all: generated photos of 500x375, decoded once to 8/7 of the
  size, cropped at random and mirrored by threads, and copied in advance by `to_device`; the time is
  that of an epoch, including the wait for its first batch. All normalize on the GPU. *Loader alone*
  is the same without a network.
- The optimizer's step alone, the only part of a step whose bytes are known: it reads weight,
  gradient and momentum, and writes weight and momentum, in fp32.
- CIFAR-10 (``--cifar``, images under ``train/<class>/`` and ``test/<class>/`` in a folder or a
  .tar.gz): seconds from the start of the process to the first epoch that classifies ``--target`` of
  the test images correctly; ``resnet train`` against `plain_cifar.py`, the same network and recipe.

All methods take turns. The results are medians of the rounds, after a warm-up round (which
compiles). A training step is counted as three times the multiply-adds of its forward pass.
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
from typing import Protocol

import gpu_cifar
import numpy as np
import torch
import torchvision
from data_path import write_photos
from torch import nn
from torch.nn import functional as F

from resnetkit import models, runtime
from resnetkit.data import cache, dataset, folder
from resnetkit.data.device_loader import to_device
from resnetkit.data.folder import Split
from resnetkit.data.loader import Batch, Loader
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.data.transforms import Augmentation, normalize
from resnetkit.processes import default_workers
from resnetkit.runtime import Runtime
from resnetkit.training import distributed, recipe
from resnetkit.training.loop import training_step
from resnetkit.training.optimizer import Optimizer
from resnetkit.training.outcomes import Outcomes
from resnetkit.training.param_groups import make_optimizer
from resnetkit.training.state import State

PHOTOS = 512  # different photos; an epoch repeats them as needed
CLASSES = 1000
RATE = 0.01
TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SMOKE = {"batch": 2, "size": 32, "steps": 2, "rounds": 1, "compile": False}
NO_GPU = (
    "this machine has no CUDA device; to try the script without one, at a meaningless tiny size:\n"
    "  python benchmarks/gpu.py --device cpu --smoke"
)


class Training(Protocol):
    """A network and its optimizer, trained on batches."""

    model: nn.Module
    optimizer: Optimizer | torch.optim.Optimizer

    def run(self, batches: Iterable[Batch]) -> None: ...


class Own:
    """What ``resnet train`` runs, without evaluation and checkpoints."""

    def __init__(
        self, args: argparse.Namespace, where: Runtime, compiled: bool, split: Split
    ) -> None:
        settings = {"image_size": args.size, "resize_size": args.size, "batch_size": args.batch}
        settings |= {"lr": RATE, "precision": where.precision, "compile": compiled}
        self.recipe = recipe.load_recipe("torchvision-v1").with_settings(settings)
        model = models.resnet50(num_classes=CLASSES).train()
        self.where = where = where.for_network(model)
        self.model = model.to(where.device, memory_format=where.memory_format)
        self.optimizer = make_optimizer(self.model, self.recipe)
        identity = {"data": {"classes": [str(number) for number in range(CLASSES)]}}
        self.state = State(self.model, self.optimizer, identity, scaler=where.scaler())
        self.state.network = distributed.wrap_model(self.model, self.recipe, where)
        self.split = split

    def run(self, batches: Iterable[Batch]) -> None:
        outcomes = Outcomes(self.state, self.split, self.where)
        for batch in batches:
            outcome = training_step(self.state, batch, self.recipe, self.where, RATE)
            outcomes.add(outcome, batch.indices)
            self.state.end_step()
            outcomes.exchange(is_due=False, signal=0)
        outcomes.drain()


class Plain:
    """The loop that PyTorch's documentation shows."""

    def __init__(self, model: nn.Module, where: Runtime, compiled: bool) -> None:
        self.where, self.scaler = where, where.scaler()
        self.model = model.to(where.device, memory_format=torch.channels_last).train()
        self.forward = torch.compile(self.model, dynamic=False) if compiled else self.model
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=RATE, momentum=0.9, weight_decay=1e-4, fused=True
        )

    def run(self, batches: Iterable[Batch]) -> None:
        for batch in batches:
            images = normalize(batch.images, PRESET)
            images = images.contiguous(memory_format=torch.channels_last)
            with self.where.autocast():
                loss = F.cross_entropy(self.forward(images), batch.labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()


PLAIN = {"resnetkit's network": models.resnet50, "torchvision": torchvision.models.resnet50}
if importlib.util.find_spec("timm"):
    import timm

    PLAIN["timm"] = partial(timm.create_model, "resnet50")
PRESET = Preprocessing(224, 224)  # only its mean and standard deviation are used


def trainings(args: argparse.Namespace, where: Runtime, split: Split) -> dict[str, Training]:
    """Return all trainings, by "name | how"."""
    found: dict[str, Training] = {}
    for how in ("eager", "compiled") if args.compile else ("eager",):
        found[f"resnetkit | {how}"] = Own(args, where, how == "compiled", split)
        for name, build in PLAIN.items():
            found[f"{name} | {how}"] = Plain(build(), where, how == "compiled")
    return found


def synthetic(args: argparse.Namespace, device: torch.device) -> Callable[[], Iterable[Batch]]:
    """Return a function that yields the same batch of random numbers, on the device."""
    shape = (args.batch, args.size, args.size, 3)
    images = torch.randint(256, shape, dtype=torch.uint8, device=device).permute(0, 3, 1, 2)
    labels = torch.randint(CLASSES, (args.batch,), device=device)
    batch = Batch(images, labels, np.zeros(args.batch, dtype=np.int64))
    return lambda: itertools.repeat(batch, args.steps)


def photos(args: argparse.Namespace, place: Path) -> Loader:
    """Return a loader of ``steps`` batches of photos that are decoded once."""
    images = args.steps * args.batch
    write_photos(place / "photos", 500, 375, min(PHOTOS, images))
    os.environ["RESNETKIT_CACHE"] = str(place / "cache")  # used if memory is short
    preset = Preprocessing(round(args.size * 8 / 7), args.size)
    split = folder.read_dataset(place / "photos").splits["train"]
    kept = cache.scan(split, preset, args.workers, lambda text: None).images
    rows = np.resize(np.arange(len(split)), images)
    shown = dataset.Images(split.select(rows), preset, kept.kept, rows)
    return Loader(shown, args.batch, args.workers)


def cached(
    args: argparse.Namespace, device: torch.device, loader: Loader
) -> Callable[[], Iterable[Batch]]:
    """Return a function that yields an epoch of the loader's batches, copied to the device."""
    epochs, augmentation = itertools.count(), Augmentation(crop_scale=(0.08, 1.0))
    return lambda: to_device(loader.training(augmentation, args.size, 0, next(epochs)), device)


def in_turns(
    runs: dict[str, Callable[[], object]], rounds: int, where: Runtime
) -> dict[str, list[float]]:
    """Return the seconds of each method in each round, after a warm-up round."""
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


def limits(args: argparse.Namespace, where: Runtime) -> tuple[float, float]:
    """Return the best multiply-adds per second of a matrix product, and the best bytes per second
    of a copy."""
    large = where.device.type == "cuda"
    side, count, times = (8192, 2**30, 50) if large else (512, 2**24, 2)
    kind = TYPES[where.precision]
    a, b = (torch.randn(side, side, device=where.device).to(kind) for _ in range(2))
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


def throughput(args: argparse.Namespace, where: Runtime, product: float, copy: float) -> list[str]:
    """Return the table of ResNet-50, and that of the optimizer's step."""
    work = 3 * models.summarize(models.resnet50(), args.size).macs
    with tempfile.TemporaryDirectory() as place:
        loader = photos(args, Path(place))
        ways = trainings(args, where, loader.images.split)
        ready, moving = synthetic(args, where.device), cached(args, where.device, loader)
        runs: dict[str, Callable[[], object]] = {
            f"{source} | {way}": lambda t=training, b=batches: t.run(b())
            for source, batches in (("synthetic", ready), ("cached", moving))
            for way, training in ways.items()
        }
        runs["cached | loader alone | "] = lambda: [None for _ in moving()]
        with where.tuned(True):
            taken = in_turns(runs, args.rounds, where)
    lines = [
        f"## ResNet-50 training: {args.size} px, {where.precision}, batch {args.batch}",
        f"\n{args.steps} steps per round, {args.rounds} rounds, {args.workers} loader threads\n",
        "| batches | network | how | images/s | spread | of the matrix product's limit |",
        "|---|---|---|---|---|---|",
    ]
    for way, times in taken.items():
        rate = args.steps * args.batch / statistics.median(times)
        share = "" if "loader alone" in way else f"{rate * work / product:.1%}"
        lines.append(f"| {way} | {spread(args.steps * args.batch, times)} | {share} |")
    if "timm" not in PLAIN:
        lines.append("\ntimm was not measured: it is not installed")
    return lines + optimizer_table(args, where, ways, copy)


def optimizer_table(
    args: argparse.Namespace, where: Runtime, ways: dict[str, Training], copy: float
) -> list[str]:
    eager = {way.split(" | ")[0]: training for way, training in ways.items() if "eager" in way}
    eager.pop("resnetkit's network")  # the same optimizer as torchvision's
    for training in eager.values():
        for parameter in training.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    runs = {
        name: lambda t=training: [t.optimizer.step() for _ in range(args.steps)]
        for name, training in eager.items()
    }
    taken = in_turns(runs, args.rounds, where)
    lines = [
        "\n## The optimizer's step alone\n",
        "| network | parameters | steps/s | spread | of the copy's limit |",
        "|---|---|---|---|---|",
    ]
    for name, times in taken.items():
        parameters = sum(p.numel() for p in eager[name].model.parameters())
        share = 5 * 4 * parameters * args.steps / statistics.median(times) / copy
        lines.append(f"| {name} | {parameters:,} | {spread(args.steps, times)} | {share:.1%} |")
    return lines


def heading(where: Runtime, product: float, copy: float) -> list[str]:
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
        f"- limits: {product / 1e12:,.3f} T multiply-adds/s ({where.precision} matrix product), "
        f"{copy / 1e9:,.1f} GB/s (copy within the device, bytes read and written)\n",
    ]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--precision", choices=("auto", *TYPES), default="auto")
    parser.add_argument("--smoke", action="store_true", help=f"tiny: {SMOKE}")
    parser.add_argument("--batch", type=int, default=256, help="reduce it if memory is short")
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=50, help="steps per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=default_workers())
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--cifar", type=Path, metavar="FOLDER|TAR.GZ", help="measure CIFAR-10 too")
    parser.add_argument("--target", type=float, default=0.9, help="accuracy on its test images")
    parser.add_argument("--epochs", type=int, default=15, help="epochs per CIFAR-10 run")
    parser.add_argument("--seeds", type=int, default=3, help="CIFAR-10 runs per method")
    parser.add_argument("--out", type=Path, help="Markdown file to write the tables to")
    smoke, _ = parser.parse_known_args()
    if smoke.smoke:
        parser.set_defaults(**SMOKE)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit(NO_GPU)
    if args.cifar and not args.cifar.exists():
        sys.exit(f"--cifar: there is no {args.cifar}; expected a folder or a .tar.gz")
    return args


def main() -> None:
    args = arguments()
    where = runtime.pick(args.device, args.precision)
    args.precision = where.precision
    lines: list[str] = []

    def publish(more: list[str]) -> None:
        print("\n".join(more), flush=True)
        lines.extend(more)
        if args.out:  # after each section, so that a later failure loses none
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
