"""Print the digests of six short runs, to show that a code change does not change any result.

Run it before and after, on one machine, and compare the lines:

    python benchmarks/same_bytes.py > before.txt
    python benchmarks/same_bytes.py | diff before.txt -

The runs: a flat folder, a folder of splits, a CSV, a run that is stopped mid-epoch and resumed,
one with accumulation, EMA and mixing, and two processes under torchrun. The images are generated.
"""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

RESNET = [sys.executable, "-m", "resnetkit"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
SMALL = [
    *("--model", "cifar_resnet20", "--image-size", "32", "--epochs", "3", "--batch-size", "8"),
    *("--set", "threads=1", "--set", "precision=fp32"),
]
MIXED = ["accumulate=2", "ema=0.9", "mixup=0.2", "cutmix=1.0", "trivial_augment=true"]


def make_images(folder: Path, per_class: int, first_seed: int) -> None:
    for label, name in enumerate(["blue", "green", "red"]):
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            rng = np.random.default_rng([first_seed, label, number])
            pixels = rng.integers(60, 180, (40, 48, 3), dtype=np.uint8)
            pixels[8:30, 8:36, 2 - label] = 230
            Image.fromarray(pixels).save(folder / name / f"{number:02d}.png")


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)


def train(data: Path, out: Path, *options: str) -> None:
    run(*RESNET, "train", str(data), "--out", str(out), *SMALL, *options)


def stopped_and_resumed(data: Path, out: Path) -> None:
    """Stop a run by a signal once its second epoch has begun, then finish it."""
    command = [*RESNET, "train", str(data), "--out", str(out), *SMALL]
    command += ["--set", "checkpoint_seconds=0"]
    history = out / "history.csv"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if history.is_file() and history.read_text().count("\n") >= 2:
                process.send_signal(signal.SIGTERM)
                break
            time.sleep(0.002)
    if process.returncode != 143:
        sys.exit(f"expected the run to stop with exit code 143; got {process.returncode}")
    run(*RESNET, "train", "--resume", str(out))


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.chdir(root)
        flat = root / "flat"
        splits = root / "splits"
        make_images(flat, per_class=40, first_seed=0)
        make_images(splits / "train", per_class=32, first_seed=1)
        make_images(splits / "val", per_class=12, first_seed=2)
        table = root / "table.csv"
        images = sorted(flat.glob("*/*.png"))
        rows = [f"{path.relative_to(root)},{path.parent.name}" for path in images]
        table.write_text("\n".join(["path,label", *rows]) + "\n")

        train(flat, root / "1-flat")
        train(splits, root / "2-splits")
        train(table, root / "3-csv")
        stopped_and_resumed(flat, root / "4-resumed")
        train(flat, root / "5-mixed", *(part for key in MIXED for part in ("--set", key)))
        two = [*TORCHRUN, "-m", "resnetkit", "train", str(splits), "--out", str(root / "6-ranks")]
        run(*two, *SMALL)
        for out in sorted(root.glob("[1-6]-*")):
            data = {"2": splits, "3": table, "6": splits}.get(out.name[0], flat)
            model = str(out / "model.safetensors")
            evidence = out / "evidence"
            run(*RESNET, "evaluate", model, str(data), "--split", "val", "--out", str(evidence))
            for file in [
                out / "model.safetensors",
                out / "history.csv",
                evidence / "predictions.csv",
            ]:
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                print(digest, file.relative_to(root).as_posix())


if __name__ == "__main__":
    main()
