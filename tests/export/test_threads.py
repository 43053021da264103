"""One exported file, used by several threads at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from resnetkit.export.export import export
from resnetkit.export.predictor import ExportedPredictor

pytest.importorskip("onnx")


@pytest.mark.parametrize(
    ("to", "ending"), [("onnx", ".onnx"), ("openvino", ".xml"), ("torch", ".pt2")]
)
def test_threads_that_share_a_predictor_get_the_same_answers(tiny_model, tmp_path, to, ending):
    pytest.importorskip({"onnx": "onnxruntime"}.get(to, to))
    file = export(tiny_model, to, tmp_path / f"model{ending}", golden="made").path
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (50, 60 + i, 3), dtype=np.uint8) for i in range(4)]

    def answer(predictor, image):
        (values,) = predictor.run([image], ("features",))
        return {name: value.copy() for name, value in values.items()}

    one = ExportedPredictor(file, threads=1)
    expected = [answer(one, image) for image in images]
    notes: list[str] = []
    predictor = ExportedPredictor(file, note=notes.append, threads=1)
    threads_before, barrier = torch.get_num_threads(), threading.Barrier(4)

    def work(image):
        barrier.wait(60)  # all threads start the runtime at the same time
        return [answer(predictor, image) for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(work, images))
    for values, answers in zip(expected, found, strict=True):
        for other in answers:
            assert other.keys() == values.keys()
            for name, value in values.items():
                np.testing.assert_allclose(other[name], value, atol=1e-5)
    assert len(notes) == 1  # the runtime started once
    assert torch.get_num_threads() == threads_before
