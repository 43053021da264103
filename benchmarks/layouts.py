"""Compare channels_last with contiguous memory in training steps, side by side, on a CPU.

    python benchmarks/layouts.py

For each instruction set (the processor's own, and AVX2) one process measures the two layouts in
turn, so that a slow minute of the machine slows both. It prints the images per second of each
layout (medians of the rounds), and their ratio, with the lowest and highest of all rounds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from resnetkit.models import resnet18
from resnetkit.runtime import environment

CASES = [(16, 64), (16, 112), (32, 64), (32, 112), (64, 64), (64, 112)]  # width, side in pixels
BATCH = 16
STEPS = 6
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def images_per_second(
    model: torch.nn.Module, layout: torch.memory_format, side: int, precision: str
) -> float:
    model.to(memory_format=layout)  # type: ignore[call-overload]
    images = torch.randn(BATCH, 3, side, side).contiguous(memory_format=layout)
    labels = torch.zeros(BATCH, dtype=torch.int64)
    started = 0.0
    for step in range(STEPS + 1):
        if step == 1:  # the first one prepares the kernels
            started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        model.zero_grad()
    return STEPS * BATCH / (time.perf_counter() - started)


def measure(rounds: int, precision: str) -> None:
    capability = torch.backends.cpu.get_cpu_capability()
    for width, side in CASES:
        model = resnet18(num_classes=10, width=width)
        speeds: dict[torch.memory_format, list[float]] = {
            torch.channels_last: [],
            torch.contiguous_format: [],
        }
        for _ in range(rounds):
            for layout, found in speeds.items():
                found.append(images_per_second(model, layout, side, precision))
        last, contiguous = speeds.values()
        ratios = [a / b for a, b in zip(last, contiguous, strict=True)]
        print(
            f"| {capability} | {precision} | {width} | {side} | {statistics.median(last):.0f} | "
            f"{statistics.median(contiguous):.0f} | {statistics.median(ratios):.2f} "
            f"({min(ratios):.2f} to {max(ratios):.2f}) |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--here", choices=["fp32", "bf16"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.here:
        measure(args.rounds, args.here)
        return
    print(environment(torch.device("cpu")))
    print("| capability | precision | width | px | channels_last | contiguous | ratio (range) |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for precision, variables in (("fp32", {}), ("bf16", {}), ("fp32", AVX2)):
        if precision == "bf16" and not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
            continue
        command = [sys.executable, __file__, "--here", precision]
        command += ["--rounds", str(args.rounds), "--threads", str(args.threads)]
        subprocess.run(command, check=True, env={**os.environ, **variables})


if __name__ == "__main__":
    main()
