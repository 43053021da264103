"""What the machine has: device, precision, threads, versions. The one reader of the hardware."""

from __future__ import annotations

import os
import platform
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from typing import Any, TypeVar

import torch

from .errors import RecipeError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Runtime:
    """Where and how a network runs.

    Args:
        device: ``cpu``, ``cuda`` or ``mps``.
        precision: ``"bf16"`` computes convolutions under autocast, ``"fp32"`` does not.
    """

    device: torch.device
    precision: str

    def autocast(self) -> torch.autocast:
        """The context in which the network runs forward."""
        enabled = self.precision == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def synchronize(self) -> None:
        """Wait until the device has done what it was given; a clock read after this is honest."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        elif self.device.type == "mps":
            torch.mps.synchronize()


def pick(device: str = "auto", precision: str = "auto") -> Runtime:
    """Choose a device (CUDA, then Apple's MPS, then the CPU) and a precision that it is fast in.

    Raises:
        RecipeError: a device or precision that this machine has not.
    """
    chosen = _device(device)
    if precision not in ("auto", "bf16", "fp32"):
        raise RecipeError(f"precision is auto, bf16 or fp32; got {precision!r}")
    if precision == "auto":
        precision = "bf16" if _has_fast_bf16(chosen) else "fp32"
    return Runtime(chosen, precision)


def _device(name: str) -> torch.device:
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(kind for kind, usable in there.items() if usable))
    kind = name.partition(":")[0]
    if kind not in there:
        raise RecipeError(f"device is auto, cpu, cuda, cuda:N or mps; got {name!r}")
    if not there[kind]:
        usable = ", ".join(kind for kind, usable in there.items() if usable)
        raise RecipeError(f"device {name!r} was asked for, but this machine has only: {usable}")
    return torch.device(name)


def _has_fast_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bfloat16 itself; where it is emulated, fp32 is faster."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        features = torch.cpu.get_capabilities()
        return bool(features.get("avx512_bf16") or features.get("amx_bf16"))
    return False


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``map`` in threads: results in order, at most two a worker computed ahead of their use.

    With 0 workers each is computed when it is asked for.
    """
    if workers == 0:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="worker") as pool:
        ahead: deque[Future[Result]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def default_workers() -> int:
    """Threads that read pictures: one a core, at most 16. They never take compute threads away."""
    return max(1, min(16, cores()))


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        return os.cpu_count() or 1


def available_memory() -> int:
    """Bytes of memory that can be taken without swapping; half a GiB where nobody tells."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            kilobytes = next(line.split()[1] for line in file if line.startswith("MemAvailable"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        return 512 * 2**20


def environment() -> dict[str, Any]:
    """The machine and the versions that a result was reached with, for ``environment.json``."""
    packages = ("resnetkit", "torch", "torchvision", "numpy", "pillow", "safetensors")
    versions = {name: metadata.version(name) for name in packages}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": torch.cpu.get_capabilities().get("cpu_name") or platform.processor(),
        "cores": cores(),
        "compute_threads": torch.get_num_threads(),
        "gpu": gpu,
        "versions": versions,
    }
