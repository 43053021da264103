"""The hosts of a run: do they match, can they reach each other, and which one was lost?

The ranks meet through torchrun's store before PyTorch connects them, because PyTorch would wait a
day for an address that cannot be reached. Every rank puts its report in the store and reads the
other ranks' reports, so all ranks reach the same conclusion.
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import socket
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

from .errors import TrainingError
from .processes import main_address

MEETING_SECONDS = 24.0
"""How long the ranks of a run wait for each other at the start."""

ANSWER_SECONDS = 3.0
"""How long a rank waits for another host to accept a connection."""

ENDING_SECONDS = 0.5
"""How long a killed process may keep accepting connections."""

SILENT_SECONDS = 12
"""Seconds without an answer before a host is considered lost."""

PACKAGES = ("resnetkit", "torch", "torchvision")
"""Packages whose versions must be the same on all ranks."""


class Store(Protocol):
    """The methods of torchrun's store that are used here."""

    def set(self, key: str, value: str, /) -> None: ...  # noqa: D102
    def get(self, key: str, /) -> bytes: ...  # noqa: D102
    def check(self, keys: list[str], /) -> bool: ...  # noqa: D102


def versions() -> dict[str, str]:
    """Return the versions that must be the same on all ranks."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in PACKAGES}}


def name_ranks(ranks: Sequence[int], names: Sequence[str]) -> str:
    """Return ranks by host, as text.

    Args:
        ranks: the ranks to name, in ascending order.
        names: the host name of every rank of the run.

    >>> name_ranks([0, 1, 3], ["alpha", "alpha", "beta", "beta"])
    'alpha (ranks 0, 1), beta (rank 3)'
    """
    by_host: dict[str, list[int]] = {}
    for rank in ranks:
        by_host.setdefault(names[rank], []).append(rank)
    return ", ".join(
        f"{host} ({'rank' if len(own) == 1 else 'ranks'} {', '.join(map(str, own))})"
        for host, own in by_host.items()
    )


def differences(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return one line for each key whose values differ, saying which host has which value.

    Args:
        reports: the report of every rank, in rank order.
        names: the host name of every rank.

    >>> differences([{"torch": "2.14", "lr": 1}, {"torch": "2.13", "lr": 1}], ["alpha", "beta"])
    ['torch: 2.14 on alpha (rank 0); 2.13 on beta (rank 1)']
    """
    lines = []
    for key in dict.fromkeys(key for report in reports for key in report):
        by_value: dict[str, list[int]] = {}
        for rank, report in enumerate(reports):
            by_value.setdefault(str(report.get(key, "nothing")), []).append(rank)
        if len(by_value) > 1:
            holders = (
                f"{value if len(value) <= 100 else f'{value[:100]}...'} on {name_ranks(own, names)}"
                for value, own in by_value.items()
            )
            lines.append(f"{key}: {'; '.join(holders)}")
    return lines


def interfaces() -> dict[str, str]:
    """Return the IPv4 address of each network interface that has one; {} except on Linux."""
    if sys.platform != "linux":
        return {}
    import fcntl

    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # this interface has no IPv4 address
                request = struct.pack("256s", name.encode())
                answer = fcntl.ioctl(any_socket, 0x8915, request)  # SIOCGIFADDR
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def exchange_address() -> str:
    """Return the address that other ranks use to reach this one through gloo; "" if unknown.

    gloo uses the interface that GLOO_SOCKET_IFNAME names. If it is not set, gloo uses the first
    address that the host name resolves to and that belongs to this machine. If there is none, it
    uses the loopback address (see ``ProcessGroupGloo::createDefaultDevice``).
    """
    interface = os.environ.get("GLOO_SOCKET_IFNAME", "").split(",")[0]
    if interface:
        return interfaces().get(interface, "")
    with suppress(OSError):
        for family, kind, _, _, address in socket.getaddrinfo(
            socket.gethostname(), None, type=socket.SOCK_STREAM
        ):
            with suppress(OSError), socket.socket(family, kind) as trial:
                trial.bind(address)
                return str(address[0])
    return "127.0.0.1"


def open_sockets() -> dict[str, int]:
    """Return the descriptor of each socket this process has open, by inode; {} except on Linux."""
    found = {}
    for link in Path("/proc/self/fd").iterdir() if sys.platform == "linux" else ():
        with suppress(OSError):  # the descriptor that listed the folder is closed by now
            target = os.readlink(link)
            if target.startswith("socket:"):
                found[target] = int(link.name)
    return found


@dataclass
class Peers:
    """All ranks of a run, as described in their reports.

    Args:
        token: a prefix for keys in the store that is unique to this meeting.
        rank: this rank.
        reports: ``host``, ``address`` and ``port`` of every rank.
        listener: a socket on which the system accepts connections while this rank is alive. It
            needs no thread.
    """

    token: str
    rank: int
    reports: list[dict[str, Any]]
    listener: socket.socket | None
    _watched: list[socket.socket] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        """The host name of every rank."""
        return [report["host"] for report in self.reports]

    def watch(self, before: Mapping[str, int]) -> None:
        """Make the system close connections to hosts that do not answer for `SILENT_SECONDS`.

        By default, the system needs hours to notice a lost host while nothing is being sent. Linux
        only.

        Args:
            before: what `open_sockets` returned before PyTorch connected the ranks.
        """
        for inode, descriptor in open_sockets().items():
            if inode in before:
                continue
            connection = socket.socket(fileno=os.dup(descriptor))
            if not _is_connected(connection):
                connection.close()
                continue
            for option, value in (
                (socket.TCP_KEEPIDLE, 4),
                (socket.TCP_KEEPINTVL, 4),
                (socket.TCP_KEEPCNT, 2),
                (socket.TCP_USER_TIMEOUT, 1000 * SILENT_SECONDS),
            ):
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            self._watched.append(connection)

    def unreachable(self) -> dict[int, str]:
        """Return the other ranks that cannot be reached, each with the reason.

        A rank that is alive accepts a connection, whatever it is doing. If its process has ended,
        the operating system refuses the connection; if its host is lost, nothing answers.
        """
        others = [
            rank for rank, report in enumerate(self.reports) if rank != self.rank and report["port"]
        ]
        with ThreadPoolExecutor(min(64, len(others) or 1)) as pool:
            reasons = list(pool.map(self._try, others))
        return {rank: why for rank, why in zip(others, reasons, strict=True) if why}

    def _try(self, rank: int) -> str:
        report = self.reports[rank]
        try:
            address = (report["address"], report["port"])
            socket.create_connection(address, ANSWER_SECONDS).close()
        except ConnectionError:  # refused, or reset while the process ends
            return "refused"
        except OSError as error:
            return error.strerror or "no answer"
        return ""

    def explain_loss(self) -> str:
        """Return the error message for a lost connection, which names the lost ranks.

        Also closes this rank's own connections, so that all ranks look for the lost one at the same
        time. Then waits until the ranks on other hosts have looked. A killed process may lose
        PyTorch's connections before its listener, so this rank looks several times.
        """
        for connection in self._watched:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        started = time.monotonic()
        while not (lost := self.unreachable()) and time.monotonic() < started + ENDING_SECONDS:
            time.sleep(0.05)
        if len(set(self.names)) > 1:  # on one host, torchrun may end this process first
            time.sleep(max(0.0, started + ANSWER_SECONDS - time.monotonic()))
        ended = [rank for rank, why in lost.items() if why == "refused"]
        silent = [rank for rank, why in lost.items() if why != "refused"]
        text = "Another process of this run has ended"
        if ended:
            text += f": {name_ranks(ended, self.names)}. Its own message says why"
        if silent:
            text += f": no answer from {name_ranks(silent, self.names)}"
        if not lost:
            text += ". Its own message says why"
        return f"{text}. The last saved state is kept; --resume continues from it"

    def close(self) -> None:
        """Close the listener and this object's copies of PyTorch's sockets."""
        for connection in (*self._watched, self.listener):
            if connection is not None:
                connection.close()


def _is_connected(connection: socket.socket) -> bool:
    """Return whether a socket is a TCP connection rather than a listener."""
    with suppress(OSError):
        return connection.family in (socket.AF_INET, socket.AF_INET6) and bool(
            connection.getpeername()
        )
    return False


def await_main_rank(rank: int, deadline: float) -> None:
    """Wait until the run's store accepts a connection.

    Otherwise, PyTorch would keep trying for longer and flood the terminal with messages.

    Args:
        rank: this rank.
        deadline: when to give up, on the clock of `time.monotonic`.

    Raises:
        TrainingError: the store cannot be reached.
    """
    host, port = main_address()
    while True:
        try:
            socket.create_connection((host, port), ANSWER_SECONDS).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise TrainingError(
                    f"{socket.gethostname()} (rank {rank}) cannot reach the main rank at {host}, "
                    f"port {port}: {error.strerror or error}. Start torchrun on every host with "
                    "--local-addr set to an address of that host that the others can reach, and "
                    "open all ports between the hosts in any firewall"
                ) from error
        time.sleep(0.2)


def meet(store: Store, rank: int, size: int, *, deadline: float) -> Peers:
    """Wait for the other ranks, and check that they match and can reach each other.

    The main rank announces a token. The others answer with their reports, and the main rank
    publishes all of them. After a restart by torchrun, a rank may find an old announcement. Its
    own report is then not among those published, so the rank waits for a newer announcement.

    Args:
        store: the store that all ranks share. It may still hold keys from before a restart.
        rank: this rank.
        size: number of ranks.
        deadline: when to stop waiting for the others, on the clock of `time.monotonic`.

    Raises:
        TrainingError: the ranks do not match, or cannot reach each other. All ranks raise it; the
            message names each difference and says what to do.
    """
    address = exchange_address()
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = (
        socket.create_server((address, 0), family=family, backlog=4 * size) if address else None
    )
    report = {
        "id": secrets.token_hex(8),
        "host": socket.gethostname(),
        "address": address,
        "port": listener.getsockname()[1] if listener else 0,
        "interfaces": interfaces(),
        "versions": versions(),
    }
    try:
        token, reports = _exchange(store, rank, size, report=report, deadline=deadline)
        peers = Peers(token, rank, reports, listener)
        _check_peers(store, peers)
    except BaseException as error:
        if listener is not None:
            listener.close()
        # The store raises a RuntimeError once the main rank is gone.
        if isinstance(error, RuntimeError) and not isinstance(error, TrainingError):
            raise TrainingError("The main rank has ended. Its own message says why") from error
        raise
    return peers


def _exchange(
    store: Store, rank: int, size: int, *, report: dict[str, Any], deadline: float
) -> tuple[str, list[dict[str, Any]]]:
    """Return the token of this meeting, and the report of every rank."""
    if rank == 0:
        store.set("main rank", report["id"])
    token = ""

    def arrived() -> list[dict[str, Any]] | None:
        nonlocal token
        if not store.check(["main rank"]):
            return None
        announced = store.get("main rank").decode()
        if announced != token:
            token = announced
            store.set(f"{token} {rank}", json.dumps(report))
        if rank == 0 and store.check([f"{token} {each}" for each in range(size)]):
            reports = [json.loads(store.get(f"{token} {each}")) for each in range(size)]
            store.set(f"{token} all", json.dumps(reports))
        if not store.check([f"{token} all"]):
            return None
        reports = json.loads(store.get(f"{token} all"))
        return reports if report in reports else None

    def missing() -> str:
        ranks = [each for each in range(size) if not store.check([f"{token} {each}"])]
        return (
            f"{len(ranks)} of {size} ranks did not arrive within {MEETING_SECONDS:.0f} seconds: "
            f"{', '.join(map(str, ranks))}. Their own messages say why"
        )

    reports = _poll(arrived, missing, deadline)
    return token, reports


def _check_peers(store: Store, peers: Peers) -> None:
    """Check that all ranks have the same versions and can reach each other.

    Raises:
        TrainingError: a check failed. All ranks raise it.
    """
    names = peers.names
    lines = differences([report["versions"] for report in peers.reports], names)
    if lines:
        own = peers.reports[0]["versions"]
        install = " ".join(f"{name}=={own[name]}" for name in PACKAGES)
        raise TrainingError(
            "The hosts have different versions:\n  "
            + "\n  ".join(lines)
            + f"\nInstall the main rank's versions on every host, with Python {own['python']}:\n"
            f"  pip install {install}"
        )
    has_several_hosts = len(set(names)) > 1
    problems = {
        rank: f"gloo would use {report['address'] or 'an unknown interface'}"
        for rank, report in enumerate(peers.reports)
        if not report["address"]
        or (has_several_hosts and report["address"].startswith(("127.", "::1")))
    }
    if not problems:  # every rank tries to reach every other
        found = {
            each: f"{why} at {peers.reports[each]['address']}"
            for each, why in peers.unreachable().items()
        }
        store.set(f"{peers.token} tried {peers.rank}", json.dumps(found))
        keys = [f"{peers.token} tried {each}" for each in range(len(names))]

        def tried() -> list[dict[str, str]] | None:
            if not store.check(keys):
                return None
            return [json.loads(store.get(key)) for key in keys]

        deadline = time.monotonic() + ANSWER_SECONDS
        results = _poll(tried, lambda: "A rank ended while connecting", deadline)
        for each, result in enumerate(results):
            for rank, why in result.items():
                problems.setdefault(int(rank), f"from {name_ranks([each], names)}: {why}")
    if problems:
        raise TrainingError(_explain_addresses(problems, peers))


def _explain_addresses(problems: Mapping[int, str], peers: Peers) -> str:
    lines = []
    for rank, why in problems.items():
        usable = {
            name: address
            for name, address in peers.reports[rank]["interfaces"].items()
            if not address.startswith("127.")
        }
        example = f", such as export GLOO_SOCKET_IFNAME={next(iter(usable))}" if usable else ""
        known = ", ".join(f"{name} {address}" for name, address in usable.items()) or "none"
        lines.append(
            f"{name_ranks([rank], peers.names)}: {why}. Its interfaces: {known}. Set "
            f"GLOO_SOCKET_IFNAME there{example}"
        )
    return (
        "Other hosts cannot reach:\n  "
        + "\n  ".join(lines)
        + "\nThe interface must be the one that the other hosts can reach, and firewalls must "
        "allow all ports between the hosts"
    )


def _poll(ready: Callable[[], Any], missing: Callable[[], str], deadline: float) -> Any:
    """Call ``ready`` until it returns a value other than None, and return that value.

    Raises:
        TrainingError: the deadline has passed; the message is ``missing()``.
    """
    while (found := ready()) is None:
        if time.monotonic() > deadline:
            raise TrainingError(missing())
        time.sleep(0.01)
    return found
