"""Find what makes the default fast: change one thing at a time, on the split of `speed.py`.

    python benchmarks/speed.py split SIGNS /tmp/split
    python benchmarks/levers.py /tmp/split 0.9272 0 1        # the accuracy to reach, then seeds

Every row is ``resnet train SPLIT --weights none --epochs 12`` with the settings listed in it; all
rows take turns, seed by seed. Seconds are from the start of the process to the validation that
first reaches the accuracy; "whole" is the whole process, until its report is written.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from speed import one_run

LEVERS = {
    "the default": "",
    "fp32 instead of bf16": "precision=fp32",
    "maps stored (N, C, H, W)": "channels_last=false",
    "half as many updates": "batch_size=32",
    "a quarter as many updates": "batch_size=64; lr=0.01",
    "SGD with Nesterov's momentum": "optimizer=sgd; lr=0.1; weight_decay=0.0005",
    "a constant learning rate": "schedule=constant; lr=0.001",
    "no weight decay": "weight_decay=0",
    "weight decay on norms and biases too": "decay_norms=true",
    "no zero-init": "zero_init_residual=false",
    "no label smoothing": "label_smoothing=0",
    "96 px from the start": "train_sizes=[1.0,1.0]",
    "from 48 px": "train_sizes=[0.5,0.85]",
    "EMA": "ema=0.99",
    "MixUp": "mixup=0.2",
    "CutMix": "cutmix=1.0",
    "half the usual width": "model_options={width: 32}",
    "the usual width": "model_options={width: 64}",
}


def main() -> None:
    data, target, seeds = Path(sys.argv[1]), float(sys.argv[2]), map(int, sys.argv[3:])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LEVERS}
    for seed in seeds:
        for name, settings in LEVERS.items():
            more = ["--weights", "none", "--epochs", "12"]
            more += [
                word for setting in settings.split("; ") if setting for word in ("--set", setting)
            ]
            found[name].append(one_run(data, target, seed, more))
            print(name, found[name][-1], file=sys.stderr, flush=True)
    print(f"| change | settings | seconds to {target:.2%} | whole | best validation | test |")
    print("|---|---|---|---|---|---|")
    for name, rows in found.items():
        reached = ", ".join("never" if r["reached"] != r["reached"] else f"{r['reached']:.1f}"
                            for r in rows)  # fmt: skip
        whole = statistics.median(row["whole"] for row in rows)
        val, test = (", ".join(f"{row[key]:.1%}" for row in rows) for key in ("val", "test"))
        print(f"| {name} | `{LEVERS[name]}` | {reached} | {whole:.0f} s | {val} | {test} |")


if __name__ == "__main__":
    main()
