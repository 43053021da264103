"""Train two networks at the same time, and compare their speed with that of one alone.

    python benchmarks/two_at_once.py DATA

It trains the default recipe for a few epochs, alone and then twice at the same time. It prints
the speed of the last epochs (images per second), and the share of it that each of the two keeps.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

EPOCHS = 6


def start(data: Path, out: Path, options: list[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "resnetkit", "train", str(data), "--out", str(out)]
    command += ["--epochs", str(EPOCHS), "--weights", "none", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def speed(out: Path) -> float:
    """Return the median speed of the epochs after the first, in which images are decoded."""
    with (out / "timings.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    return statistics.median(float(row["images_per_second"]) for row in rows[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("options", nargs="*", help="more options for `resnet train`")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            alone, first, second = (Path(folder) / f"{number}-{name}" for name in "abc")
            if start(args.data, alone, args.options).wait():
                sys.exit("training failed")
            both = [start(args.data, out, args.options) for out in (first, second)]
            codes = [process.wait() for process in both]
            if any(codes):
                sys.exit("training failed")
            reference = speed(alone)
            shares = [speed(out) / reference for out in (first, second)]
            print(
                f"alone {reference:.0f} img/s; of two: {shares[0]:.0%} and {shares[1]:.0%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
