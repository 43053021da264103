"""benchmarks/gpu.py without a GPU: it runs, and it times the real training step."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import resnetkit
from resnetkit.data.folder import Split
from resnetkit.models import get_model
from resnetkit.runtime import Runtime

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import gpu

    def small(num_classes=1000):
        return get_model("cifar_resnet20", width=4, num_classes=num_classes)

    monkeypatch.setattr(gpu.models, "resnet50", small)
    monkeypatch.setattr(gpu, "PLAIN", {"resnetkit's network": small, "torchvision": small})
    return gpu


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_it_times_the_step_and_the_optimiser_of_training(gpu, precision, monkeypatch):
    real, steps = gpu.training_step, []
    monkeypatch.setattr(gpu, "training_step", lambda *args: steps.append(args) or real(*args))
    args = argparse.Namespace(batch=4, size=32, steps=3, rounds=1, compile=False)
    part = Split(Path("photos"), ["0.jpg"], np.zeros(1, dtype=np.int32))
    where = Runtime(CPU, precision)
    ways = gpu.trainings(args, where, part)
    for way, training in ways.items():
        before = [p.detach().clone() for p in training.model.parameters()]
        training.run(gpu.synthetic(args, CPU)())
        changed = [
            not torch.equal(p, q) for p, q in zip(training.model.parameters(), before, strict=True)
        ]
        assert any(changed), way
        scaler = training.state.scaler if way.startswith("resnetkit |") else training.scaler
        assert scaler.is_enabled() == (precision == "fp16")
    assert len(steps) == args.steps
    assert ways["resnetkit | eager"].state.tally.seen == args.steps * args.batch
    table = gpu.optimizer_table(args, where, ways, 1e9)
    assert [line.split(" | ")[0] for line in table[3:]] == ["| resnetkit", "| torchvision"]


@pytest.mark.slow
def test_it_runs_on_a_cpu(tmp_path):
    out = tmp_path / "table.md"
    command = [sys.executable, BENCHMARKS / "gpu.py", "--device", "cpu", "--smoke", "--out", out]
    environment = {**os.environ, "PYTHONPATH": str(Path(resnetkit.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = out.read_text(encoding="utf-8")
    for source in ("synthetic", "cached"):
        for name in ("resnetkit", "resnetkit's network", "torchvision"):
            assert f"| {source} | {name} | eager | " in written
