"""The GPU code without a GPU: tensors that claim to be on ``cuda:0`` but compute on the CPU.

As on a real GPU, an operation refuses tensors on two devices, so any machine shows which tensors
the code forgot to move. Kernels, autocast and speed are not tested.
"""

from __future__ import annotations

import itertools
import shutil
from contextlib import ExitStack, contextmanager, nullcontext
from unittest import mock

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from resnetkit import evaluate, load, runtime, train
from resnetkit.evaluation.explain import grad_cam
from resnetkit.inference import bench, engines
from resnetkit.models.weights import modelfile
from resnetkit.training import loop

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
aten = torch.ops.aten
BETWEEN_DEVICES = (aten.copy_.default, aten._to_copy.default)
READS = (
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
)
# These operations accept indices on the CPU.
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
CAPABILITY = (8, 0)
WAITS = []  # operations in which the CPU would have waited for a real GPU


class Stream:
    """A CUDA stream on which every operation finishes immediately."""

    def record_event(self):
        return self

    def wait_event(self, event):
        pass

    def synchronize(self):
        pass


DRIVER = {
    "_lazy_init": lambda: None,
    "is_available": lambda: True,
    "get_device_capability": lambda device: CAPABILITY,
    "device_count": lambda: 1,
    "get_device_name": lambda device: "a GPU that is not there",
    "synchronize": lambda device: None,
    "Stream": lambda device: Stream(),
    "current_stream": lambda device: Stream(),
    "stream": lambda stream: nullcontext(),
    "device": lambda device: nullcontext(),
    "max_memory_allocated": lambda _: 10**6,
}


class Pretended(torch.Tensor):
    """A tensor without memory (``meta``) for PyTorch, and one on a GPU for Python.

    The values are in ``held``, on the CPU.
    """

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )

    def __init__(self, held):
        self.held = held

    device = property(lambda self: GPU)
    is_meta = property(lambda self: False)

    def record_stream(self, stream):
        pass

    def __deepcopy__(self, memo):
        copy = Pretended(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        return memo.setdefault(id(self), copy)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


def compute(func, args, kwargs):
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, Pretended)]
    scalars = "_fused_" not in str(func)  # all but fused optimizers accept scalars on the CPU
    here = [x for x in tensors if not isinstance(x, Pretended) and (x.dim() or not scalars)]
    fine = func in BETWEEN_DEVICES or (func in INDEXING and isinstance(args[0], Pretended))
    if there and here and not fine:
        raise RuntimeError(f"{func}: tensors on the CPU, {[tuple(x.shape) for x in here]}")
    device, on_gpu = kwargs.get("device"), bool(there)
    if device is not None:
        on_gpu, kwargs = device.type != "cpu", {**kwargs, "device": CPU}
    bare = tree_map(lambda x: x.held if isinstance(x, Pretended) else x, (args, kwargs))
    note_wait(func, args, {**kwargs, "device": device}, there, here)
    result = func(*bare[0], **bare[1])
    same = {id(x.held): x for x in there}  # for in-place operations

    def wrapped(x):
        if not isinstance(x, torch.Tensor) or not on_gpu:
            return x
        return same[id(x)] if id(x) in same else Pretended(x)

    return args[0] if func is aten.copy_.default else tree_map(wrapped, result)


def note_wait(func, args, kwargs, there, here):
    """Record values that are read from the GPU, and copies that the CPU waits for."""
    copied = func in BETWEEN_DEVICES and not kwargs.get("non_blocking")
    if func is aten._to_copy.default:
        leaves = bool(there) and kwargs.get("device") == CPU
    else:
        leaves = bool(there) and bool(here) and len(args) < 3  # copy_(to, from, non_blocking)
    reads = bool(there) and func in READS
    indexed = bool(there) and bool(here) and func in INDEXING
    if (copied and leaves) or reads or indexed:
        WAITS.append(str(func))


class Dispatch(TorchDispatchMode):
    """Catches operations that create a GPU tensor without an input tensor."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return compute(func, args, kwargs or {})


class Names(TorchFunctionMode):
    """Resolves ``cuda`` before PyTorch asks the driver which device that is."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        def named(x):
            return GPU if isinstance(x, (str, torch.device)) and str(x) == "cuda" else x

        kwargs = {name: named(x) for name, x in (kwargs or {}).items()}
        if func is torch.Tensor.to and GPU in (*map(named, args[1:]), *kwargs.values()):
            kwargs.pop("device", None)
            waits = not kwargs.pop("non_blocking", False) and not isinstance(args[0], Pretended)
            WAITS.extend(["to the GPU"] * waits)
            asked = [x for x in args[1:] if isinstance(x, torch.dtype)]
            tensor = args[0] if isinstance(args[0], Pretended) else Pretended(args[0].detach())
            return func(tensor, *asked, **kwargs) if asked or any(kwargs.values()) else tensor
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") == GPU:
            WAITS.append("made from numbers")
            return Pretended(func(*args, **{**kwargs, "device": CPU}))
        if func is torch.Tensor.pin_memory:
            return args[0]
        return func(*args, **kwargs)


def inference_mode(mode=True):
    return torch.no_grad() if mode else nullcontext()


@contextmanager
def pretended():
    with ExitStack() as stack:
        for name, value in DRIVER.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        # These tensors do not support inference_mode, which does not affect any values.
        stack.enter_context(mock.patch.object(torch, "inference_mode", inference_mode))
        stack.enter_context(Names())
        stack.enter_context(Dispatch())
        yield


@pytest.fixture
def gpu():
    with pretended():
        yield


THERE = {"device": "cuda", "workers": 0, "show_plan": False, "checkpoint_seconds": 0}


def test_what_was_forgotten_on_the_cpu_is_refused(gpu):
    there, here = torch.ones(2, 3, device="cuda"), torch.ones(3)
    with pytest.raises(RuntimeError, match="tensors on the CPU"):
        there + here
    with pytest.raises(RuntimeError, match="tensors on the CPU"):
        F.linear(there, torch.ones(4, 3))
    with pytest.raises(RuntimeError, match="tensors on the CPU"):
        here[torch.tensor([0, 1]).to("cuda")]
    assert there[torch.tensor([True, False])].device == GPU
    found = there + here.to("cuda")
    assert found.device == GPU
    assert type(found) is Pretended
    assert found.cpu().tolist() == [[2.0] * 3] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "on_device"),
    [
        ({"ema": 0.9, "mixup": 0.2, "cutmix": 1.0}, True),
        ({"crop_padding": 4, "train_sizes": [1.0, 1.0], "optimizer": "sgd"}, True),
        ({"erasing": 0.5, "clip_norm": 1.0, "accumulate": 2, "class_weights": "balanced"}, False),
        ({"head_share": 0.3, "layer_decay": 0.8, "optimizer": "adam"}, True),
        ({"shallow_share": 0.5, "channels_last": False, "trivial_augment": True}, False),
    ],
)
def test_training_goes_on_with_the_same_bits(
    settings, on_device, flat_folder, small, tmp_path, monkeypatch, capsys, gpu
):
    settings = {**small, **THERE, **settings}
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    train(flat_folder, out=whole, **settings)
    assert ("are on cuda; they are augmented there" in capsys.readouterr().err) == on_device
    step, calls = loop.training_step, []

    def pulled_plug(*args):
        calls.append(args)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "training_step", pulled_plug)
        train(flat_folder, out=broken, **settings)
    shutil.copytree(broken, tmp_path / "moved")
    train(broken, resume=True, device="cuda", workers=0)
    for name in ("model.safetensors", "last.safetensors", "history.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    capsys.readouterr()
    train(tmp_path / "moved", resume=True, device="cpu", workers=0)
    text = " ".join(capsys.readouterr().err.split())
    assert "Resuming on cpu a run saved on cuda: results will not be bit-identical" in text


@pytest.mark.slow
def test_a_trained_model_answers_there_as_on_the_cpu(flat_folder, small, tmp_path):
    settings = {**small, **THERE, "epochs": 3, "batch_size": 4, "show_plan": True}
    with pretended():
        run = train(flat_folder, out=tmp_path / "run", **settings)
        measured = evaluate(run.model, flat_folder, split="all", device="cuda", calibrate=True)
        answer = load(run.model, device="cuda")(flat_folder / "red" / "000.png")
        network, _ = modelfile.read(run.model)
        network.to("cuda").eval()
        images = torch.linspace(0, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
        heat = grad_cam(network, images.to("cuda"), "layer3", [0, 2]).cpu()
        choice = engines.EngineChoice("eager", "fp32")
        found = bench._measure_row(str(run.model), choice, torch.device("cuda"), 0.01, 2)
        assert found["peak_memory_mb"] == 1.0
    here = evaluate(run.model, flat_folder, split="all", device="cpu", calibrate=True)
    assert measured.metrics["accuracy"] == here.metrics["accuracy"]
    assert measured.metrics["loss"] == pytest.approx(here.metrics["loss"], rel=1e-4)
    expected = load(run.model, device="cpu")(flat_folder / "red" / "000.png")
    assert answer.probability == pytest.approx(expected.probability, abs=1e-5)
    network, _ = modelfile.read(run.model)
    expected = grad_cam(network.eval(), images, "layer3", [0, 2])
    np.testing.assert_allclose(heat.numpy(), expected.numpy(), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.2, "cutmix": 1.0, "ema": 0.9},
        {"crop_padding": 4, "optimizer": "sgd", "clip_norm": 1.0},
        {"erasing": 0.5, "accumulate": 2, "class_weights": "balanced"},
        {"precision": "fp16", "trivial_augment": True, "clip_norm": 1.0},
        {"precision": "fp16", "optimizer": "sgd", "ema": 0.9},
    ],
)
def test_a_step_waits_for_nothing(settings, flat_folder, small, tmp_path, monkeypatch, gpu):
    """Count from the start of a step to the start of the next, including its batch."""
    real, seen = loop.training_step, []

    def step(*args):
        seen.append(len(WAITS))
        return real(*args)

    monkeypatch.setattr(loop, "training_step", step)
    settings = {
        **small,
        **THERE,
        "epochs": 1,
        "batch_size": 4,
        "checkpoint_seconds": 1e9,
    } | settings
    train(flat_folder, out=tmp_path / "run", **settings)
    waits = [WAITS[i:j] for i, j in itertools.pairwise(seen)]
    assert len(waits) >= 8
    assert waits[2:] == [[]] * len(waits[2:])


def test_what_would_be_waited_for_is_counted(gpu):
    there = torch.ones(3).to("cuda")
    waits = [there[0].item, there.cpu, there.nonzero, lambda: bool(there[0])]
    waits += [lambda: there[torch.tensor([1])], lambda: torch.ones(3).to("cuda")]
    waits += [lambda: torch.tensor([1.0], device=GPU), lambda: int(there[0])]
    for wait in waits:
        before = len(WAITS)
        wait()
        assert len(WAITS) > before
    before = len(WAITS)
    torch.ones(3).pin_memory().to("cuda", non_blocking=True)
    runtime.read_later(there)
    assert len(WAITS) == before
    assert runtime.read_later(there)().tolist() == [1, 1, 1]
