"""Kill one training run a hundred times at random moments, and resume it each time.

    python benchmarks/kills.py [KILLS]

This trains a small network on the built-in digits twice: once without interruption, and once in a
process that gets SIGKILL repeatedly. Most kills come within 0.15 s after it has saved
something new, while it trains, saves or validates; every fifth comes within its first second, while
it reads and restores. The script fails if the saved step ever goes back, if no resume began within
an epoch, or if a final file differs from the uninterrupted run's.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from resnetkit import train
from resnetkit.data.digits import write_digits
from resnetkit.training import checkpoint

FILES = ("model.safetensors", "last.safetensors", "history.csv", "metrics.json")
SETTINGS = {
    "model": "cifar_resnet20",
    "model_options": {"width": 8},
    "image_size": 32,
    "epochs": 30,
    "batch_size": 32,
    "precision": "fp32",
    "checkpoint_seconds": 0.05,
}


def start(data: Path, out: Path) -> int:
    """Start a process that continues the run; it is forked, so it need not import PyTorch."""
    child = os.fork()
    if child:
        return child
    try:
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        train(data, out=out, resume=True, workers=1, **SETTINGS)
        os._exit(0)
    except BaseException as error:
        print(f"the run failed: {error!r}", flush=True)
        os._exit(1)


def saved(out: Path) -> dict[str, int]:
    """Return the position of the newest generation; step -1 if there is none yet."""
    newest = checkpoint.read_newest(out / "state")
    return {"step": -1, "batch": 0} if newest is None else newest.values


def kill_one(data: Path, out: Path, rng: random.Random, early: bool) -> str:
    """Start the run and kill it; return what it was doing."""
    before = saved(out)["step"]
    child = start(data, out)
    if early:
        time.sleep(rng.uniform(0, 1))
    else:
        while saved(out)["step"] <= before:
            if os.waitpid(child, os.WNOHANG)[0]:
                raise SystemExit("the run ended before it could be killed")
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
    writing = any(path.name.startswith(".0") for path in (out / "state").glob(".*"))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "while it wrote its state" if writing else "early" if early else "at another moment"


def main() -> None:
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    rng, base = random.Random(0), Path(tempfile.mkdtemp())
    write_digits(base / "digits")
    data, out = base / "digits", base / "killed"
    begin = time.perf_counter()
    os.waitpid(start(data, base / "whole"), 0)
    seconds = time.perf_counter() - begin
    moments: Counter[str] = Counter()
    steps, within, back = [], 0, 0
    for number in range(kills):
        within += saved(out)["batch"] > 0  # the resumed run starts there
        moments[kill_one(data, out, rng, early=number % 5 == 4)] += 1
        steps.append(saved(out)["step"])
        back += len(steps) > 1 and steps[-1] < steps[-2]
    os.waitpid(start(data, out), 0)
    same = [n for n in FILES if (out / n).read_bytes() == (base / "whole" / n).read_bytes()]
    total = saved(base / "whole")["step"]
    print(f"unbroken run             {total} steps in {seconds:.0f} s")
    print(f"kills                    {kills}: {', '.join(f'{n} {m}' for m, n in moments.items())}")
    print(f"saved step after kills   {steps[0]} to {steps[-1]}; went back {back} times")
    print(f"resumes within an epoch  {within}")
    print(f"files with equal bits    {len(same)} of {len(FILES)}: {', '.join(same)}")
    if back or not within or len(same) < len(FILES):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
