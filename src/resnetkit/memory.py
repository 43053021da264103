"""How much memory a process may take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

UNKNOWN = 512 * 2**20
"""Bytes where nobody tells."""


def available_memory(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes that can be taken without swapping, and without being killed by the container or the
    batch system that the process runs in; half a GiB where nobody tells.

    Args:
        proc, groups: where Linux tells of processes, and of control groups (versions 1 and 2).
    """
    try:
        lines = (proc / "meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return UNKNOWN
    return max(0, min([1024 * free, *_rooms(proc, groups)]))


def _rooms(proc: Path, groups: Path) -> Iterator[int]:
    """What is left of the limit of each control group that this process is in."""
    try:
        own = [line.split(":", 2) for line in (proc / "self/cgroup").read_text().splitlines()]
    except OSError:
        return
    for _, controllers, place in own:
        if controllers == "":
            names, base = ("memory.max", "memory.current", "inactive_file"), groups
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            base = groups / "memory"
        else:
            continue
        inner = Path(place.lstrip("/"))
        for folder in (inner, *inner.parents):  # a container may show its own as the root
            room = _room(base / folder, *names)
            if room is not None:
                yield room


def _room(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """Bytes up to the limit of one group, its cache of files not counted; None without a limit."""
    try:
        most = (folder / limit).read_text().strip()
        taken = int((folder / used).read_text())
        rows = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:  # there is no such group here, or none with a limit
        return None
    given_back = sum(int(row[1]) for row in rows if row[0] == cached)
    return int(most) - taken + given_back if most.isdecimal() else None
