"""Compare fine-tuning on few photos with three other methods in the same number of seconds.

    python benchmarks/finetune.py SIGNS CLOTHING FOLDER --seeds 0 1 2

A tenth of each dataset is for training, and a tenth selects the epoch. The accuracy is measured on
photos that no run saw. Each seed selects different tenths. The methods take turns:

- resnet train: without a flag, offline; its training time is the budget of the others
- random weights: the same with ``--weights none``, for as many epochs as fit into the budget
- plain, head: what tutorials call feature extraction: the body of the starter network is frozen,
  and a new head is trained (Adam, rate 1e-3, batches of 32, random crops, mirroring)
- plain, all: the same with all layers trained

The plain methods read decoded images from memory and use the same image size, threads and layout,
in fp32. They validate after each epoch and stop when the budget is spent.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import time
from pathlib import Path

os.environ["RESNETKIT_OFFLINE"] = "1"  # the starter weights, whatever the cache holds
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command sets it; see spinning.py

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import v2

from resnetkit import evaluate, train
from resnetkit.models import get_model

METHODS = ("resnet train", "random weights", "plain, head", "plain, all")


def list_tenths(photos: Path, out: Path, seed: int, unseen: Path | None = None) -> Path:
    """Write a CSV with a tenth to train on, a tenth to select by, and the rest or ``unseen``."""
    rng = random.Random(seed)
    rows = ["path,label,split"]
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        rng.shuffle(images)
        tenth = max(2, len(images) // 10)
        test = images[2 * tenth :] if unseen is None else sorted((unseen / folder.name).iterdir())
        parts = (("train", images[:tenth]), ("val", images[tenth : 2 * tenth]), ("test", test))
        rows += [f"{i.absolute()},{folder.name},{part}" for part, names in parts for i in names]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("\n".join(rows) + "\n")
    return out


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


def plain(table: Path, size: int, seed: int, budget: float, all_layers: bool) -> float:
    """Fine-tune as tutorials do; return the accuracy on the test split."""
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

    def accuracy(images: list[torch.Tensor], labels: torch.Tensor) -> float:
        model.eval()
        correct = 0
        with torch.inference_mode():
            for start in range(0, len(images), 64):
                batch = torch.stack([prepare(center(i)) for i in images[start : start + 64]])
                answers = model(batch.contiguous(memory_format=torch.channels_last)).argmax(1)
                correct += int((answers == labels[start : start + 64]).sum())
        return correct / len(labels)

    best = (-1.0, 0.0)
    started = time.perf_counter()
    while time.perf_counter() - started < budget:
        model.train()
        for indices in torch.randperm(len(train_images)).split(32):
            if len(indices) < 2:  # batch norm needs two
                continue
            batch = torch.stack([prepare(augment(train_images[i])) for i in indices])
            logits = model(batch.contiguous(memory_format=torch.channels_last))
            F.cross_entropy(logits, train_labels[indices]).backward()
            optimizer.step()
            optimizer.zero_grad()
        val = accuracy(*parts["val"])
        if val > best[0]:  # testing does not count toward the budget
            paused = time.perf_counter()
            best = (val, accuracy(*parts["test"]))
            started += time.perf_counter() - paused
    return best[1]


def compare(table: Path, seed: int, folder: Path, epochs: int | None) -> dict[str, float]:
    """Return the accuracy of each method on the test split, and the seconds as ``budget``."""
    tuned = train(table, out=folder / "tuned", seed=seed, epochs=epochs)
    budget = tuned.train_seconds
    assert tuned.recipe.image_size is not None
    short = train(table, out=folder / "short", seed=seed, weights="none", epochs=5)
    most = max(5, round(5 * budget / short.train_seconds))
    plain_run = train(table, out=folder / "random", seed=seed, weights="none", epochs=most)
    torch.set_num_threads(tuned.recipe.threads or torch.get_num_threads())
    size = tuned.recipe.image_size
    return {
        "resnet train": evaluate(tuned.model, table, "test").metrics["accuracy"],
        "random weights": evaluate(plain_run.model, table, "test").metrics["accuracy"],
        "plain, head": plain(table, size, seed, budget, all_layers=False),
        "plain, all": plain(table, size, seed, budget, all_layers=True),
        "budget": budget,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("signs", type=Path)
    parser.add_argument("clothing", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="of resnet train; by default its own")
    args = parser.parse_args()
    print("| a tenth of | method | unseen, by seed | mean | training |\n|---|---|---|---|---|")
    for name in ("signs", "clothing"):
        photos: Path = getattr(args, name)
        unseen = None
        if name == "clothing":
            photos, unseen = photos / "train", photos / "validation"
        found = []
        for seed in args.seeds:
            folder = args.folder / f"{name}-{seed}"
            table = list_tenths(photos, folder / "photos.csv", seed, unseen)
            found.append(compare(table, seed, folder, args.epochs))
        seconds = statistics.median(row["budget"] for row in found)
        for method in METHODS:
            accuracies = [row[method] for row in found]
            shown = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
            print(
                f"| {name} | {method} | {shown} | {np.mean(accuracies):.1%} | {seconds:.0f} s |",
                flush=True,
            )


if __name__ == "__main__":
    main()
