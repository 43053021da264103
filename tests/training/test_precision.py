"""The scaled loss of fp16, on the CPU.

In fp32, scaling by a power of two changes no bits, so a run with it must equal one without. In
fp16, the reference is the plain loop from PyTorch's documentation.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from resnetkit import runtime, train
from resnetkit.data.transforms import normalize
from resnetkit.errors import RecipeError, TrainingError
from resnetkit.models import get_model
from resnetkit.runtime import Runtime
from resnetkit.training import checkpoint, loop
from resnetkit.training.outcomes import loss_and_correct
from resnetkit.training.param_groups import make_optimizer
from resnetkit.training.recipe import load_recipe
from resnetkit.training.state import State

CPU = torch.device("cpu")
FP16 = Runtime(CPU, "fp16")


def make(settings, precision="fp16"):
    """Return a state and its recipe."""
    base = {"image_size": 16, "resize_size": 16, "epochs": 1, "batch_size": 6, "optimizer": "sgd"}
    recipe = load_recipe("fast").with_settings({**base, **settings, "precision": precision})
    torch.manual_seed(0)
    model = get_model("cifar_resnet20", width=4, num_classes=3)
    runtime = Runtime(CPU, precision)
    identity = {"data": {"classes": ["a", "b", "c"]}}
    return State(model, make_optimizer(model, recipe), identity, scaler=runtime.scaler()), recipe


def batch(number):
    made = torch.Generator().manual_seed(number)
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=made)
    return loop.Batch(images, torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6).numpy())


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_scale_changes_no_bit(optimizer, monkeypatch):
    """Use a batch in parts, class weights, and a limit on the gradient norm."""
    monkeypatch.setattr(Runtime, "autocast", lambda self: nullcontext())
    settings = {"optimizer": optimizer, "accumulate": 2, "clip_norm": 0.5}
    found = []
    for precision in ("fp32", "fp16"):
        state, recipe = make(settings, precision)
        for number in range(4):
            weights = torch.tensor([1.0, 2.0, 0.5])
            runtime = Runtime(CPU, precision)
            outcome = loop.training_step(state, batch(number), recipe, runtime, 0.01, weights)
            state.step += 1
        found.append((outcome, state.model.state_dict()))
    for first, second in zip(found[0][0], found[1][0], strict=True):
        assert torch.equal(first, second)
    for name, value in found[0][1].items():
        assert torch.equal(found[1][1][name], value), name


def test_steps_equal_the_plain_loop_with_a_scaler():
    state, recipe = make({"label_smoothing": 0.0, "weight_decay": 0.0, "nesterov": False})
    torch.manual_seed(0)
    model = get_model("cifar_resnet20", width=4, num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu")
    for number in range(4):
        given = batch(number)
        loss, _ = loss_and_correct(loop.training_step(state, given, recipe, FP16, 0.1).totals)
        with torch.autocast("cpu", torch.float16):
            logits = model(normalize(given.images, recipe.preprocessing()))
        expected = F.cross_entropy(logits.float(), given.labels)
        optimizer.zero_grad()
        scaler.scale(expected).backward()
        scaler.step(optimizer)
        scaler.update()
        assert loss == pytest.approx(expected.item(), rel=1e-3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], value, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_overflow_skips_the_step_and_halves_the_scale(optimizer):
    state, recipe = make({"optimizer": optimizer})
    loop.training_step(state, batch(0), recipe, FP16, 0.01)
    assert state.scaler.get_scale() == 2**16
    names = [name for name, _ in state.model.named_parameters()]
    before = [p.detach().clone() for p in state.model.parameters()]
    moments = [{k: v.clone() for k, v in state.optimizer.state[p].items()}
               for p in state.model.parameters()]  # fmt: skip
    handle = state.model.fc.weight.register_hook(lambda grad: grad * float("inf"))
    loop.training_step(state, batch(1), recipe, FP16, 0.01)
    assert state.scaler.get_scale() == 2**15
    for name, p, old, moment in zip(names, state.model.parameters(), before, moments, strict=True):
        assert torch.equal(p, old), name
        for key, value in moment.items():
            assert torch.equal(state.optimizer.state[p][key], value), (name, key)
    handle.remove()
    loop.training_step(state, batch(2), recipe, FP16, 0.01)
    assert not torch.equal(state.model.fc.weight, before[names.index("fc.weight")])
    state.check_finite()


def test_a_scale_that_collapses_is_an_error():
    state, recipe = make({})
    state.model.fc.weight.register_hook(lambda grad: grad * float("inf"))
    for number in range(27):
        state.check_finite()
        loop.training_step(state, batch(number), recipe, FP16, 0.01)
    with pytest.raises(TrainingError, match=r"overflow fp16 at every loss scale.*precision=fp32"):
        state.check_finite()


@pytest.fixture
def fp16_here(monkeypatch):
    """Let the CPU train in fp16, which is slow."""
    real = Runtime.with_precision

    def with_precision(self, wanted):
        return FP16 if wanted == "fp16" else real(self, wanted)

    monkeypatch.setattr(Runtime, "with_precision", with_precision)


def test_a_resumed_run_has_the_same_bits(flat_folder, small, tmp_path, monkeypatch, fp16_here):
    """Force an overflow before the interruption, so that the scale is no longer the initial one."""
    real, calls, stop = loop.training_step, [], None

    def step(state, *args):
        calls.append(state.step)
        if len(calls) == stop:
            raise KeyboardInterrupt
        if state.step != 1:
            return real(state, *args)
        handle = state.model.fc.weight.register_hook(lambda grad: grad * float("inf"))
        outcome = real(state, *args)
        handle.remove()
        return outcome

    monkeypatch.setattr(loop, "training_step", step)
    settings = {**small, "precision": "fp16", "ema": 0.9, "checkpoint_seconds": 0}
    whole = train(flat_folder, out=tmp_path / "whole", show_plan=False, **settings).folder
    calls.clear()
    stop = 5
    with pytest.raises(KeyboardInterrupt):
        train(flat_folder, out=tmp_path / "broken", show_plan=False, **settings)
    scaler = checkpoint.read_newest(tmp_path / "broken" / "state").values["scaler"]
    assert (scaler["scale"], scaler["_growth_tracker"]) == (2**15, 2)
    stop = None
    train(tmp_path / "broken", resume=True)
    for name in ("model.safetensors", "last.safetensors", "history.csv"):
        assert (tmp_path / "broken" / name).read_bytes() == (whole / name).read_bytes()
    scalers = [
        checkpoint.read_newest(tmp_path / n / "state").values["scaler"] for n in ("whole", "broken")
    ]
    assert scalers[0] == scalers[1]


def test_fp16_is_for_cuda():
    with pytest.raises(RecipeError, match="fp16 is for CUDA GPUs, and this run is on cpu"):
        runtime.pick("cpu", "fp16")
    with pytest.raises(RecipeError, match="auto, bf16, fp16 or fp32; got 'fp8'"):
        runtime.pick("cpu", "fp8")
