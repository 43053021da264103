"""Compare the files and settings of a run's ranks, before they train together.

`resnetkit.hosts` compares versions and addresses first. All errors here are raised on all ranks
and name the hosts.
"""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from ..data.folder import Dataset
from ..data.tree import SHARDS, is_sharded
from ..errors import DataError, TrainingError
from ..hosts import differences
from ..progress import say
from ..runtime import Runtime
from ..storage import sha256
from .recipe import Recipe
from .run import RunFolder

MAX_SIZES = 1000
"""Maximum number of files whose sizes are compared. All contents are compared after reading."""

CLOCK_SECONDS = 5.0
"""Difference between clocks, in seconds, above which a warning is printed."""

LOW_DISK = 2**30
"""Free bytes below which a warning is printed. A run with a large network saves a gigabyte."""


def check_hosts(
    dataset: Dataset,
    recipe: Recipe,
    run_folder: RunFolder,
    runtime: Runtime,
    *,
    given: Mapping[str, Any],
    is_resumed: bool,
) -> None:
    """Compare the commands, files and processors of all ranks; do nothing if there is only one.

    Args:
        dataset: the images, as this rank lists them.
        recipe: the main rank's recipe, with its weights resolved.
        run_folder: the run folder; only the main rank needs it.
        runtime: this rank.
        given: the arguments given on this host.
        is_resumed: whether the weights come from a saved state rather than the weights file.

    Raises:
        TrainingError: the ranks differ; the message says which host has what.
    """
    if runtime.world_size == 1:
        return
    report: dict[str, Any] = {**given, "images": describe_images(dataset)}
    if not is_resumed and Path(recipe.weights).is_absolute():
        report["weights"] = _describe_file(Path(recipe.weights))
    report["precision"] = runtime.with_precision(recipe.precision).precision
    rows = runtime.gather_objects((socket.gethostname(), report))
    names = [name for name, _ in rows]
    lines = differences([row for _, row in rows], names)
    if lines:
        raise TrainingError(
            "The hosts of this run differ:\n  "
            + "\n  ".join(lines)
            + "\nCopy the files of the main rank to the same paths on every host, and run the "
            "same command there. If the processors differ, add --set precision=fp32"
        )
    # The gather above synchronized the ranks, so they read their clocks at the same moment.
    clocks = [row[0] for row in runtime.gather([time.time()])]
    apart = max(clocks) - min(clocks)
    if apart > CLOCK_SECONDS:
        late, early = names[clocks.index(min(clocks))], names[clocks.index(max(clocks))]
        say(f"Warning: the clock of {late} is {apart:.0f} seconds behind that of {early}.")
    if runtime.is_main:
        _warn_of_full_disk(run_folder.path.absolute())


def _warn_of_full_disk(folder: Path) -> None:
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < LOW_DISK:
        say(f"Warning: only {free / 2**20:,.0f} MB is free in {existing} for the run folder.")


def describe_images(dataset: Dataset) -> str:
    """Describe a dataset: its counts, and digests of its file names, labels and some file sizes."""
    names, sizes = blake2b(digest_size=4), blake2b(digest_size=4)
    for name, split in dataset.splits.items():
        names.update(f"{name}\n".encode())
        names.update(split.labels.astype("<i4").tobytes())
        for path in split.paths:
            names.update(os.fsencode(path) + b"\0")
        if is_sharded(dataset.root):
            continue
        for i in range(0, len(split), -(-len(split) // MAX_SIZES) or 1):
            file = split.path(i)
            sizes.update(f"{os.path.getsize(file) if file.exists() else 'missing'}\n".encode())
    if is_sharded(dataset.root):  # this file lists the SHA-256 of every other file
        sizes.update(sha256(dataset.root / SHARDS).encode())
    counts = ", ".join(f"{len(split):,} ({name})" for name, split in dataset.splits.items())
    return (
        f"{counts}, {len(dataset.classes):,} classes, names {names.hexdigest()}, "
        f"sizes {sizes.hexdigest()}"
    )


def check_ranks_agree(identity: dict[str, Any], runtime: Runtime) -> None:
    """Check that all ranks have the same recipe and images, after each has read the images.

    Args:
        identity: recipe and data, as `run_identity` returns them.
        runtime: this rank.

    Raises:
        DataError: a rank has different images or a different recipe.
    """
    report = {f"{kind} {key}": value for kind in identity for key, value in identity[kind].items()}
    rows = runtime.gather_objects((socket.gethostname(), report))
    lines = differences([row for _, row in rows], [name for name, _ in rows])
    if lines:
        raise DataError(
            "The ranks read different images, or have different recipes:\n  "
            + "\n  ".join(lines)
            + "\nEvery host needs the same files and the same command"
        )


def _describe_file(path: Path) -> str:
    return f"SHA-256 {sha256(path)[:12]}" if path.is_file() else f"no file {path}"
