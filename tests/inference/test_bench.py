from __future__ import annotations

import json

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resnetkit.errors import RecipeError
from resnetkit.inference import bench, engines
from resnetkit.models import summarize
from resnetkit.models.weights import modelfile


@pytest.mark.slow
def test_measure_model(trained):
    file = trained / "model.safetensors"
    notes = []
    found = bench.measure_model(file, ["eager"], [1, 4], 0.05, device="cpu", note=notes.append)
    assert json.loads(json.dumps(found)) == found
    network, header = modelfile.read(file)
    assert found["macs"] == summarize(network, header.preprocessing.crop_size).macs
    kinds = list(found["limits"])
    assert kinds[0] == "fp32"
    assert [(row["precision"], row["batch_size"]) for row in found["throughput"]] == [
        (kind, size) for kind in kinds for size in (1, 4)
    ]
    for row in found["throughput"]:
        rate = row["pictures_per_second"] * found["macs"]
        assert row["share_of_limit"] == pytest.approx(rate / found["limits"][row["precision"]])
        assert 0 < row["share_of_limit"] < 1
        assert 50 < row["peak_memory_mb"] < 4000
    for row in found["latency"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"]
        assert row["n"] >= 3
    text = bench.bench_table(found)
    assert text.count("eager") == len(found["throughput"]) + len(found["latency"])
    assert len(notes) == 1 + len(kinds)


def test_a_row_measures_the_whole_model_without_gradients(trained, monkeypatch):
    seen = []
    call = engines.Engine.__call__

    def spy(self, images):
        vectors, logits = call(self, images)
        seen.append((len(images), logits.requires_grad, logits.is_inference()))
        return vectors, logits

    monkeypatch.setattr(engines.Engine, "__call__", spy)
    file, choice = str(trained / "model.safetensors"), engines.EngineChoice("eager", "fp32")
    latency = bench._measure_row(file, choice, torch.device("cpu"), 0.01, 0)
    assert latency["n"] >= 3
    assert set(seen) == {(1, False, True)}
    seen.clear()
    row = bench._measure_row(file, choice, torch.device("cpu"), 0.01, 5)
    assert row["batch_size"] == 5
    assert set(seen) == {(5, False, True)}


@pytest.mark.parametrize(("seconds", "runs"), [(0.01, 3), (9.0, 4), (60.0, 7)])
def test_the_limit_is_the_best_of_several_matrix_products(monkeypatch, seconds, runs):
    """Use a fake clock; the two warm-up products are the fastest, but do not count."""
    taken, shapes = [0.1, 0.2, 4.0, 0.5, 3.0, 2.0, 30.0, 20.0, 10.0], []
    readings = iter(range(2 * len(taken)))

    class Clock(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func in (torch.ops.aten.mm.default, torch.ops.aten.matmul.default):
                shapes.append([tuple(factor.shape) for factor in args])
            return func(*args, **(kwargs or {}))

        def perf_counter(self):
            next(readings)
            return sum(taken[: len(shapes)])

    monkeypatch.setattr(bench, "SIDE", 32)
    with Clock() as clock:
        monkeypatch.setattr(bench, "time", clock)
        limit = bench.matmul_limit("fp32", torch.device("cpu"), seconds)
    assert limit == pytest.approx(32**3 / 0.5)
    assert shapes == [[(32, 32)] * 2] * (2 + runs)


def test_unknown_engines_are_refused(trained):
    with pytest.raises(RecipeError, match="engine must be auto"):
        bench.measure_model(trained / "model.safetensors", ["tensorrt"], seconds=0.01)
