"""Compare fine-tuning on few photos with three other methods in the same number of seconds.

    python benchmarks/finetune.py SIGNS CLOTHING FOLDER --seeds 0 1 2
    python benchmarks/finetune.py PHOTOS FOLDER --train 0.8 --val 0.2

A tenth of each dataset is for training, and a tenth selects the epoch; ``--train`` and ``--val``
set other shares of each class. The accuracy is measured on photos that no run saw: the others, or
the folder ``validation`` of a dataset that has one next to its folder ``train``. Each seed selects
a different split. The methods take turns:

- resnet train: without a flag, offline; its training time is the budget of the others
- random weights: the same with ``--weights none``, for as many epochs as fit into the budget
- plain, head: what tutorials call feature extraction: the body of the starter network is frozen,
  and a new head is trained (Adam, rate 1e-3, batches of 32, random crops, mirroring)
- plain, all: the same with all layers trained

The plain methods read decoded images from memory and use the same image size, threads and layout,
in fp32. They validate after each epoch, stop when the budget is spent, and keep the best epoch.
With ``--processor-time``, the budget is the processor time of the whole `resnet train`, which
depends less on what else the machine does; it counts the threads that read images.
"balanced" is the mean recall of the classes, which matters if a dataset is unbalanced.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

os.environ["RESNETKIT_OFFLINE"] = "1"  # the starter weights, whatever the cache holds
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command sets it; see spinning.py

import numpy as np
import torch
import yaml
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from resnetkit import evaluate, train
from resnetkit.models import get_model
from resnetkit.training.run import Run

METHODS = ("resnet train", "random weights", "plain, head", "plain, all")


def list_photos(photos: Path, out: Path, seed: int, shares: tuple[float, float]) -> Path:
    """Write a CSV with the photos for training, for selecting the epoch, and for testing.

    Args:
        photos: a folder of classes, or one with ``train`` and ``validation``.
        out: the CSV.
        seed: decides which photos are in which split.
        shares: of each class (in ``train``), for training and selecting; at least 2 photos each.
    """
    rng = random.Random(seed)
    has_splits = (photos / "train").is_dir() and (photos / "validation").is_dir()
    rows = ["path,label,split"]
    classes = photos / "train" if has_splits else photos
    for folder in sorted(path for path in classes.iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        rng.shuffle(images)
        val_count = max(2, int(len(images) * shares[1]))
        train_count = min(max(2, int(len(images) * shares[0])), len(images) - val_count)
        val_end = train_count + val_count
        test = images[val_end:]
        if has_splits:
            test = sorted((photos / "validation" / folder.name).iterdir())
        parts = (("train", images[:train_count]), ("val", images[train_count:val_end]))
        parts += (("test", test),)
        rows += [f"{i.absolute()},{folder.name},{part}" for part, names in parts for i in names]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(rows) + "\n")
    return out


@lru_cache(maxsize=3)
def read(table: Path, split: str, size: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return images whose shorter side is ``size``, ``(3, H, W)`` uint8, and their labels."""
    rows = [line.rsplit(",", 2) for line in table.read_text().splitlines()[1:]]
    classes = sorted({label for _, label, _ in rows})
    images = []
    for path, _, part in rows:
        if part == split:
            image = v2.functional.pil_to_tensor(Image.open(path).convert("RGB"))
            images.append(v2.functional.resize(image, [size], antialias=True))
    labels = [classes.index(label) for _, label, part in rows if part == split]
    return images, torch.tensor(labels)


def plain(
    table: Path, size: int, seed: int, budget: float, clock: Callable[[], float], all_layers: bool
) -> tuple[float, float]:
    """Fine-tune as tutorials do; return accuracy and mean recall on the test split."""
    torch.manual_seed(seed)
    train_images, train_labels = read(table, "train", size)
    parts = {split: read(table, split, size) for split in ("val", "test")}
    model = get_model("resnet18_starter", weights="DEFAULT")
    model.requires_grad_(all_layers)
    model.fc = torch.nn.Linear(model.fc.in_features, int(train_labels.max()) + 1)
    model = model.to(memory_format=torch.channels_last)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-3)
    augment = v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip()])
    prepare = v2.Compose(
        [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    center = v2.CenterCrop(size)

    def scores(images: list[torch.Tensor], labels: torch.Tensor) -> tuple[float, float]:
        model.eval()
        correct = torch.zeros(len(labels), dtype=torch.bool)
        with torch.inference_mode():
            for start in range(0, len(images), 64):
                batch = torch.stack([prepare(center(i)) for i in images[start : start + 64]])
                answers = model(batch.contiguous(memory_format=torch.channels_last)).argmax(1)
                correct[start : start + 64] = answers == labels[start : start + 64]
        recalls = [correct[labels == label].float().mean().item() for label in labels.unique()]
        return correct.float().mean().item(), statistics.mean(recalls)

    best = -1.0
    kept: dict[str, torch.Tensor] = {}
    started = clock()
    epochs = 0
    while clock() - started < budget:
        model.train()
        for indices in torch.randperm(len(train_images)).split(32):
            if len(indices) < 2:  # batch norm needs two
                continue
            batch = torch.stack([prepare(augment(train_images[i])) for i in indices])
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, train_labels[indices]).backward()
            optimizer.step()
            optimizer.zero_grad()
        val = scores(*parts["val"])[0]
        if val > best:
            best = val
            kept = copy.deepcopy(model.state_dict())
        epochs += 1
    print(f"{epochs} epochs, best validation accuracy {best:.1%}", file=sys.stderr)
    model.load_state_dict(kept)
    return scores(*parts["test"])


def compare(
    table: Path, seed: int, folder: Path, args: argparse.Namespace, settings: dict[str, Any]
) -> dict[str, tuple[float, float]]:
    """Return accuracy and mean recall of each method on the test split.

    ``seconds`` are those of `resnet train`: of its training, and of processor time in total.
    """
    started = time.process_time()
    tuned = train(table, out=folder / "tuned", seed=seed, **settings)
    found = {"seconds": (tuned.train_seconds, time.process_time() - started)}
    budget = found["seconds"][args.processor_time]
    clock = time.process_time if args.processor_time else time.perf_counter
    found["resnet train"] = test(tuned, table)
    if "random weights" in args.methods:
        started = clock()
        train(table, out=folder / "short", seed=seed, weights="none", epochs=5)
        most = max(5, round(5 * budget / (clock() - started)))
        longest = train(table, out=folder / "random", seed=seed, weights="none", epochs=most)
        found["random weights"] = test(longest, table)
    assert tuned.recipe.image_size is not None
    torch.set_num_threads(tuned.recipe.threads or torch.get_num_threads())
    for method, all_layers in (("plain, head", False), ("plain, all", True)):
        if method in args.methods:
            size = tuned.recipe.image_size
            found[method] = plain(table, size, seed, budget, clock, all_layers)
    return found


def test(run: Run, table: Path) -> tuple[float, float]:
    """Return accuracy and mean recall of a run on the test split."""
    metrics = evaluate(run.model, table, "test").metrics
    return metrics["accuracy"], metrics["balanced_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("photos", type=Path, nargs="+")
    parser.add_argument("folder", type=Path, help="where the runs are written")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--train", type=float, default=0.1, help="share for training")
    parser.add_argument("--val", type=float, default=0.1, help="share to select the epoch")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--processor-time", action="store_true", help="budget in CPU time")
    parser.add_argument("--set", nargs="+", default=[], help="recipe fields of resnet train")
    args = parser.parse_args()
    settings = {
        key: yaml.safe_load(value) for key, _, value in (s.partition("=") for s in args.set)
    }
    print("| photos | method | unseen, by seed | mean | balanced | training | processor |")
    print("|---|---|---|---|---|---|---|")
    for photos in args.photos:
        found = []
        for seed in args.seeds:
            folder = args.folder / f"{photos.name}-{seed}"
            table = list_photos(photos, folder / "photos.csv", seed, (args.train, args.val))
            found.append(compare(table, seed, folder, args, settings))
        seconds = np.median([row["seconds"] for row in found], axis=0)
        for method in (name for name in METHODS if name in found[0]):
            shown = ", ".join(f"{row[method][0]:.1%}" for row in found)
            mean, balanced = np.mean([row[method] for row in found], axis=0)
            print(
                f"| {photos.name} | {method} | {shown} | {mean:.1%} | {balanced:.1%} "
                f"| {seconds[0]:.0f} s | {seconds[1]:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
