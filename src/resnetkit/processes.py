"""The processes of a run, which torchrun starts. Nothing here needs PyTorch.

This is the only module that reads torchrun's environment variables.
"""

from __future__ import annotations

import os

from .limits import cores


def world_size() -> int:
    """Return the number of processes that torchrun started for this run; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_world_size() -> int:
    """Return the number of this run's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def rank() -> int:
    """Return the rank of this process. Only rank 0, the main rank, writes, prints and evaluates."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def local_rank() -> int:
    """Return the rank of this process among those on this machine."""
    return int(os.environ.get("LOCAL_RANK", 0))


def default_workers() -> int:
    """Return the default number of threads that read images: one per core, at most 16.

    Processes on one machine share its cores. This does not change the number of compute threads.
    """
    return max(1, min(16, cores() // local_world_size()))


def main_address() -> tuple[str, int]:
    """Return the host and port at which the ranks of this run meet."""
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def hosts_meeting() -> bool:
    """Return whether this process hosts the store through which the ranks meet.

    The main rank hosts it, unless torchrun does.
    """
    return rank() == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
