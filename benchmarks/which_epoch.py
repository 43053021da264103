"""Compare rules for selecting the epoch to keep if the validation split is small.

    python benchmarks/which_epoch.py record SIGNS CURVES.npz --seed 0
    python benchmarks/which_epoch.py compare CURVES.npz...

``record`` trains on a share of each class (``--share``), as ``resnet train`` does, and
stores for every epoch which of up to 1,000 other photos were classified correctly, and their loss.
``compare`` takes these photos as the population, and draws 1,000 validation splits of 50, 150 and
400 of them, with replacement (bootstrap). On each it selects an epoch by each rule, and compares
the accuracy that the rule would report with the accuracy on the whole population:

- highest accuracy, and at equal accuracy the lowest loss
- lowest loss
- one or two standard errors: the last epoch whose accuracy is at most that far below the highest
- last epoch

It prints the mean of the reported and of the real accuracy, and how often the real accuracy lies
within the 95% interval (Wilson) of the reported one.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from resnetkit import train
from resnetkit.evaluation.metrics import wilson_interval
from resnetkit.report.record import replaces_kept
from resnetkit.training import loop

SPLITS, POOL = 1000, 1000


def record(photos: Path, out: Path, seed: int, share: float, settings: dict[str, Any]) -> None:
    rng = random.Random(seed)
    rows = ["path,label,split"]
    others: list[str] = []
    for folder in sorted(path for path in photos.iterdir() if path.is_dir()):
        images = sorted(folder.iterdir())
        rng.shuffle(images)
        count = max(2, int(len(images) * share))
        rows += [f"{image.absolute()},{folder.name},train" for image in images[:count]]
        others += [f"{image.absolute()},{folder.name},val" for image in images[count:]]
    rows += rng.sample(others, min(POOL, len(others)))
    correct: list[np.ndarray] = []
    losses: list[np.ndarray] = []
    predict_logits = loop.predict_logits

    def recorded(model: torch.nn.Module, images: Any, *args: Any, **options: Any) -> torch.Tensor:
        logits = predict_logits(model, images, *args, **options)
        labels = images.labels()
        correct.append((logits.argmax(1) == labels).numpy())
        losses.append(F.cross_entropy(logits, labels, reduction="none").numpy())
        return logits

    loop.predict_logits = recorded  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder_name:
        table = Path(folder_name) / "photos.csv"
        table.write_text("\n".join(rows) + "\n")
        train(table, out=Path(folder_name) / "run", seed=seed, **settings)
    np.savez_compressed(out, correct=np.stack(correct), losses=np.stack(losses))


def within_errors(number: int) -> Callable[[np.ndarray, np.ndarray, int], int]:
    def rule(accuracies: np.ndarray, losses: np.ndarray, count: int) -> int:
        kept = 0
        rows = [{"val_accuracy": accuracy} for accuracy in accuracies]
        for epoch in range(len(rows)):
            if replaces_kept(rows[: epoch + 1], count, number):
                kept = epoch
        return kept

    return rule


RULES: dict[str, Callable[[np.ndarray, np.ndarray, int], int]] = {
    "highest accuracy": lambda accuracies, losses, count: int(np.lexsort((losses, -accuracies))[0]),
    "lowest loss": lambda accuracies, losses, count: int(losses.argmin()),
    "one standard error": within_errors(1),
    "two standard errors": within_errors(2),
    "last epoch": lambda accuracies, losses, count: len(accuracies) - 1,
}


def compare(files: list[Path]) -> None:
    print("| curves | validation | rule | reported | real | within the interval |")
    print("|---|---|---|---|---|---|")
    for file in files:
        curves = np.load(file)
        correct, losses = curves["correct"], curves["losses"]  # (epochs, photos)
        for count in (50, 150, 400):
            rng = np.random.default_rng(0)
            found: dict[str, list[tuple[float, float, bool]]] = {rule: [] for rule in RULES}
            for _ in range(SPLITS):
                val = rng.integers(correct.shape[1], size=count)
                accuracies = correct[:, val].mean(1)
                for name, rule in RULES.items():
                    epoch = rule(accuracies, losses[:, val].mean(1), count)
                    real = float(correct[epoch].mean())
                    low, high = wilson_interval(int(correct[epoch][val].sum()), count)
                    found[name].append((float(accuracies[epoch]), real, low <= real <= high))
            for name, rows in found.items():
                reported, real, within = np.mean(rows, axis=0)
                print(
                    f"| {file.stem} | {count} | {name} | {reported:.1%} | {real:.1%} "
                    f"| {within:.1%} |"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record")
    recording.add_argument("photos", type=Path)
    recording.add_argument("out", type=Path)
    recording.add_argument("--seed", type=int, default=0)
    recording.add_argument("--share", type=float, default=0.1, help="share of each class")
    recording.add_argument("--weights", default="auto")
    recording.add_argument("--epochs", type=int)
    comparing = commands.add_parser("compare")
    comparing.add_argument("curves", type=Path, nargs="+")
    args = parser.parse_args()
    if args.command == "record":
        settings = {"weights": args.weights, "epochs": args.epochs}
        settings = {key: value for key, value in settings.items() if value}
        record(args.photos, args.out, args.seed, args.share, settings)
    else:
        compare(args.curves)


if __name__ == "__main__":
    main()
