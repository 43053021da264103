"""The processes of a command that starts Ray."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


class Command:
    """A running command, and its descendant processes as Linux lists them."""

    def __init__(self, *arguments: object, cwd: Path | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=cwd,
        )

    def finish(self, timeout: float = 300) -> tuple[int, str, str]:
        output, errors = self.process.communicate(timeout=timeout)
        return self.process.returncode, output, errors

    def tree(self) -> dict[int, str]:
        """Return the command lines of the processes that the command has started."""
        children: dict[int, list[int]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(path.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(path.parent.name))
        found = {}
        waiting = [self.process.pid]
        while waiting:
            for child in children.get(waiting.pop(), []):
                waiting.append(child)
                found[child] = command_line(child)
        return found

    def listening(self) -> set[str]:
        """Return the addresses, in hex, that the command's processes listen on."""
        addresses = set()
        for name in ("tcp", "tcp6"):
            rows = Path("/proc/net", name).read_text().splitlines()[1:]
            sockets = {row.split()[9]: row.split()[1] for row in rows if row.split()[3] == "0A"}
            for pid in (self.process.pid, *self.tree()):
                for file in Path(f"/proc/{pid}/fd").glob("*"):
                    try:
                        target = os.readlink(file)
                    except OSError:
                        continue
                    inode = target.removeprefix("socket:[").removesuffix("]")
                    if inode in sockets:
                        addresses.add(sockets[inode].partition(":")[0])
        return addresses


def command_line(pid: int) -> str:
    """Return the command line of a process; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


@pytest.fixture
def start():
    """Return a function that starts a command, which is killed after the test."""
    started = []

    def start(*arguments: object, cwd: Path | None = None) -> Command:
        started.append(Command(*arguments, cwd=cwd))
        return started[-1]

    yield start
    for command in started:
        if command.process.poll() is None:
            command.process.kill()
        command.process.communicate()
