"""How fast a model answers on this machine, and how far that is from what the machine can do.

Each row is measured in a fresh process, so that its peak memory is its own. A measurement is the
whole answer, from normalised images to logits, without gradients. Images are random numbers that
lie ready: reading and decoding files is not measured.
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
SIDE = 2048  # of the square matrices whose product is the machine's limit


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
    """Measure a model file; takes about ``seconds`` for each engine, precision and batch size.

    Args:
        names: engines; by default those that are installed, without ``compile``, which takes long
            to start.
        batch_sizes: pictures at once; by default `BATCH_SIZES`.
        note: is told what is measured.

    Returns:
        What ``resnet bench --format json`` prints: ``limits`` (multiply-adds a second of a matrix
        product, by precision), ``throughput`` and ``latency`` (rows), and the machine.

    Raises:
        ModelFileError: the file is no model file.
        RecipeError: an engine or device that this machine has not.
    """
    network, header = modelfile.read(model_file)
    chosen = runtime.pick(device, "fp32").device
    size = header.preprocessing.crop_size
    choices = _choices(names, chosen)
    note("Measuring the product of two matrices: the machine's limit.")
    limits = {kind: matmul_limit(kind, chosen, seconds) for _, kind in choices}
    found: dict[str, Any] = {
        "model": sha256(Path(model_file))[:12],
        "architecture": header.architecture,
        "image_size": size,
        "macs": summarize(network, size).macs,
        "device": str(chosen),
        "limits": limits,
        "throughput": [],
        "latency": [],
        "machine": runtime.environment(chosen),
    }
    for choice in choices:
        note(f"Measuring {choice.engine}, {choice.precision}.")
        task = [str(model_file), *choice, str(chosen), str(seconds)]
        for count in batch_sizes or BATCH_SIZES:
            row = _apart([*task, str(count)])
            rate = row["pictures_per_second"] * found["macs"]
            found["throughput"].append({**row, "share_of_limit": rate / limits[choice.precision]})
        found["latency"].append(_apart([*task, "0"]))
    return found


def bench_table(found: dict[str, Any]) -> str:
    """What `measure_model` found, to be read."""
    limits = ", ".join(f"{kind} {rate / 1e9:,.0f}" for kind, rate in found["limits"].items())
    machine = found["machine"]
    lines = [
        f"{found['architecture']} at {found['image_size']} px, "
        f"{found['macs'] / 1e9:.3f} G multiply-adds a picture, on {found['device']} "
        f"({machine['compute_threads']} threads of {machine['processor']})",
        f"matrix product, G multiply-adds a second: {limits}",
        "",
        f"{'engine':9} {'kind':5} {'batch':>5}  {'pictures/s':>10}  {'of limit':>8}  peak MB",
    ]
    for row in found["throughput"]:
        memory = "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:7,.0f}"
        lines.append(
            f"{row['engine']:9} {row['precision']:5} {row['batch_size']:5}  "
            f"{row['pictures_per_second']:10.1f}  {row['share_of_limit']:8.1%}  {memory}"
        )
    lines += ["", f"{'one picture':15} {'p50 ms':>8}  {'p95 ms':>8}  {'n':>5}  {'start s':>8}"]
    for row in found["latency"]:
        lines.append(
            f"{row['engine']:9} {row['precision']:5} {row['p50_ms']:8.1f}  {row['p95_ms']:8.1f}  "
            f"{row['n']:5}  {row['start_seconds']:8.1f}"
        )
    return "\n".join(lines)


def matmul_limit(precision: str, device: torch.device, seconds: float) -> float:
    """Multiply-adds a second of the product of two square matrices: the best of several."""
    kind = torch.bfloat16 if precision == "bf16" else torch.float32
    own = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(SIDE, SIDE, device=device, generator=own).to(kind) for _ in range(2))
    with torch.inference_mode():
        taken = _times(lambda: a @ b, device, seconds)
    return SIDE**3 / min(taken)


def _choices(names: Sequence[str] | None, device: torch.device) -> list[engines.EngineChoice]:
    """Each engine in each precision that it has and that is fast here."""
    kinds = ["fp32"] + (["bf16"] if runtime.pick(str(device)).precision == "bf16" else [])
    found = []
    for name in names if names is not None else ("eager", "openvino", "onnx"):
        for kind in kinds if name != "onnx" else ["fp32"]:
            try:
                asked = engines.check_engine(name, kind, device)
            except ResnetkitError:
                if names is not None:
                    raise
                continue  # not installed here
            found.append(engines.resolve_engine(asked, device, many=True))
    return list(dict.fromkeys(found))


def _apart(arguments: list[str]) -> dict[str, Any]:
    """Run `_one_row` in its own process."""
    command = [sys.executable, "-m", "resnetkit.inference.bench", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ResnetkitError(f"{' '.join(arguments[1:3])} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _one_row(
    file: str, choice: engines.EngineChoice, device: torch.device, seconds: float, count: int
) -> dict[str, Any]:
    """Measure the answers of one engine to ``count`` images at once; of 0, the latency of one."""
    network, header = modelfile.read(file)
    layout = runtime.memory_format(network, device)
    network = network.to(device, memory_format=layout)  # type: ignore[call-overload]
    side, named = header.preprocessing.crop_size, choice._asdict()
    channels = header.preprocessing.channels
    images = _images(count or 1, channels, side, device).contiguous(memory_format=layout)
    begun = time.perf_counter()
    engine = engines.start_engine(choice, network, side, device, len(images))
    engine(images)
    start = time.perf_counter() - begun
    taken = _times(lambda: engine(images), device, seconds)
    if count:
        rate = {"batch_size": count, "pictures_per_second": count / median(taken)}
        return {**named, **rate, "peak_memory_mb": peak_memory(device)}
    p50, p95 = (1000 * np.percentile(taken, [50, 95])).tolist()
    return {**named, "p50_ms": p50, "p95_ms": p95, "n": len(taken), "start_seconds": start}


def _images(count: int, channels: int, side: int, device: torch.device) -> torch.Tensor:
    return torch.randn(count, channels, side, side, device=device)


def _times(run: Callable[[], object], device: torch.device, seconds: float) -> list[float]:
    """Seconds of each of as many runs as fit, at least three, behind two that warm up."""
    here = runtime.Runtime(device, "fp32")
    taken: list[float] = []
    for number in range(10**9):
        begun = time.perf_counter()
        run()
        here.synchronize()
        if number >= 2:
            taken.append(time.perf_counter() - begun)
        if len(taken) >= 3 and sum(taken) >= seconds:
            break
    return taken


def peak_memory(device: torch.device) -> float | None:
    """The most memory that this process had so far, in MB; on CUDA that of its tensors; None where
    the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    if sys.platform == "win32":
        return None
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 1e6 if sys.platform == "darwin" else most * 1024 / 1e6


if __name__ == "__main__":
    file, engine, precision, device, seconds, count = sys.argv[1:]
    chosen = engines.EngineChoice(engine, precision)
    result = _one_row(file, chosen, torch.device(device), float(seconds), int(count))
    print(json.dumps(result))
