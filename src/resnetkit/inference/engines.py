"""How a network is run fast: eager, compiled, by OpenVINO, by ONNX Runtime.

An engine computes what the last layer sees; that layer, a small matrix, always runs in PyTorch and
fp32. ``eager`` in fp32 is the network as it is: the reference that the others are measured against
(benchmarks/engines_agree.py).
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from itertools import pairwise
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .. import runtime
from ..errors import RecipeError
from ..models.summary import in_channels

ENGINES = ("auto", "eager", "compile", "openvino", "onnx")
PRECISIONS = ("auto", "fp32", "bf16")
_PACKAGES = {"openvino": ("openvino",), "onnx": ("onnx", "onnxscript", "onnxruntime")}
_COMPILERS = (os.environ.get("CXX", "g++"), "g++", "clang++", "cl")

TIE = 0.01
"""Of the standard deviation of a picture's logits. Their error in bf16 was measured as 0.0025 of
it (root mean square, ResNet-50), that of a difference is 1.4 times as large: this is three times
that."""

Run = Callable[[Tensor], Tensor]
"""``(n, channels, S, S)`` float32 -> ``(n, C)`` float32."""


class EngineChoice(NamedTuple):
    """An engine and the precision that its convolutions have."""

    engine: str
    precision: str


@dataclass(frozen=True)
class Engine:
    """A network that is ready to run.

    Args:
        choice: its name and precision.
        versions: of the libraries that run it.
        features: normalised pictures ``(N, channels, S, S)`` float32, any ``N``, -> what the last
            layer sees, ``(N, C)`` float32.
        head: that -> logits ``(N, classes)`` float32.
        reference: ``features`` as the eager network in fp32 computes them.
    """

    choice: EngineChoice
    versions: str
    features: Run
    head: nn.Module
    reference: Run

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``(N, channels, S, S)`` -> features ``(N, C)`` and logits ``(N, classes)``, all float32.

        In bf16, pictures between whose two best classes it is nearly a tie are computed again by
        the reference: rounding alone could decide there.
        """
        with torch.inference_mode(), runtime.full_fp32(images.device):
            vectors = self.features(images)
            logits = self.head(vectors)
            close = _near_ties(logits) if self.choice.precision == "bf16" else None
            if close is not None and len(close):
                again = self.reference(images[close])
                vectors, logits = vectors.clone(), logits.clone()
                vectors[close], logits[close] = again, self.head(again)
        return vectors, logits

    def __str__(self) -> str:
        return f"engine {self.choice.engine}, {self.choice.precision} ({self.versions})"


def check_engine(engine: str, precision: str, device: torch.device) -> EngineChoice:
    """Make sure that this machine has what is asked for.

    Raises:
        RecipeError: an unknown name, a library that is not installed, an engine that has not that
            precision or does not run on that device.
    """
    if engine not in ENGINES:
        raise RecipeError(f"engine is {', '.join(ENGINES[:-1])} or onnx; got {engine!r}")
    if precision not in PRECISIONS:
        raise RecipeError(f"precision is auto, fp32 or bf16; got {precision!r}")
    missing = _missing(engine)
    if missing:
        raise RecipeError(
            f"the engine {engine} needs {', '.join(missing)}: "
            f'pip install "resnetkit[{engine}]", or take --engine auto'
        )
    if engine in _PACKAGES and device.type != "cpu":
        raise RecipeError(f"the engine {engine} runs on the processor: add --device cpu")
    if (engine, precision) == ("onnx", "bf16"):
        raise RecipeError("the engine onnx computes in fp32; bf16 has eager, compile and openvino")
    if engine == "compile" and not any(map(shutil.which, _COMPILERS)):
        raise RecipeError("the engine compile needs a C++ compiler, such as g++; or --engine auto")
    return EngineChoice(engine, precision)


def resolve_engine(asked: EngineChoice, device: torch.device, many: bool) -> EngineChoice:
    """What ``auto`` stands for; measured on two cores in benchmarks/predict_cpu_2026-11-20.md.

    The eager network in fp32 starts at once, so a few pictures go there. For many, bfloat16 is
    fastest where the processor multiplies it, in OpenVINO before PyTorch; else OpenVINO, then ONNX
    Runtime, in fp32. ``compile`` was never faster than these and takes longest to start.
    """
    engine, precision = asked
    fast = precision if precision != "auto" else runtime.pick(str(device), "auto").precision
    if device.type != "cpu":  # not measured: the reference
        fast, here = ("fp32" if precision == "auto" else precision), ["eager"]
    else:
        order = ["openvino", "eager"] if fast == "bf16" else ["openvino", "onnx", "eager"]
        here = [name for name in order if not _missing(name)]
    if engine == "auto" and not many:
        return EngineChoice("eager", "fp32" if precision == "auto" else precision)
    if engine == "auto":
        return EngineChoice(here[0], fast)
    if precision == "auto":  # one engine, asked for by name
        return EngineChoice(engine, "fp32" if engine in ("eager", "onnx") else fast)
    return asked


def _missing(engine: str) -> list[str]:
    return [package for package in _PACKAGES.get(engine, ()) if find_spec(package) is None]


def start_engine(
    choice: EngineChoice, model: nn.Module, size: int, device: torch.device, batch_size: int
) -> Engine:
    """Make ``model`` ready to run as ``choice`` says; what ``auto`` chose, see `resolve_engine`.

    Args:
        model: in eval mode, on ``device``; it is not changed.
        size: side of its pictures, in pixels.
        batch_size: the most images at once in the engines that prepare each shape, ``compile`` and
            ``openvino``; one image is computed as one.
    """
    head: nn.Module = model.fc  # type: ignore[assignment]
    starters = {"eager": _eager, "compile": _compile, "openvino": _openvino, "onnx": _onnx}
    body, shape = _body(model), (batch_size, in_channels(model), size, size)
    with _starting, _quiet(), torch.no_grad():
        run = starters[choice.engine](body, choice.precision, shape)
    packages = ("torch", *_PACKAGES.get(choice.engine, ()))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return Engine(choice, versions, run, head, body)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """A copy with every batch norm folded into the convolution before it: the same function in
    eval mode, with half the layers.

    In the networks of `resnetkit.models` a norm always stands right behind its convolution.
    """
    model = deepcopy(model).eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (first, conv), (second, norm) in pairwise(children):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.running_mean is not None:
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return model


def _near_ties(logits: Tensor) -> Tensor:
    """Rows whose two greatest logits are nearer to each other than `TIE` standard deviations."""
    if logits.shape[1] < 2:
        return torch.empty(0, dtype=torch.long)
    best = logits.topk(2, 1).values
    return (best[:, 0] - best[:, 1] < TIE * logits.std(1)).nonzero()[:, 0]


def _body(model: nn.Module) -> nn.Module:
    """The network without its last layer; parameters are shared, not copied."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    body = deepcopy(model, shared)
    body.fc = nn.Identity()
    return body


def _eager(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    if precision == "fp32":
        return body
    fast = fold_batch_norms(body).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda images: fast(_dense(images).to(torch.bfloat16)).float()


def _compile(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    fast = fold_batch_norms(body).to(kind, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Frozen weights are laid out once as the processor's kernels want them.
    compiled = torch.compile(fast, dynamic=False, options={"freezing": True})

    def run(images: Tensor) -> Tensor:
        # Always a tensor of the same making, whether it was filled up or not: PyTorch would compile
        # anew for one that was made in inference mode.
        with torch.inference_mode(False), torch.no_grad():
            alike = images.to(kind, copy=True, memory_format=torch.channels_last)
            return compiled(alike).float()  # type: ignore[no-any-return,no-untyped-call]

    def start(count: int) -> Run:
        # By default PyTorch stops compiling after 8 shapes of the same code.
        with torch._dynamo.config.patch(recompile_limit=64):
            run(torch.zeros(count, *shape[1:], device=next(fast.parameters()).device))
        return run

    return _padded_batches(start, shape[0])


def _openvino(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    import openvino

    converted = openvino.convert_model(
        fold_batch_norms(body), example_input=torch.zeros(1, *shape[1:])
    )
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on every thread
    }

    def start(count: int) -> Run:
        # With the number of images left open, 32 of them take a third longer.
        fixed = converted.clone()
        fixed.reshape([count, *shape[1:]])
        # Colours last, as the pictures lie in memory: nothing has to be turned round.
        prepared = openvino.preprocess.PrePostProcessor(fixed)
        prepared.input().tensor().set_layout(openvino.Layout("NHWC"))
        prepared.input().model().set_layout(openvino.Layout("NCHW"))
        compiled = openvino.Core().compile_model(prepared.build(), "CPU", settings)
        request, lock = compiled.create_infer_request(), Lock()

        def run(images: Tensor) -> Tensor:
            rows = images.permute(0, 2, 3, 1).contiguous().numpy()  # (count, S, S, channels)
            with lock:  # a request computes one batch; a second caller would be refused
                return torch.from_numpy(request.infer([rows], share_inputs=True)[0])

        return run

    return _padded_batches(start, shape[0])


def _onnx(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    import onnxruntime

    written = io.BytesIO()
    program = torch.onnx.export(
        fold_batch_norms(body),
        (torch.zeros(2, *shape[1:]),),
        dynamic_shapes=({0: torch.export.Dim("images")},),
        dynamo=True,
        verbose=False,
    )
    program.save(written)  # type: ignore[union-attr, arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        written.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return run


def _padded_batches(start: Callable[[int], Run], most: int) -> Run:
    """Run any number of images in batches of few sizes, each prepared by ``start`` when it is first
    needed: ``most`` at once, and for what is left the next power of two, filled up with zeros.
    Several threads may run it."""
    ready: dict[int, Run] = {}
    lock = Lock()

    def whole(images: Tensor) -> Tensor:
        parts = []
        for part in torch.split(images, most):
            count = len(part)
            size = min(most, 1 << (count - 1).bit_length())
            with lock:
                if size not in ready:
                    ready[size] = start(size)
            if size > count:
                part = torch.cat([part, part.new_zeros(size - count, *part.shape[1:])])
            parts.append(ready[size](part)[:count])
        return torch.cat(parts)

    return whole


def _dense(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


_starting = Lock()
"""Held while an engine starts. Tracing, exporting and the filters of warnings belong to the
process: two threads that start engines would disturb each other."""


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing and exporting remark on what the libraries do to each other. Under `_starting`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
