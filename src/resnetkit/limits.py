"""How much memory and CPU the machine, a container or a batch system lets this process take."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

UNKNOWN = 512 * 2**20
"""Bytes of memory to assume where the system does not say."""

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that can be taken without swapping, and without being killed by the
    container or the batch system that the process runs in; `UNKNOWN` where the system does not say.

    Args:
        proc, groups: where Linux describes processes, and control groups (versions 1 and 2).
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return UNKNOWN
    rooms = (
        _room(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if first_version
        else _room(folder, "memory.max", "memory.current", "inactive_file")
        for folder, first_version in _groups("memory", proc, groups)
    )
    return max(0, min([1024 * free, *(room for room in rooms if room is not None)]))


def cpu_quota(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Return how many CPUs' time the tightest control group grants (1.5 is one and a half), and
    infinity without a limit.

    Args:
        proc, groups: as in `available_memory`.
    """
    quotas = (
        _quota_v1(folder) if first_version else _quota_v2(folder)
        for folder, first_version in _groups("cpu", proc, groups)
    )
    return min((quota for quota in quotas if quota > 0), default=math.inf)


def _groups(controller: str, proc: Path, groups: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the folder of each control group that limits this process, innermost first, and whether
    it is one of version 1."""
    try:
        own = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, place in own:
        if controllers == "":
            bases = [(groups, False)]
        elif controller in controllers.split(","):  # mounted under one name, or under all of them
            bases = [(groups / name, True) for name in dict.fromkeys((controller, controllers))]
        else:
            continue
        inner = Path(place.lstrip("/"))
        for base, first_version in bases:
            for folder in (inner, *inner.parents):  # a container may show its own as the root
                yield base / folder, first_version


def _room(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """Return the bytes up to the limit of one group, not counting its cache of files; None without
    a limit."""
    try:
        most = (folder / limit).read_text().strip()
        taken = int((folder / used).read_text())
        rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # there is no such group here, or none with a limit
        return None
    given_back = sum(int(row[1]) for row in rows if row[0] == cached)
    return int(most) - taken + given_back if most.isdecimal() else None


def _quota_v2(folder: Path) -> float:
    """Return quota over period of ``cpu.max`` ("150000 100000", or "max 100000")."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def _quota_v1(folder: Path) -> float:
    """Return quota over period; -1 microseconds stand for no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except OSError:
        return math.inf
    return quota / period if quota > 0 else math.inf
