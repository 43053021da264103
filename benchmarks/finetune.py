"""Is it worth beginning from weights of other pictures? `finetune` against `fast` in equal seconds.

    python benchmarks/finetune.py CIFAR10 SIGNS CLOTHING /tmp/finetune

CIFAR10 is a folder with ``train/<class>/``: a ResNet-18 of half the width is trained on it at 64 px
for 2,600 steps of 64 pictures (about four minutes on two cores). Then a tenth of the signs and of
the clothing, at 64 px, three seeds each: ``finetune`` from that file for 20 epochs, and ``fast``
from random weights for as many epochs as take the same time, with the same network and with its
default one. Another tenth chooses the epoch; the accuracy is that on pictures that no run saw.
"""

from __future__ import annotations

import os
import random
import statistics
import sys
from pathlib import Path

from resnetkit import evaluate, train

EPOCHS, SEEDS = 20, (0, 1, 2)
PLAIN = {"model": "resnet18", "model_options": {"width": 32}}


def link(folder: Path, part: str, category: str, images: list[Path]) -> None:
    (folder / part / category).mkdir(parents=True)
    for image in images:
        os.symlink(image.absolute(), folder / part / category / image.name)


def tenths(photos: Path, folder: Path, unseen: Path | None = None) -> Path:
    """A tenth to train on, one to choose by; the rest, or ``unseen``, is for the test."""
    rng = random.Random(7)
    for category in sorted(path.name for path in photos.iterdir() if path.is_dir()):
        images = sorted((photos / category).iterdir())
        rng.shuffle(images)
        tenth = max(2, len(images) // 10)
        link(folder, "train", category, images[:tenth])
        link(folder, "val", category, images[tenth : 2 * tenth])
        rest = images[2 * tenth :] if unseen is None else sorted((unseen / category).iterdir())
        link(folder, "test", category, rest)
    return folder


def pretrained(cifar10: Path, folder: Path) -> Path:
    """Fifty pictures a class to choose by; the others to train on."""
    for category in sorted(path.name for path in (cifar10 / "train").iterdir()):
        images = sorted((cifar10 / "train" / category).iterdir())
        link(folder / "data", "val", category, images[:50])
        link(folder / "data", "train", category, images[50:])
    settings = {**PLAIN, "image_size": 64, "batch_size": 64, "steps": 2600}
    run = train(folder / "data", "fast", out=folder / "run", **settings)
    print(f"CIFAR-10: {run.metrics['accuracy']:.2%} after {run.train_seconds:.0f} s", flush=True)
    return run.model


def one(data: Path, out: Path, recipe: str, seed: int, **settings: object) -> tuple[float, float]:
    """Accuracy on the unseen, and seconds of training."""
    run = train(data, recipe, out=out, image_size=64, seed=seed, **settings)
    return evaluate(run.model, data, "test").metrics["accuracy"], run.train_seconds


def compare(data: Path, weights: Path, folder: Path) -> None:
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in SEEDS:
        out = folder / f"{data.name}-{seed}"
        tuned = one(data, out / "tuned", "finetune", seed, weights=str(weights), epochs=EPOCHS)
        rows.setdefault("finetune", []).append(tuned)
        for name, network in (("fast, same network", PLAIN), ("fast, default network", {})):
            (out / name).mkdir(parents=True)
            short = one(data, out / name / "short", "fast", seed, epochs=EPOCHS, **network)
            epochs = max(1, round(EPOCHS * tuned[1] / short[1]))
            whole = one(data, out / name / "whole", "fast", seed, epochs=epochs, **network)
            rows.setdefault(name, []).append(whole)
    for name, found in rows.items():
        accuracies = [accuracy for accuracy, _ in found]
        seconds = statistics.median(seconds for _, seconds in found)
        shown = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
        print(
            f"| {data.name} | {name} | {shown} | {statistics.mean(accuracies):.1%} "
            f"| {seconds:.0f} s |",
            flush=True,
        )


def main() -> None:
    cifar10, signs, clothing, folder = map(Path, sys.argv[1:])
    weights = pretrained(cifar10, folder / "cifar10")
    few_signs = tenths(signs, folder / "signs")
    few_clothing = tenths(clothing / "train", folder / "clothing", clothing / "validation")
    print("| a tenth of | recipe | unseen, by seed | mean | training |\n|---|---|---|---|---|")
    for data in (few_signs, few_clothing):
        compare(data, weights, folder / "runs")


if __name__ == "__main__":
    main()
