"""Measure how long the processes of a run take to compare their hosts.

Run it under torchrun, on one host or several:

    torchrun --standalone --no-python --nproc-per-node 2 python benchmarks/preflight.py DATA
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from resnetkit import hosts, runtime
from resnetkit.data.folder import read_dataset
from resnetkit.training.preflight import check_hosts
from resnetkit.training.recipe import load_recipe
from resnetkit.training.run import RunFolder

meeting_seconds: list[float] = []
check_seconds: list[float] = []
meet = hosts.meet


def timed_meet(*arguments, **options):
    started = time.perf_counter()
    peers = meet(*arguments, **options)
    meeting_seconds.append(time.perf_counter() - started)
    return peers


def describe(seconds: Sequence[float]) -> str:
    low, middle, high = (1000 * f(seconds) for f in (min, statistics.median, max))
    return f"{middle:.0f} ms ({low:.0f} to {high:.0f})"


hosts.meet = timed_meet
this = runtime.pick("cpu", "fp32")
dataset = read_dataset(sys.argv[1])
for _ in range(20):
    with runtime.connected():
        this.gather([0])  # all ranks are here
        started = time.perf_counter()
        run = RunFolder(Path("runs/none"))
        check_hosts(dataset, load_recipe("fast"), run, this, typed={}, is_resumed=False)
        check_seconds.append(time.perf_counter() - started)
if this.is_main:
    count = sum(len(split) for split in dataset.splits.values())
    print(f"versions and addresses: {describe(meeting_seconds)}")
    print(f"files and settings, {count:,} images: {describe(check_seconds)}")
    print(f"{this.world_size} processes, load {os.getloadavg()[0]:.0f}")
