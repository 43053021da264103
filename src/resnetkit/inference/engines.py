"""Engines that run a model: eager PyTorch, torch.compile, OpenVINO, ONNX Runtime.

An engine computes the features, which are the input to the last layer. The last layer itself, a
small matrix, always runs in PyTorch in fp32. ``eager`` in fp32 is the model unchanged: the
reference for all other engines (benchmarks/engines_agree.py).
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
"""Two logits are nearly tied below this difference, in standard deviations of an image's logits.

In bf16, the error in a logit was measured as 0.0025 of that deviation (root mean square,
ResNet-50). The error in a difference is 1.4 times as large; `TIE` is about three times that.
"""

Run = Callable[[Tensor], Tensor]
"""``(n, channels, S, S)`` float32 -> ``(n, C)`` float32."""


class EngineChoice(NamedTuple):
    """An engine and the precision of its convolutions."""

    engine: str
    precision: str


@dataclass(frozen=True)
class Engine:
    """A model that is ready to run.

    Args:
        choice: its name and precision.
        versions: the versions of the libraries that run it.
        features: maps normalized images ``(N, channels, S, S)`` float32, for any ``N``, to the
            input to the last layer, ``(N, C)`` float32.
        head: the last layer, which maps features to logits ``(N, classes)`` float32.
        reference: computes the same as ``features``, with the eager fp32 model.
    """

    choice: EngineChoice
    versions: str
    features: Run
    head: nn.Module
    reference: Run

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features ``(N, C)`` and logits ``(N, classes)``, both float32.

        In bf16, rounding could decide between two nearly equal classes. Images with such a near tie
        are computed again with the reference.

        Args:
            images: ``(N, channels, S, S)`` float32, normalized.
        """
        with torch.inference_mode(), runtime.full_fp32(images.device):
            vectors = self.features(images)
            logits = self.head(vectors)
            close = _near_ties(logits) if self.choice.precision == "bf16" else None
            if close is not None and len(close):
                exact = self.reference(images[close])
                vectors = vectors.clone()
                logits = logits.clone()
                vectors[close] = exact
                logits[close] = self.head(exact)
        return vectors, logits

    def __str__(self) -> str:
        return f"engine {self.choice.engine}, {self.choice.precision} ({self.versions})"


def check_engine(engine: str, precision: str, device: torch.device) -> EngineChoice:
    """Return the requested engine and precision if this machine supports them.

    Raises:
        RecipeError: the name is unknown, a library or compiler is missing, or the engine does not
            support the precision or device.
    """
    if engine not in ENGINES:
        raise RecipeError(f"engine must be {', '.join(ENGINES[:-1])} or onnx; got {engine!r}")
    if precision not in PRECISIONS:
        raise RecipeError(f"precision must be auto, fp32 or bf16; got {precision!r}")
    missing = _missing_packages(engine)
    if missing:
        raise RecipeError(
            f"Engine {engine} needs {', '.join(missing)}: "
            f'pip install "resnetkit[{engine}]", or use --engine auto'
        )
    if engine in _PACKAGES and device.type != "cpu":
        raise RecipeError(f"Engine {engine} runs only on the CPU: add --device cpu")
    if (engine, precision) == ("onnx", "bf16"):
        raise RecipeError(
            "Engine onnx supports only fp32. For bf16, use eager, compile or openvino"
        )
    if engine == "compile" and not any(map(shutil.which, _COMPILERS)):
        raise RecipeError(
            "Engine compile needs a C++ compiler, such as g++. Install one, or use --engine auto"
        )
    return EngineChoice(engine, precision)


def resolve_engine(requested: EngineChoice, device: torch.device, many: bool) -> EngineChoice:
    """Replace ``auto`` in a request with an engine and a precision.

    Eager fp32 starts immediately, so it is used for a few images. For many images, a CPU that
    multiplies bf16 natively is fastest in bf16 (OpenVINO, then PyTorch). Other CPUs use fp32
    (OpenVINO, then ONNX Runtime). ``compile`` was never faster than these and takes longest to
    start. Measured on two cores: benchmarks/predict_cpu_2026-11-20.md.

    Args:
        requested: the result of `check_engine`.
        device: the device to run on.
        many: whether there are enough images to make up for an engine's start-up time.
    """
    engine, precision = requested
    fast = precision if precision != "auto" else runtime.pick(str(device), "auto").precision
    if device.type != "cpu":  # engines were not measured, so use the reference
        fast = "fp32" if precision == "auto" else precision
        installed = ["eager"]
    else:
        order = ["openvino", "eager"] if fast == "bf16" else ["openvino", "onnx", "eager"]
        installed = [name for name in order if not _missing_packages(name)]
    if engine == "auto" and not many:
        return EngineChoice("eager", "fp32" if precision == "auto" else precision)
    if engine == "auto":
        return EngineChoice(installed[0], fast)
    if precision == "auto":  # the engine was requested by name
        return EngineChoice(engine, "fp32" if engine in ("eager", "onnx") else fast)
    return requested


def _missing_packages(engine: str) -> list[str]:
    return [package for package in _PACKAGES.get(engine, ()) if find_spec(package) is None]


def start_engine(
    choice: EngineChoice, model: nn.Module, size: int, device: torch.device, batch_size: int
) -> Engine:
    """Start an engine for a model.

    Args:
        choice: the engine and precision, without ``auto``; see `resolve_engine`.
        model: in eval mode, on ``device``; it is not changed.
        size: the side of its input images in pixels.
        device: the device to run on.
        batch_size: the largest batch that ``compile`` and ``openvino`` prepare; larger batches are
            split. A single image runs in a batch of one.
    """
    head: nn.Module = model.fc  # type: ignore[assignment]
    starters = {
        "eager": _start_eager,
        "compile": _start_compile,
        "openvino": _start_openvino,
        "onnx": _start_onnx,
    }
    body = network_without_head(model)
    shape = (batch_size, in_channels(model), size, size)
    with _start_lock, _no_warnings(), torch.no_grad():
        run = starters[choice.engine](body, choice.precision, shape)
    packages = ("torch", *_PACKAGES.get(choice.engine, ()))
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    return Engine(choice, versions, features=run, head=head, reference=body)


def fold_batch_norms(model: nn.Module) -> nn.Module:
    """Return a copy with every batch norm folded into the convolution before it.

    The copy computes the same function in eval mode with half the layers. It relies on the networks
    of `resnetkit.models` registering every batch norm directly after its convolution.
    """
    model = deepcopy(model).eval()
    for module in list(model.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in pairwise(children):
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue
            if norm.running_mean is not None:
                setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return model


def _near_ties(logits: Tensor) -> Tensor:
    """Return the rows whose two largest logits differ by less than `TIE` standard deviations."""
    if logits.shape[1] < 2:
        return torch.empty(0, dtype=torch.long)
    best = logits.topk(2, 1).values
    return (best[:, 0] - best[:, 1] < TIE * logits.std(1)).nonzero()[:, 0]


def network_without_head(model: nn.Module) -> nn.Module:
    """Return the model without its last layer; parameters are shared, not copied."""
    shared: dict[int, Any] = {id(t): t for t in (*model.parameters(), *model.buffers())}
    body = deepcopy(model, shared)
    body.fc = nn.Identity()
    return body


def _start_eager(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    if precision == "fp32":
        return body
    fast = fold_batch_norms(body).to(torch.bfloat16, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return lambda images: fast(_channels_last(images).to(torch.bfloat16)).float()


def _start_compile(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    fast = fold_batch_norms(body).to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    # Freezing lays the weights out once, in the form that the CPU kernels need.
    compiled = torch.compile(fast, dynamic=False, options={"freezing": True})

    def run(images: Tensor) -> Tensor:
        # PyTorch recompiles for a tensor created in inference mode, so always pass a normal copy,
        # whether or not the batch was padded.
        with torch.inference_mode(False), torch.no_grad():
            inputs = images.to(dtype, copy=True, memory_format=torch.channels_last)
            return compiled(inputs).float()  # type: ignore[no-any-return,no-untyped-call]

    def prepare(count: int) -> Run:
        # By default, PyTorch stops compiling after 8 shapes of the same code.
        with torch._dynamo.config.patch(recompile_limit=64):
            run(torch.zeros(count, *shape[1:], device=next(fast.parameters()).device))
        return run

    return _padded_batches(prepare, shape[0])


def _start_openvino(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    import openvino

    example = torch.zeros(1, *shape[1:])
    converted = openvino.convert_model(fold_batch_norms(body), example_input=example)
    settings = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time on all threads
    }

    def prepare(count: int) -> Run:
        # A dynamic batch size would make a batch of 32 a third slower.
        fixed = converted.clone()
        fixed.reshape([count, *shape[1:]])
        # The images are channels-last in memory: taking them as NHWC avoids a transpose.
        prepared = openvino.preprocess.PrePostProcessor(fixed)
        prepared.input().tensor().set_layout(openvino.Layout("NHWC"))
        prepared.input().model().set_layout(openvino.Layout("NCHW"))
        compiled = openvino.Core().compile_model(prepared.build(), "CPU", settings)
        request = compiled.create_infer_request()
        lock = Lock()

        def run(images: Tensor) -> Tensor:
            rows = images.permute(0, 2, 3, 1).contiguous().numpy()  # (count, S, S, channels)
            with lock:  # a busy request rejects a second caller
                return torch.from_numpy(request.infer([rows], share_inputs=True)[0])

        return run

    return _padded_batches(prepare, shape[0])


def _start_onnx(body: nn.Module, precision: str, shape: tuple[int, ...]) -> Run:
    import onnxruntime

    buffer = io.BytesIO()
    program = torch.onnx.export(
        fold_batch_norms(body),
        (torch.zeros(2, *shape[1:]),),
        dynamic_shapes=({0: torch.export.Dim("images")},),
        dynamo=True,
        verbose=False,
    )
    program.save(buffer)  # type: ignore[union-attr, arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        buffer.getvalue(), options, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {name: images.contiguous().numpy()})[0])

    return run


def _padded_batches(prepare: Callable[[int], Run], limit: int) -> Run:
    """Return a function that runs any number of images in batches of a few fixed sizes.

    Images are split into batches of ``limit``. The remainder is padded with zeros to the next power
    of two. Each size is prepared on its first use. The function is thread-safe.
    """
    prepared: dict[int, Run] = {}
    lock = Lock()

    def run_padded(images: Tensor) -> Tensor:
        outputs = []
        for batch in torch.split(images, limit):
            count = len(batch)
            size = min(limit, 1 << (count - 1).bit_length())
            with lock:
                if size not in prepared:
                    prepared[size] = prepare(size)
            if size > count:
                batch = torch.cat([batch, batch.new_zeros(size - count, *batch.shape[1:])])
            outputs.append(prepared[size](batch)[:count])
        return torch.cat(outputs)

    return run_padded


def _channels_last(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last)


_start_lock = Lock()
"""Held while an engine starts. Tracing, exporting and the warning filters are process-wide, so two
threads that start engines would interfere with each other."""


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Silence the libraries' warnings while tracing and exporting, with `_start_lock` held."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
