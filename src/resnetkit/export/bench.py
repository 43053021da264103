"""Measure how fast an exported file answers on this machine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from . import sessions
from .artefact import read_artefact

BATCH_SIZES = (1, 8, 32)
WARM_UP = 2


def measure_exported(
    file: str | Path,
    batch_sizes: Sequence[int] | None = None,
    seconds: float = 3.0,
    size: tuple[int, int] = (375, 500),
) -> dict[str, Any]:
    """Measure the throughput by batch size, and the latency of one image.

    The images are random numbers in memory: reading and decoding files is not measured. Resizing
    is measured if the file does it.

    Args:
        file: a file written by `resnet export`.
        batch_sizes: images per batch; by default `BATCH_SIZES`.
        seconds: the time for each measurement.
        size: height and width of the images, if the file resizes them.

    Raises:
        ArtefactError: ``file`` is not a valid exported file.
    """
    artefact = read_artefact(Path(file))
    manifest = artefact.manifest
    side = manifest.preprocessing.crop_size
    height, width = size if manifest.entrance == "image" else (side, side)
    started = time.perf_counter()
    run = sessions.start(artefact)
    start_seconds = time.perf_counter() - started
    rng = np.random.default_rng(0)

    def times(count: int) -> list[float]:
        shape = (count, height, width, manifest.input_channels)
        images = rng.integers(0, 256, shape, dtype=np.uint8)
        return _time_runs(run, images, seconds)

    p50, p95 = (1000 * np.percentile(times(1), [50, 95])).tolist()
    rows = [
        {"batch_size": count, "pictures_per_second": count / median(times(count))}
        for count in batch_sizes or BATCH_SIZES
    ]
    return {
        "model": manifest.digest,
        "architecture": manifest.source.get("architecture", ""),
        "runtime": artefact.runtime,
        "precision": manifest.precision,
        "image_size": [height, width],
        "throughput": rows,
        "latency": {"p50_ms": p50, "p95_ms": p95, "start_seconds": start_seconds},
    }


def exported_bench_table(result: dict[str, Any]) -> str:
    """Return the result of `measure_exported` as text."""
    height, width = result["image_size"]
    latency = result["latency"]
    lines = [
        f"{result['architecture']}, {result['runtime']}, {result['precision']}, images of "
        f"{width} x {height} px",
        "",
        f"{'batch':>5}  {'images/s':>10}",
    ]
    lines += [
        f"{row['batch_size']:5}  {row['pictures_per_second']:10.1f}" for row in result["throughput"]
    ]
    lines += [
        "",
        f"one image: p50 {latency['p50_ms']:.1f} ms, p95 {latency['p95_ms']:.1f} ms; start "
        f"{latency['start_seconds']:.1f} s",
    ]
    return "\n".join(lines)


def _time_runs(run: sessions.Run, images: np.ndarray, seconds: float) -> list[float]:
    """Return the time of each run in seconds: at least three runs, after `WARM_UP` runs."""
    for _ in range(WARM_UP):
        run(images)
    found: list[float] = []
    while len(found) < 3 or sum(found) < seconds:
        started = time.perf_counter()
        run(images)
        found.append(time.perf_counter() - started)
    return found
