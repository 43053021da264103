"""Device, precision, memory layout, threads and ranks of a run.

This is the only module that asks PyTorch about the hardware. Code that does not need PyTorch is in
`limits` and `processes`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from importlib import metadata
from threading import Lock
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed, nn

from . import hosts
from .errors import RecipeError, ResnetkitError, TrainingError
from .limits import cores
from .processes import hosts_meeting, local_rank, local_world_size, rank, world_size

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

Result = TypeVar("Result")
Given = ParamSpec("Given")

PATIENCE = timedelta(days=1)
"""How long one rank waits for another, which may be evaluating or writing.

PyTorch's defaults (10 or 30 minutes) would end a run during a long evaluation. A rank that dies
does not cause such a wait: its connection breaks, and torchrun stops the others.
"""

NCCL_PATIENCE = timedelta(minutes=10)
"""How long an exchange between GPUs may take.

NCCL does not notice that a peer is gone. Ranks never wait in NCCL while another rank works alone:
they wait in `Runtime.on_main`, which uses gloo.
"""


@dataclass(frozen=True)
class Runtime:
    """The device, precision, rank and memory layout that a network runs with.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``"bf16"`` and ``"fp16"`` compute convolutions under autocast; ``"fp32"`` does
            not.
        rank: number of this process in the run, from 0; see `connected`.
        world_size: number of processes in the run.
        memory_format: layout of the network and its input; see `for_network`.
    """

    device: torch.device
    precision: str
    rank: int = 0
    world_size: int = 1
    memory_format: torch.memory_format = torch.contiguous_format

    def with_precision(self, wanted: str) -> Runtime:
        """Return this runtime with another precision; ``auto`` selects the fastest.

        Raises:
            RecipeError: an unknown precision, or one that the device does not support.
        """
        return replace(self, precision=_select_precision(wanted, self.device))

    def for_network(self, model: nn.Module, channels_last: bool = True) -> Runtime:
        """Return this runtime with the memory layout that suits ``model``."""
        layout = memory_format(model, self.device, self.precision, channels_last)
        return replace(self, memory_format=layout)

    def autocast(self) -> torch.autocast:
        """Return the autocast context for the forward pass."""
        kind = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.precision != "fp32")

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler; it is active only for fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")

    @contextmanager
    def tuned(self, enabled: bool) -> Iterator[None]:
        """Make cuDNN time its algorithms for each new shape and keep the fastest.

        This pays off if shapes repeat. The setting is process-wide; it is restored on exit.
        """
        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = before or (enabled and self.device.type == "cuda")
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work, so that timings are correct."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    @property
    def is_main(self) -> bool:
        """Whether this is the main rank, the one that writes and prints."""
        return self.rank == 0

    def on_main(
        self, function: Callable[Given, Result], *args: Given.args, **kwargs: Given.kwargs
    ) -> Result:
        """Call a function on the main rank and return its result on every rank.

        All ranks must call this. The result is pickled for the other ranks.

        Raises:
            TrainingError: on the other ranks, if the function failed on the main rank, which
                raises the original error.
        """
        if self.world_size == 1:
            return function(*args, **kwargs)
        message: list[Any] = [None, None]  # the result and the text of the error
        failure = None
        if self.rank == 0:
            try:
                message[0] = function(*args, **kwargs)
            except Exception as error:
                failure = error
                message[1] = str(error)
        distributed.broadcast_object_list(message, src=0, group=_patient_group)
        if failure is not None:
            raise failure
        if message[1] is not None:
            raise TrainingError(f"The main process failed: {message[1]}")
        result: Result = message[0]
        return result

    def gather(self, numbers: Sequence[float]) -> list[list[float]]:
        """Return the numbers from every rank, in rank order.

        All ranks must call this, with the same number of values.
        """
        own_row = torch.tensor(numbers, dtype=torch.float64)
        if self.world_size == 1:
            return [own_row.tolist()]
        rows = [torch.empty_like(own_row) for _ in range(self.world_size)]
        distributed.all_gather(rows, own_row, group=_patient_group)
        return [row.tolist() for row in rows]

    def gather_objects(self, value: Result) -> list[Result]:
        """Return the values from every rank, in rank order.

        All ranks must call this. The values are pickled for the other ranks.
        """
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        distributed.all_gather_object(values, value, group=_patient_group)
        return values


_patient_group: Any = None
"""Process group for `Runtime.on_main` and the gather methods: gloo with a `PATIENCE` timeout."""


def read_later(tensor: Tensor) -> Callable[[], Tensor]:
    """Start copying a tensor to the CPU, and return a function that returns the copy.

    The function waits only for this copy, not for work that was queued after it.
    """
    if tensor.device.type != "cuda":  # PyTorch does not order copies from Apple's GPUs
        return tensor.cpu
    copy = tensor.to("cpu", non_blocking=True)  # into pinned memory
    done = torch.cuda.current_stream(tensor.device).record_event()

    def wait_for_copy() -> Tensor:
        done.synchronize()
        return copy

    return wait_for_copy


_fp32_lock = Lock()
_saved_fp32: list[list[str]] = []  # one entry per open `full_fp32`


@contextmanager
def full_fp32(device: torch.device) -> Iterator[None]:
    """Compute fp32 in full precision.

    By default, cuDNN rounds the inputs of convolutions to TF32 (10 bits of mantissa) on GPUs that
    support it. The settings are process-wide; if several threads are inside, the last one to leave
    restores them.
    """
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    settings = torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn
    with _fp32_lock:
        _saved_fp32.append([setting.fp32_precision for setting in settings])
        for setting in settings:
            setting.fp32_precision = "ieee"
    try:
        yield
    finally:
        with _fp32_lock:
            saved = _saved_fp32[0] if len(_saved_fp32) == 1 else ["ieee"] * 3
            _saved_fp32.pop()
            for setting, value in zip(settings, saved, strict=True):
                setting.fp32_precision = value


_dtype_lock = Lock()
_saved_dtypes: list[torch.dtype] = []  # one entry per open `pytorch_defaults`


@contextmanager
def pytorch_defaults() -> Iterator[None]:
    """Compute with PyTorch's own defaults, and restore the caller's settings on exit.

    New tensors are float32 and on the CPU, gradients are recorded, and autocast is off. Every
    public function that builds or runs a network uses this, but never around a ``yield``: that
    would also change the settings for the code that consumes the generator. The default dtype is
    process-wide; if several threads are inside, the last one to leave restores it. The other
    settings are per thread.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":  # setting it slows down every PyTorch call
            stack.enter_context(torch.device("cpu"))
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        with _dtype_lock:
            _saved_dtypes.append(torch.get_default_dtype())
            torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            with _dtype_lock:
                saved = _saved_dtypes[0]
                _saved_dtypes.pop()
                if not _saved_dtypes:
                    torch.set_default_dtype(saved)


@contextmanager
def connected() -> Iterator[None]:
    """Connect the processes of one run while this context is open.

    CPU tensors are exchanged through gloo, GPU tensors through NCCL. Does nothing without torchrun.

    Raises:
        TrainingError: another process died.
    """
    if world_size() == 1 or distributed.is_initialized():
        yield
        return
    cuda = torch.cuda.is_available()
    has_own_gpu = cuda and local_rank() < torch.cuda.device_count()
    # Unlike set_device, this restores the caller's device, and allocates nothing on it.
    with torch.cuda.device(local_rank()) if has_own_gpu else nullcontext(), _process_group(cuda):
        yield


@contextmanager
def _process_group(cuda: bool) -> Iterator[None]:
    # torch.distributed.nn.functional captures the default process group when it is imported. If
    # PyTorch imported it while our group exists, that would keep the group and its threads alive
    # after it is destroyed, and a process that exits while such a thread is alive sometimes aborts.
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.nn import functional  # noqa: F401
    from torch.distributed.rendezvous import rendezvous

    global _patient_group
    backends = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    number, size = rank(), world_size()
    deadline = time.monotonic() + hosts.MEETING_SECONDS
    if not hosts_meeting():
        hosts.await_main_rank(number, deadline)
    base_store, *_ = next(rendezvous("env://", timeout=PATIENCE))
    peers = hosts.meet(base_store, number, size, deadline=deadline)
    # If these processes connect again, or torchrun restarts them, they must not read the addresses
    # of the first connection.
    store = PrefixStore(peers.token, base_store)
    limit = NCCL_PATIENCE if cuda else PATIENCE
    open_before = hosts.open_sockets()
    peers_alive = False  # whether the other ranks are still reachable, so that we wait for them
    try:
        distributed.init_process_group(
            backends, store=store, rank=number, world_size=size, timeout=limit
        )
        _patient_group = distributed.new_group(timeout=PATIENCE, backend="gloo") if cuda else None
        peers.watch(open_before)
        yield
        peers_alive = True
    except Exception as error:
        peers_alive = not _is_connection_error(error)
        if peers_alive:
            raise
        raise TrainingError(peers.explain_loss()) from error
    finally:
        if peers_alive:
            _wait_for_peers(store, number, size=size)
        _patient_group = None
        if distributed.is_initialized():
            distributed.destroy_process_group()
        peers.close()


def _wait_for_peers(store: Store, number: int, *, size: int) -> None:
    """Wait for all ranks to get here, for at most 5 seconds.

    Leaving early can drop data that a peer is still reading.
    """
    with suppress(distributed.DistError):  # if only this rank failed, the others get here too late
        store.set(f"left {number}", "")
        store.wait([f"left {each}" for each in range(size)], timedelta(seconds=5))


def _is_connection_error(error: Exception) -> bool:
    if isinstance(error, ResnetkitError) or not isinstance(error, RuntimeError):
        return False
    text = str(error)
    return isinstance(error, distributed.DistError) or "gloo" in text or "NCCL" in text


def pick(device: str = "auto", precision: str = "auto") -> Runtime:
    """Return the runtime for a device and precision; ``auto`` selects the fastest.

    The order of devices is CUDA, Apple's MPS, CPU.

    Raises:
        RecipeError: an unknown device or precision, or one that this machine does not have.
    """
    selected = _select_device(device)
    precision = _select_precision(precision, selected)
    return Runtime(selected, precision, rank=rank(), world_size=world_size())


def _select_device(name: str) -> torch.device:
    is_distributed = world_size() > 1
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available() and not is_distributed,  # no gradient exchange
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, usable in available.items() if usable)
    kind, _, number = name.partition(":")
    if kind not in available:
        raise RecipeError(f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}")
    if not available[kind]:
        usable = ", ".join(kind for kind, usable in available.items() if usable)
        raise RecipeError(f"device {name!r} is not available. This machine has only: {usable}")
    if is_distributed and kind == "cuda":
        return _select_own_gpu(name)
    gpus = torch.cuda.device_count() if kind == "cuda" else 0
    if name != kind and not (number.isdecimal() and int(number) < gpus):
        existing = f". This machine has cuda:0 to cuda:{gpus - 1}" if gpus else ""
        raise RecipeError(f"device must be auto, cpu, cuda, cuda:N or mps; got {name!r}{existing}")
    return torch.device(name)


def _select_own_gpu(name: str) -> torch.device:
    """Return the GPU whose number is the local rank."""
    if name != "cuda":
        raise RecipeError(
            f"With several processes, the device must be cuda, because each process uses its own "
            f"GPU; got {name!r}"
        )
    gpus = torch.cuda.device_count()
    if local_world_size() > gpus:
        count = "1 GPU" if gpus == 1 else f"{gpus} GPUs"
        raise RecipeError(
            f"{local_world_size()} processes were started on a machine with {count}. Start "
            f"torchrun with --nproc-per-node {gpus}, or use the CPU with --device cpu"
        )
    return torch.device("cuda", local_rank())


def _select_precision(wanted: str, device: torch.device) -> str:
    if wanted not in ("auto", "bf16", "fp16", "fp32"):
        raise RecipeError(f"precision must be auto, bf16, fp16 or fp32; got {wanted!r}")
    if wanted == "fp16" and device.type != "cuda":
        raise RecipeError(
            f"precision fp16 is for CUDA GPUs, and this run is on {device}. "
            "Set precision to auto, bf16 or fp32"
        )
    if wanted != "auto":
        return wanted
    if _has_fast_bf16(device):
        return "bf16"
    has_fast_fp16 = device.type == "cuda" and _capability(device) >= (7, 0)  # V100
    return "fp16" if has_fast_fp16 else "fp32"


def _has_fast_bf16(device: torch.device) -> bool:
    """Return whether the hardware supports bfloat16; fp32 is faster than emulating it."""
    if device.type == "cuda":
        return torch.version.hip is not None or _capability(device) >= (8, 0)
    if device.type == "cpu":
        features = _cpu_features()
        native = features.get("avx512_bf16") or features.get("amx_bf16")
        # ATEN_CPU_CAPABILITY can tell PyTorch not to use instructions that the processor has.
        return bool(native) and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return False


def memory_format(
    model: nn.Module, device: torch.device, precision: str = "fp32", wanted: bool = True
) -> torch.memory_format:
    """Return the memory layout for ``model`` and its input; only this function decides it.

    It is channels_last if that is fast and correct, else contiguous:

    - Apple devices: contiguous. Before torch 2.14, computing the gradient of batch norm under
      channels_last crashes or gives wrong values (pytorch/pytorch #175189, #181411), and #174345 is
      still open.
    - CUDA devices: contiguous in fp32, and on GPUs without tensor cores. Neither gains anything
      from channels_last.
    - CPUs: contiguous for a network with a strided 1x1 convolution with fewer than 8 channels. On
      processors without AVX-512, the kernel for its weight gradient writes past its buffer (oneDNN
      3.12, torch 2.14.1; found by benchmarks/shapes.py). All CPUs use the same layout, so that a
      run depends on the processor as little as possible.

    Args:
        model: the network.
        device: where it runs.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        wanted: False if the recipe turns channels_last off.
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
    """Return the compute capability of a GPU: (7, 5) for a T4, (8, 0) for an A100."""
    return torch.cuda.get_device_capability(device)


def _cpu_features() -> dict[str, Any]:
    """Return the processor's features; with older versions of PyTorch, only those needed here."""
    if hasattr(torch.cpu, "get_capabilities"):
        return dict(torch.cpu.get_capabilities())
    return {
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "amx_bf16": torch.cpu._is_amx_tile_supported(),
    }


@contextmanager
def restored_threads() -> Iterator[None]:
    """Restore the caller's number of compute threads on exit."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def environment(device: torch.device) -> dict[str, Any]:
    """Return a description of the machine and the package versions for a run on ``device``.

    This is the content of ``environment.json``.
    """
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
