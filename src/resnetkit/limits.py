"""How much memory and CPU the machine, a container or a batch system grants this process."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

UNKNOWN = 512 * 2**20
"""Bytes of memory to assume if the system does not report how much is available."""

PROC = Path("/proc")
GROUPS = Path("/sys/fs/cgroup")


def available_memory(proc: Path = PROC, groups: Path = GROUPS) -> int:
    """Return the bytes that this process can allocate without swapping or being killed.

    Respects the limits of a container or batch system. Returns `UNKNOWN` if the system does not
    report how much memory is available.

    Args:
        proc: root of Linux's proc file system.
        groups: root of Linux's control group file systems (versions 1 and 2).
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return UNKNOWN
    group_bytes = (
        _free_bytes(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if is_v1
        else _free_bytes(folder, "memory.max", "memory.current", "inactive_file")
        for folder, is_v1 in _control_groups("memory", proc, groups)
    )
    return max(0, min([1024 * free, *(size for size in group_bytes if size is not None)]))


def cpu_quota(proc: Path = PROC, groups: Path = GROUPS) -> float:
    """Return how many CPUs the tightest control group allows; infinity if there is no limit.

    For example, 1.5 means one and a half CPUs' worth of time.

    Args:
        proc: root of Linux's proc file system.
        groups: root of Linux's control group file systems (versions 1 and 2).
    """
    quotas = (
        _cpu_quota_v1(folder) if is_v1 else _cpu_quota_v2(folder)
        for folder, is_v1 in _control_groups("cpu", proc, groups)
    )
    return min((quota for quota in quotas if quota > 0), default=math.inf)


def cores() -> int:
    """Return the number of cores that this process may use, at least 1.

    This is the smaller of its CPU affinity and its container's CPU quota, rounded up.
    """
    try:
        allowed = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        allowed = os.cpu_count() or 1
    return max(1, math.ceil(min(allowed, cpu_quota())))


def _control_groups(controller: str, proc: Path, groups: Path) -> Iterator[tuple[Path, bool]]:
    """Yield (folder, whether it is v1) for each control group of this process, innermost first."""
    try:
        own = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in own:
        if controllers == "":
            bases = [(groups, False)]
        elif controller in controllers.split(","):  # mounted as "cpu" or as "cpu,cpuacct"
            bases = [(groups / name, True) for name in dict.fromkeys((controller, controllers))]
        else:
            continue
        inner = Path(path.lstrip("/"))
        for base, is_v1 in bases:
            for folder in (inner, *inner.parents):  # in a container, its own cgroup may be the root
                yield base / folder, is_v1


def _free_bytes(folder: Path, limit: str, usage: str, cached: str) -> int | None:
    """Return how many bytes a group may still use; None if it has no limit.

    Inactive file cache counts as free, because the kernel can reclaim it.

    Args:
        folder: the group's folder.
        limit: name of the file that holds the limit.
        usage: name of the file that holds the bytes in use.
        cached: the field of ``memory.stat`` that counts the reclaimable bytes.
    """
    try:
        limit_text = (folder / limit).read_text().strip()
        used = int((folder / usage).read_text())
        rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # the group is not mounted here, or has no limit
        return None
    reclaimable = sum(int(row[1]) for row in rows if row[0] == cached)
    return int(limit_text) - used + reclaimable if limit_text.isdecimal() else None


def _cpu_quota_v2(folder: Path) -> float:
    """Return quota divided by period from ``cpu.max`` ("150000 100000", or "max 100000")."""
    try:
        quota, period = (folder / "cpu.max").read_text().split()
    except OSError:
        return math.inf
    return math.inf if quota == "max" else int(quota) / int(period)


def _cpu_quota_v1(folder: Path) -> float:
    """Return quota divided by period; a quota of -1 microseconds means no limit."""
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        period = int((folder / "cpu.cfs_period_us").read_text())
    except OSError:
        return math.inf
    return quota / period if quota > 0 else math.inf
