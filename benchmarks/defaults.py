"""Compare batch sizes and learning rates on subsets of a dataset, from random weights.

    python benchmarks/defaults.py DATA FOLDER --images 24000 --epochs 6 --image-size 64 \
        --runs 16:0.005 64:0.005 128:0.005 128:0.01

DATA has train/ and val/ (or test/) with one folder per class. A subset has the same number of
images of each class, and 2,000 validation images. A run is ``batch size:learning rate``; all runs
have one compute thread and the same number of epochs, and everything else is what `resnet train`
fills in.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

from resnetkit import train

VALIDATION = 2000


def list_part(data: Path, images: int, path: Path) -> Path:
    """Write a CSV with balanced subsets: ``images`` to train on and `VALIDATION` to validate on."""
    rng = random.Random(0)
    validation = data / "val" if (data / "val").is_dir() else data / "test"
    classes = sorted(folder.name for folder in (data / "train").iterdir())
    rows = ["path,label,split"]
    for folder, part, count in ((data / "train", "train", images), (validation, "val", VALIDATION)):
        for name in classes:
            found = sorted(item for item in (folder / name).rglob("*") if item.is_file())
            rng.shuffle(found)
            rows += [f"{item},{name},{part}" for item in found[: count // len(classes)]]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=24_000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--runs", nargs="+", default=["16:0.005", "128:0.005"])
    args = parser.parse_args()
    table = list_part(args.data.absolute(), args.images, args.folder / "part.csv")
    print("| batch size | learning rate | last epoch | training |\n|---|---|---|---|")
    for text in args.runs:
        batch, rate = text.split(":")
        run = train(
            table,
            out=args.folder / f"run-{batch}-{rate}",
            weights="none",
            epochs=args.epochs,
            image_size=args.image_size,
            batch_size=int(batch),
            lr=float(rate),
            threads=1,
        )
        last = run.history[-1]["val_accuracy"]
        print(f"| {batch} | {rate} | {last:.2%} | {run.train_seconds:.0f} s |", flush=True)


if __name__ == "__main__":
    main()
