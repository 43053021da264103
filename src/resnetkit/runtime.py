"""What the machine has: device, precision, threads, ranks, versions. The one reader of the hardware
and of what torchrun tells the processes that it starts."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import metadata
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed, nn

from .errors import RecipeError, ResnetkitError, TrainingError
from .limits import cpu_quota

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Result = TypeVar("Result")
Given = ParamSpec("Given")

PATIENCE = timedelta(days=1)
"""How long one rank waits for another, which may be measuring or writing: PyTorch's own limits (10
or 30 minutes) would end a run in a long evaluation. Waiting for a rank that has died is not left to
this: its connection breaks, and torchrun stops the others."""

NCCL_PATIENCE = timedelta(minutes=10)
"""How long an exchange between GPUs may take. NCCL does not notice that a peer is gone, and no rank
works alone while others wait in NCCL: they wait in `Runtime.on_main`, which goes through gloo."""


@dataclass(frozen=True)
class Runtime:
    """Where and how a network runs.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``"bf16"`` and ``"fp16"`` compute convolutions under autocast; ``"fp32"`` does
            not.
        rank: which of the processes of this run this one is, from 0; see `connected`.
        world_size: how many processes there are.
        memory_format: of the network and its input; see `for_network`.
    """

    device: torch.device
    precision: str
    rank: int = 0
    world_size: int = 1
    memory_format: torch.memory_format = torch.contiguous_format

    def for_network(self, model: nn.Module, channels_last: bool = True) -> Runtime:
        """Return this runtime with the memory layout that is right for ``model``."""
        layout = memory_format(model, self.device, self.precision, channels_last)
        return replace(self, memory_format=layout)

    def autocast(self) -> torch.autocast:
        """The context in which the network runs forward."""
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.precision != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Return what keeps the gradients of fp16 within its range; it does nothing for others."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @contextmanager
    def tuned(self, enabled: bool) -> Iterator[None]:
        """Let cuDNN try its algorithms on each new shape and keep the fastest: worth it where the
        same shapes come back. The setting is the process's; it is put back at the end."""
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or (enabled and self.device.type == "cuda")
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def synchronize(self) -> None:
        """Wait until the device has done what it was given; a clock read after this is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def is_main(self) -> bool:
        """Whether this is the main rank, the one that writes and prints."""
        return self.rank == 0

    def on_main(
        self, function: Callable[Given, Result], *args: Given.args, **named: Given.kwargs
    ) -> Result:
        """Call a function on the main rank and return its result on every rank.

        All ranks must call this. The result is pickled on its way.

        Raises:
            TrainingError: on the other ranks, where it failed on the first, which has the error.
        """
        if self.world_size == 1:
            return function(*args, **named)
        answer: list[Any] = [None, None]  # the result, or what went wrong
        failure = None
        if self.rank == 0:
            try:
                answer[0] = function(*args, **named)
            except Exception as error:
                failure, answer[1] = error, str(error)
        distributed.broadcast_object_list(answer, src=0, group=_patient_group)
        if failure is not None:
            raise failure
        if answer[1] is not None:
            raise TrainingError(f"the first process could not go on: {answer[1]}")
        result: Result = answer[0]
        return result

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """The numbers of every rank, in the order of the ranks; all ranks must come here with
        equally many."""
        mine = torch.tensor(numbers, dtype=torch.float64)
        if self.world_size == 1:
            return [mine.tolist()]
        rows = [torch.empty_like(mine) for _ in range(self.world_size)]
        distributed.all_gather(rows, mine, group=_patient_group)
        return [row.tolist() for row in rows]


_patient_group: Any = None
"""What `Runtime.on_main` and `Runtime.gather` go through: gloo, with `PATIENCE`."""


def fetch(tensor: Tensor) -> Callable[[], Tensor]:
    """Start to copy a tensor to the CPU. The function that is returned waits for that copy alone,
    not for work that was queued after it."""
    if tensor.device.type != "cuda":  # PyTorch promises no order for copies from Apple's GPUs
        return tensor.cpu
    copy = tensor.to("cpu", non_blocking=True)  # into pinned memory
    done = torch.cuda.current_stream(tensor.device).record_event()

    def read() -> Tensor:
        done.synchronize()
        return copy

    return read


_fp32_lock = Lock()
_fp32_before: list[list[str]] = []  # one entry for each `full_fp32` that is open


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Compute fp32 in fp32. By default cuDNN rounds the factors of convolutions to TF32, with 10
    bits, on cards that have it. The settings are the process's: the last of several threads to
    leave puts them back."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    settings = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    with _fp32_lock:
        _fp32_before.append([setting.fp32_precision for setting in settings])
        for setting in settings:
            setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _fp32_lock:
            before = _fp32_before[0] if len(_fp32_before) == 1 else ["ieee"] * 3
            _fp32_before.pop()
            for setting, value in zip(settings, before, strict=True):
                setting.fp32_precision = value


_dtype_lock = Lock()
_dtypes_before: list[torch.dtype] = []  # one entry for each `pytorch_defaults` that is open


@contextmanager
def pytorch_defaults() -> Iterator[None]:
    """Compute as in a fresh process: new tensors are float32 and on the CPU, gradients are
    recorded, and there is no autocast, whatever the caller has set. All of it is put back.

    Around every public function that makes or runs a network. Not around a ``yield``, which would
    set the caller's thread too. The default dtype is the process's, so the last of several threads
    to leave puts it back; the rest belongs to the thread.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # else it would slow down every call
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        with _dtype_lock:
            _dtypes_before.append(torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with _dtype_lock:
                before = _dtypes_before[0]
                _dtypes_before.pop()
                if not _dtypes_before:
                    torch.set_default_dtype(before)


def world_size() -> int:
    """How many processes torchrun started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """How many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def rank() -> int:
    """Which of them this one is. The first, 0, alone writes, prints and measures."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


@contextmanager
def connected() -> Iterator[None]:
    """While this is open, the processes of one run can reach each other: tensors on the CPU go
    through gloo, those on GPUs through NCCL. Without torchrun it does nothing.

    Raises:
        TrainingError: another process died, and the connection to it with it.
    """
    if world_size() == 1 or distributed.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    own = cuda and _local_rank() < torch.cuda.device_count()
    # Unlike set_device, this puts the caller's device back, and takes no memory of that one.
    with torch.cuda.device(_local_rank()) if own else nullcontext(), _process_group(cuda):
        yield


@contextmanager
def _process_group(cuda: bool) -> Iterator[None]:
    # Functions of this module have the group of all processes as a default, evaluated when the
    # module is loaded. Loaded by PyTorch later on, it would keep that group and its threads alive
    # after its end, and a process that ends beside such a thread is aborted now and then.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.nn import functional  # noqa: F401
    from torch.distributed.rendezvous import rendezvous

    global _patient_group
    backends = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    board, number, size = next(rendezvous("env://", timeout=PATIENCE))
    # A second connection of these processes must not read the addresses of the first.
    store = PrefixStore(f"{(board.add('connections', 1) - 1) // size}", board)
    limit = NCCL_PATIENCE if cuda else PATIENCE
    distributed.init_process_group(
        backends, store=store, rank=number, world_size=size, timeout=limit
    )
    _patient_group = distributed.new_group(timeout=PATIENCE, backend="gloo") if cuda else None
    together = False  # whether the others come to this end too
    try:
        yield
        together = True
    except Exception as error:
        together = not _is_of_the_connection(error)
        if together:
            raise
        raise TrainingError(
            "another process of this run has ended; its own message says why"
        ) from error
    finally:
        if together:
            _wait_for_all(store, number, size)
        _patient_group = None
        distributed.destroy_process_group()


def _wait_for_all(store: Store, number: int, size: int) -> None:
    """Until all have come here, or a few seconds: who hangs up while another still reads what was
    exchanged last takes it from the other's hands."""
    with suppress(distributed.DistError):  # one has failed where the others have not
        store.set(f"left {number}", "")
        store.wait([f"left {each}" for each in range(size)], timedelta(seconds=5))


def _is_of_the_connection(error: Exception) -> bool:
    if isinstance(error, ResnetkitError) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return isinstance(error, distributed.DistError) or "gloo" in text or "NCCL" in text


def _local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", 0))


def pick(device: str = "auto", precision: str = "auto") -> Runtime:
    """Choose a device (CUDA, then Apple's MPS, then the CPU) and a precision that it is fast in.

    Raises:
        RecipeError: a device or precision that this machine has not.
    """
    chosen = _device(device)
    if precision not in ("auto", "bf16", "fp16", "fp32"):
        raise RecipeError(f"precision is auto, bf16, fp16 or fp32; got {precision!r}")
    if precision == "fp16" and chosen.type != "cuda":
        raise RecipeError(
            f"precision fp16 is for CUDA GPUs, and this run is on {chosen}. "
            "Set precision to auto, bf16 or fp32"
        )
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(chosen) else "fp32"
        if precision == "fp32" and chosen.type == "cuda" and _capability(chosen) >= (7, 0):
            precision = "fp16"  # before 7.0 (V100) it is no faster
    return Runtime(chosen, precision, rank(), world_size())


def _device(name: str) -> torch.device:
    several = world_size() > 1
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not several,  # it cannot exchange gradients
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, usable in there.items() if usable)
    kind = name.partition(":")[0]
    if kind not in there:
        raise RecipeError(f"device is auto, cpu, cuda, cuda:N or mps; got {name!r}")
    if not there[kind]:
        usable = ", ".join(kind for kind, usable in there.items() if usable)
        raise RecipeError(f"device {name!r} was asked for, but this machine has only: {usable}")
    if several and kind == "cuda":
        return _own_gpu(name)
    number, gpus = name.partition(":")[2], torch.cuda.device_count() if kind == "cuda" else 0
    if name != kind and not (number.isdecimal() and int(number) < gpus):
        fitting = f"; of this machine's GPUs cuda:0 to cuda:{gpus - 1} are there" if gpus else ""
        raise RecipeError(f"device is auto, cpu, cuda, cuda:N or mps{fitting}; got {name!r}")
    return torch.device(name)


def _own_gpu(name: str) -> torch.device:
    """Each process of a machine has the GPU of its number there."""
    if name != "cuda":
        raise RecipeError(f"each process has a GPU of its own: expected cuda, got {name!r}")
    gpus = torch.cuda.device_count()
    if local_world_size() > gpus:
        raise RecipeError(
            f"{local_world_size()} processes were started on a machine with {gpus} GPU(s): start "
            f"torchrun with --nproc-per-node {gpus}, or compute on the CPU with --device cpu"
        )
    return torch.device("cuda", _local_rank())


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; where it is emulated, fp32 is faster."""
    if device.type == "cuda":
        return torch.version.hip is not None or _capability(device) >= (8, 0)
    if device.type == "cpu":
        features = _cpu_features()
        native = features.get("avx512_bf16") or features.get("amx_bf16")
        # The processor may have it, and PyTorch be told not to use it (ATEN_CPU_CAPABILITY).
        return bool(native) and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return False


def memory_format(
    model: nn.Module, device: torch.device, precision: str = "fp32", wanted: bool = True
) -> torch.memory_format:
    """Return the memory layout in which ``model`` and its input run. This is the one place that
    decides.

    channels_last where it is fast and right, contiguous otherwise:

    - on Apple devices contiguous: the gradient of batch norm under channels_last is wrong or ends
      the process before torch 2.14 (pytorch/pytorch 175189, 181411), and 174345 is open;
    - on CUDA devices contiguous in fp32, and on cards without tensor cores, which gain nothing;
    - on CPUs contiguous for a network with a strided 1x1 convolution of fewer than 8 channels: on
      processors without AVX-512 the kernel of its weight gradient writes past its buffer (oneDNN
      3.12, torch 2.14.1; benchmarks/shapes.py finds it). Every CPU does the same, so that a run
      does not depend on the processor more than it must.

    Args:
        wanted: False for a recipe that turns channels_last off.
    """
    if not wanted or device.type == "mps":
        return torch.contiguous_format
    if device.type == "cuda":
        fast = precision != "fp32" and torch.cuda.get_device_capability(device) >= (7, 0)
        return torch.channels_last if fast else torch.contiguous_format
    if any(_breaks_channels_last(module) for module in model.modules()):
        return torch.contiguous_format
    return torch.channels_last


def _breaks_channels_last(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and max(module.stride) > 1
        and module.in_channels // module.groups < 8
    )


def _capability(device: torch.device) -> tuple[int, int]:
    """Of a CUDA GPU: (7, 5) for a T4, (8, 0) for an A100."""
    return torch.cuda.get_device_capability(device)


def _cpu_features() -> dict[str, Any]:
    """Return what PyTorch says about the processor; older versions say only what is needed here."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


def default_workers() -> int:
    """Return how many threads read images: one for each core, at most 16. Processes on one machine
    share its cores; readers never take compute threads away."""
    return max(1, min(16, cores() // local_world_size()))


def cores() -> int:
    """Return the cores that this process may use, at least 1: its affinity, and the CPU quota of
    its container rounded up."""
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


@contextmanager
def restored_threads() -> Iterator[None]:
    """Give the caller its number of compute threads back at the end."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device) -> dict[str, Any]:
    """The machine and the versions that a result was reached with on ``device``, for
    ``environment.json``."""
    packages = ("resnetkit", "torch", "torchvision", "numpy", "pillow", "safetensors")
    versions = {name: metadata.version(name) for name in packages}
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _cpu_features().get("cpu_name") or platform.processor(),
        "cores": cores(),
        "compute_threads": torch.get_num_threads(),
        "processes": world_size(),
        "gpu": gpu,
        "versions": versions,
    }
