"""Measure a model's speed on this machine, and compare it with the machine's limit.

Each row is measured in a fresh process, so other rows do not affect its peak memory. A
measurement covers the model from normalized images to logits, without gradients. The images are
random numbers in memory: reading and decoding files is not measured.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from .. import runtime
from ..errors import ResnetkitError
from ..models.summary import summarize
from ..models.weights import modelfile
from ..storage import sha256
from . import engines

BATCH_SIZES = (1, 8, 32)
SIDE = 2048
"""Side of the square matrices whose product measures the machine's limit."""


@runtime.pytorch_defaults()
def measure_model(
    model_file: str | Path,
    names: Sequence[str] | None = None,
    batch_sizes: Sequence[int] | None = None,
    seconds: float = 3.0,
    *,
    device: str = "auto",
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure the throughput and latency of a model file.

    Args:
        model_file: a model file.
        names: the engines; by default all that are installed, except ``compile``, which is slow
            to start.
        batch_sizes: images per batch; by default `BATCH_SIZES`.
        seconds: the time for each engine, precision and batch size.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        note: called with a line of text before each measurement.

    Returns:
        The content of ``resnet bench --format json``: the ``limits`` (multiply-adds per second of a
        matrix product, by precision), the rows of ``throughput`` and ``latency``, and the machine.

    Raises:
        ModelFileError: the file is not a valid model file.
        RecipeError: an engine or the device is not available on this machine.
    """
    model, header = modelfile.read(model_file)
    torch_device = runtime.pick(device, "fp32").device
    size = header.preprocessing.crop_size
    choices = _list_choices(names, torch_device)
    note("Measuring the machine's limit: the product of two matrices.")
    limits = {
        precision: matmul_limit(precision, torch_device, seconds=seconds)
        for _, precision in choices
    }
    result: dict[str, Any] = {
        "model": sha256(Path(model_file))[:12],
        "architecture": header.architecture,
        "image_size": size,
        "macs": summarize(model, size).macs,
        "device": str(torch_device),
        "limits": limits,
        "throughput": [],
        "latency": [],
        "machine": runtime.environment(torch_device),
    }
    for choice in choices:
        note(f"Measuring {choice.engine}, {choice.precision}.")
        arguments = [str(model_file), *choice, str(torch_device), str(seconds)]
        for batch_size in batch_sizes or BATCH_SIZES:
            row = _measure_in_process([*arguments, str(batch_size)])
            macs_per_second = row["pictures_per_second"] * result["macs"]
            share = macs_per_second / limits[choice.precision]
            result["throughput"].append({**row, "share_of_limit": share})
        result["latency"].append(_measure_in_process([*arguments, "0"]))
    return result


def bench_table(result: dict[str, Any]) -> str:
    """Return the result of `measure_model` as text."""
    limits = ", ".join(f"{kind} {rate / 1e9:,.0f}" for kind, rate in result["limits"].items())
    machine = result["machine"]
    lines = [
        f"{result['architecture']} at {result['image_size']} px, "
        f"{result['macs'] / 1e9:.3f} G multiply-adds per image, on {result['device']} "
        f"({machine['compute_threads']} threads of {machine['processor']})",
        f"matrix product, G multiply-adds per second: {limits}",
        "",
        f"{'engine':9} {'kind':5} {'batch':>5}  {'images/s':>10}  {'of limit':>8}  peak MB",
    ]
    for row in result["throughput"]:
        memory = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:7,.0f}"
        lines.append(
            f"{row['engine']:9} {row['precision']:5} {row['batch_size']:5}  "
            f"{row['pictures_per_second']:10.1f}  {row['share_of_limit']:8.1%}  {memory}"
        )
    lines += ["", f"{'one image':15} {'p50 ms':>8}  {'p95 ms':>8}  {'n':>5}  {'start s':>8}"]
    for row in result["latency"]:
        lines.append(
            f"{row['engine']:9} {row['precision']:5} {row['p50_ms']:8.1f}  {row['p95_ms']:8.1f}  "
            f"{row['n']:5}  {row['start_seconds']:8.1f}"
        )
    return "\n".join(lines)


def matmul_limit(precision: str, device: torch.device, seconds: float) -> float:
    """Return the multiply-adds per second of a square matrix product, the best of several runs."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    rng = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, device=device, generator=rng).to(dtype) for _ in range(2))
    with torch.inference_mode():
        times = _time_runs(lambda: a @ b, device, seconds=seconds)
    return SIDE**3 / min(times)


def _list_choices(names: Sequence[str] | None, device: torch.device) -> list[engines.EngineChoice]:
    """Return each engine in each precision that it supports and that is fast on this machine."""
    precisions = ["fp32"] + (["bf16"] if runtime.pick(str(device)).precision == "bf16" else [])
    choices = []
    for name in names if names is not None else ("eager", "openvino", "onnx"):
        for precision in precisions if name != "onnx" else ["fp32"]:
            try:
                requested = engines.check_engine(name, precision, device)
            except ResnetkitError:
                if names is not None:
                    raise
                continue  # not installed
            choices.append(engines.resolve_engine(requested, device, many=True))
    return list(dict.fromkeys(choices))


def _measure_in_process(arguments: list[str]) -> dict[str, Any]:
    """Run `_measure_row` in its own process."""
    command = [sys.executable, "-m", "resnetkit.inference.bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ResnetkitError(f"{' '.join(arguments[1:3])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _measure_row(
    file: str, choice: engines.EngineChoice, device: torch.device, seconds: float, batch_size: int
) -> dict[str, Any]:
    """Measure the throughput of one engine or, if ``batch_size`` is 0, the latency of one image."""
    model, header = modelfile.read(file)
    layout = runtime.memory_format(model, device)
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    side = header.preprocessing.crop_size
    channels = header.preprocessing.channels
    images = torch.randn(batch_size or 1, channels, side, side, device=device)
    images = images.contiguous(memory_format=layout)
    started = time.perf_counter()
    engine = engines.start_engine(choice, model, size=side, device=device, batch_size=len(images))
    engine(images)
    start_seconds = time.perf_counter() - started
    times = _time_runs(lambda: engine(images), device, seconds=seconds)
    row = choice._asdict()
    if batch_size:
        return {
            **row,
            "batch_size": batch_size,
            "pictures_per_second": batch_size / median(times),
            "peak_memory_mb": peak_memory(device),
        }
    p50, p95 = (1000 * np.percentile(times, [50, 95])).tolist()
    return {**row, "p50_ms": p50, "p95_ms": p95, "n": len(times), "start_seconds": start_seconds}


def _time_runs(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Return the time of each run in seconds: at least three runs, after two to warm up."""
    device_runtime = runtime.Runtime(device, "fp32")
    times: list[float] = []
    for number in range(10**9):
        started = time.perf_counter()
        run()
        device_runtime.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - started)
        if len(times) >= 3 and sum(times) >= seconds:
            break
    return times


def peak_memory(device: torch.device) -> float | None:
    """Return the peak memory of this process in MB; None on Windows.

    On CUDA, it is the peak memory of the tensors on the device.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would include the parent's peak from before our start
        words = status.read_text(encoding="ascii").split()
        return int(words[words.index("VmHWM:") + 1]) * 1024 / 1e6
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


if __name__ == "__main__":
    file, engine, precision, device, seconds, batch_size = sys.argv[1:]
    choice = engines.EngineChoice(engine, precision)
    result = _measure_row(
        file,
        choice,
        device=torch.device(device),
        seconds=float(seconds),
        batch_size=int(batch_size),
    )
    print(json.dumps(result))
