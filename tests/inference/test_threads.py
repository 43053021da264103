"""One predictor, used by several threads at once."""

from __future__ import annotations

import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest

from resnetkit import load

ENGINES = ["eager", "openvino", "onnx", pytest.param("compile", marks=pytest.mark.slow)]


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_share_a_predictor_get_the_same_answers(engine, trained):
    pytest.importorskip({"onnx": "onnxruntime", "openvino": "openvino"}.get(engine, "torch"))
    images = sorted((trained.parent / "data").rglob("*.png"))
    one = load(trained / "model.safetensors", "cpu", engine)
    # Each thread has its own images, so a mix-up is visible.
    shares = [images[thread::4] for thread in range(4)]
    expected = [[answer.top for answer in one(share)] for share in shares]
    predictor = load(trained / "model.safetensors", "cpu", engine)
    notes: list[str] = []
    predictor._note = notes.append
    filters, barrier = list(warnings.filters), threading.Barrier(4)

    def work(share):
        barrier.wait(60)  # all threads start the engine at the same time
        return [[answer.top for answer in predictor(share)] for _ in range(8)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, shares))
    assert found == [[tops] * 8 for tops in expected]
    assert len(notes) == 1  # the engine started once
    assert warnings.filters == filters


def test_predictors_that_start_together_keep_the_warning_filters(trained):
    pytest.importorskip("openvino")
    images = sorted((trained.parent / "data").rglob("*.png"))[:2]
    filters, barrier = list(warnings.filters), threading.Barrier(3)

    def work(number):
        predictor = load(trained / "model.safetensors", "cpu", ("openvino", "onnx")[number % 2])
        barrier.wait(60)
        return [answer.class_name for answer in predictor(images)]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(work, range(3)))
    assert found == [found[0]] * 3
    assert warnings.filters == filters
