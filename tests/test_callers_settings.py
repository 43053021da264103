"""The calling program's PyTorch settings change no result, and are left as they were."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from resnetkit import evaluate, load, runtime, train
from resnetkit.evaluation.explain import explain
from resnetkit.models.weights import modelfile
from resnetkit.models.weights.convert import convert
from resnetkit.training.lr_finder import find_lr


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


SETTINGS = {
    "float64": default_dtype,
    "meta": lambda: default_device("meta"),
    "cpu": lambda: default_device("cpu"),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def state():
    return (
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
    )


def answers(model, images):
    """Return the results of every public function on a model file."""
    before = state()
    predictor = load(model, device="cpu")
    found = [predictor(images[0]).top, [one.top for one in predictor(images)]]
    for workers in (0, 2):
        for answer in predictor.stream(images, features=True, workers=workers):
            assert state() == before  # even between two answers
            found.append(answer.features.tolist())
    found.append(evaluate(model, images[0].parents[1], "all", device="cpu", crops=10).metrics)
    logits = evaluate(model, images[0].parents[1], "all", device="cpu", workers=0).logits
    tensors = [logits, *predictor.model.parameters(), *modelfile.read(model)[0].parameters()]
    assert {(x.dtype, x.device.type, x.is_inference()) for x in tensors} == {
        (torch.float32, "cpu", False)
    }
    found.append(logits.tolist())
    for seen in explain(model, images[:2], device="cpu"):
        assert state() == before
        found.append(seen.heat.tolist())
    assert state() == before
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("theirs") / "resnet18.pth"
    torch.save(resnet18(num_classes=3).state_dict(), path)
    return path


def everything(data, small, checkpoint, out):
    """Train, use and convert a model, and return the results."""
    settings = {**small, "epochs": 1, "device": "cpu", "workers": 2, "ema": 0.9, "mixup": 0.2}
    settings |= {"model_options": {"width": 4}}
    before = state()
    run = train(data, out=out / "run", **settings)
    rates = find_lr(data, **settings)
    convert(checkpoint, out / "converted.safetensors", classes=["blue", "green", "red"])
    assert state() == before
    images = sorted(data.rglob("*.png"))[:5]
    found = answers(run.model, images)
    files = [(run.folder / name).read_bytes() for name in ("model.safetensors", "history.csv")]
    files.append((out / "converted.safetensors").read_bytes())
    return found, rates.losses, files


@pytest.fixture(scope="module")
def plainly():
    """The results with PyTorch's default settings, filled in by the first test."""
    return {}


@pytest.mark.parametrize("name", SETTINGS)
def test_the_callers_settings_change_no_result(name, save, small, checkpoint, tmp_path, plainly):
    data = save(tmp_path / "data", 8)
    if not plainly:
        plainly["found"] = everything(data, small, checkpoint, tmp_path / "plain")
    with SETTINGS[name]():
        found = everything(data, small, checkpoint, tmp_path / "set")
    for ours, theirs in zip(found, plainly["found"], strict=True):
        assert ours == theirs


def test_the_last_of_several_threads_restores_the_default_dtype():
    inside, leave = threading.Event(), threading.Event()

    def other():
        with runtime.pytorch_defaults():
            inside.set()
            leave.wait(10)
            seen.append(torch.get_default_dtype())

    seen = []
    with default_dtype():
        thread = threading.Thread(target=other)
        with runtime.pytorch_defaults():
            thread.start()
            inside.wait(10)
        leave.set()
        thread.join()
        assert seen == [torch.float32]
        assert torch.get_default_dtype() == torch.float64
