"""Show why `resnet` sets GOMP_SPINCOUNT: seconds per step, alone and next to busy processes.

    python benchmarks/spinning.py

This trains a CIFAR ResNet-20 for 30 steps in a fresh process for each setting, first on an idle
machine, then next to one busy Python process per core.
"""

from __future__ import annotations

import os
import subprocess
import sys

STEPS = """
import time, torch
from torch.nn import functional as F
from resnetkit.models import cifar_resnet20
model = cifar_resnet20().to(memory_format=torch.channels_last)
x = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
y = torch.randint(0, 10, (32,))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
taken = []
for _ in range(30):
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(x)
    F.cross_entropy(logits.float(), y).backward()
    optimizer.step()
    optimizer.zero_grad()
    taken.append(time.perf_counter() - start)
print(f"median {sorted(taken)[15]:.3f} s, mean {sum(taken) / 30:.3f} s per step")
"""
SETTINGS: list[dict[str, str]] = [
    {},
    {"GOMP_SPINCOUNT": "10000"},
    {"OMP_WAIT_POLICY": "PASSIVE"},
]


def measure(title: str) -> None:
    print(title)
    for setting in SETTINGS:
        done = subprocess.run(
            [sys.executable, "-c", STEPS],
            env={**os.environ, **setting},
            capture_output=True,
            text=True,
        )
        name = " ".join(f"{key}={value}" for key, value in setting.items()) or "(as it is)"
        print(f"  {name:28} {done.stdout.strip()}{done.stderr.strip()[-200:]}", flush=True)


def main() -> None:
    measure("idle machine")
    busy = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(os.cpu_count() or 1)
    ]
    try:
        measure(f"next to {len(busy)} busy processes")
    finally:
        for process in busy:
            process.kill()


if __name__ == "__main__":
    main()
