"""Several hosts, simulated on one machine.

A host is a network namespace with its own address. Its processes also have their own host name and
/etc/hosts, and at some paths they may see different files from the processes on the other host.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

from resnetkit.training import checkpoint

FILES = ("model.safetensors", "last.safetensors", "history.csv", "metrics.json", "split.csv")
FLAGS = [
    "--model", "cifar_resnet20", "--set", "model_options={width: 8}", "--epochs", "3",
    "--batch-size", "8", "--image-size", "32", "--set", "checkpoint_seconds=0",
    "--set", "precision=fp32", "--workers", "1",
]  # fmt: skip
PORT = 29400


class Host:
    """A network namespace, with a name and an address.

    Attributes:
        mounted: the folder or file that this host sees at a path; None for an empty folder.
        environment: the environment variables of its processes.
    """

    def __init__(self, number: int, folder: Path) -> None:
        self.number = number
        self.name = ("alpha", "beta")[number]
        self.address = f"10.213.0.{number + 1}"
        self.space = f"rk{os.getpid()}{self.name}"
        self.etc_hosts = folder / f"hosts-{self.name}"
        self.mounted: dict[Path, Path | None] = {Path("/etc/hosts"): self.etc_hosts}
        self.environment = dict(os.environ)
        self.resolve(self.address)
        self.processes: list[subprocess.Popen[str]] = []

    def resolve(self, own_address: str) -> None:
        """Map the host's own name to an address in its /etc/hosts."""
        lines = ["127.0.0.1 localhost", f"{own_address} {self.name}"]
        self.etc_hosts.write_text("\n".join(lines) + "\n")

    def start(self, *command: object) -> subprocess.Popen[str]:
        steps = [f"hostname {self.name}"]
        for path, source in self.mounted.items():
            steps.append(f"mount --bind {source} {path}" if source else f"mount -t tmpfs n {path}")
        prefix = ["ip", "netns", "exec", self.space, "unshare", "--uts", "--mount", "sh", "-c"]
        process = subprocess.Popen(
            [*prefix, " && ".join([*steps, 'exec "$@"']), "sh", *map(str, command)],
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def torchrun(
        self, *arguments: object, elastic: bool = False, has_address: bool = True
    ) -> subprocess.Popen[str]:
        """Start torchrun with one process. Rank 0 is on the first host.

        Args:
            arguments: those of ``resnet``.
            elastic: continue with one host if the other is lost.
            has_address: pass the address of this host to torchrun, which otherwise uses the name.
        """
        run = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1"]
        if elastic or not has_address:
            run += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"10.213.0.1:{PORT}"]
            run += ["--rdzv-id", "1", "--nnodes", "1:2" if elastic else "2"]
            run += ["--max-restarts", "3"] if elastic else []
            run += ["--local-addr", self.address] if has_address else []
        else:
            run += ["--nnodes", "2", "--node-rank", str(self.number)]
            run += ["--master-addr", "10.213.0.1", "--master-port", str(PORT)]
        return self.start(*run, "-m", "resnetkit", *arguments)

    def kill_all(self) -> None:
        """Kill every process of this host, torchrun included."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.space], capture_output=True, text=True, check=True
        )
        for process in listed.stdout.split():
            with suppress(ProcessLookupError):
                os.kill(int(process), signal.SIGKILL)

    def close(self) -> None:
        self.kill_all()
        for process in self.processes:
            process.communicate()
        ip("netns", "delete", self.space)


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@pytest.fixture
def two_hosts(tmp_path):
    """Two hosts, connected by a virtual cable."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("network namespaces need root on Linux")
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed (Debian: apt install iproute2)")
    alpha, beta = pair = Host(0, tmp_path), Host(1, tmp_path)
    try:
        for host in pair:
            ip("netns", "add", host.space)
        ip("link", "add", "eth0", "netns", alpha.space, "type", "veth",
           "peer", "name", "eth0", "netns", beta.space)  # fmt: skip
        for host in pair:
            ip("-n", host.space, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.space, "link", "set", "eth0", "up")
            ip("-n", host.space, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for host in pair:
            subprocess.run(["ip", "netns", "delete", host.space], capture_output=True)
        pytest.skip(f"network namespaces are not available: {error.stderr.decode().strip()}")
    yield pair
    for host in pair:
        host.close()


def finish(process: subprocess.Popen[str], seconds: float = 240) -> str:
    """Wait for a process; return what it wrote to standard error."""
    try:
        return process.communicate(timeout=seconds)[1]
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not done after {seconds} s:\n{process.communicate()[1]}") from None


def finish_both(two_hosts: Sequence[Host], *arguments: object, code: int = 0) -> list[str]:
    """Run the command on both hosts; return what each wrote to standard error."""
    both = [host.torchrun(*arguments) for host in two_hosts]
    errors = [finish(process) for process in both]
    assert [process.returncode for process in both] == [code, code], errors
    return errors


def wait_for_states(folder: Path, count: int, *processes: subprocess.Popen[str]) -> None:
    """Wait until a run has saved its state this many times."""
    deadline = time.monotonic() + 120
    while max((n for n, _, _ in checkpoint.list_generations(folder / "state")), default=0) < count:
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_ranks(folder: Path, ranks: int, *processes: subprocess.Popen[str]) -> None:
    """Wait until this many ranks have saved the state of a run."""
    deadline = time.monotonic() + 180
    while True:
        saved = checkpoint.read_newest(folder / "state")
        if saved is not None and saved.values["world_size"] == ranks:
            return
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.5)


def reference(data: Path, out: Path) -> None:
    """Train in two processes on this machine."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*run, "-m", "resnetkit", "train", str(data), "--out", str(out), *FLAGS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_two_hosts_train_the_bits_of_two_processes_on_one(two_hosts, flat_folder, tmp_path):
    """Also try it with the run folder on the main rank's host only, and with one host killed."""
    reference(flat_folder, tmp_path / "one")
    shared = tmp_path / "shared"
    finish_both(two_hosts, "train", flat_folder, "--out", shared, *FLAGS)

    _, beta = two_hosts
    runs = tmp_path / "runs"
    runs.mkdir()
    beta.mounted[runs] = None
    own = runs / "own"
    both = [host.torchrun("train", flat_folder, "--out", own, *FLAGS) for host in two_hosts]
    wait_for_states(own, 7, *both)
    beta.kill_all()
    lost = time.monotonic()
    error = finish(both[0], 60)
    assert time.monotonic() - lost < 30
    assert "Another process of this run has ended: beta (rank 1)." in error, error
    assert 6 <= checkpoint.read_newest(own / "state").values["step"] < 15
    finish_both(two_hosts, "train", "--resume", own)
    for name in FILES:
        expected = (tmp_path / "one" / name).read_bytes()
        assert (shared / name).read_bytes() == expected, name
        assert (own / name).read_bytes() == expected, name


@pytest.mark.slow
def test_a_host_that_falls_silent_is_named_and_one_process_goes_on(
    two_hosts, flat_folder, tmp_path
):
    out = tmp_path / "run"
    _, beta = two_hosts
    begin = ["train", flat_folder, "--out", out, *FLAGS]
    both = [host.torchrun(*begin, "--set", "epochs=200") for host in two_hosts]
    wait_for_states(out, 7, *both)
    ip("-n", beta.space, "link", "set", "eth0", "down")
    lost = time.monotonic()
    errors = [finish(process, 60) for process in both]
    assert time.monotonic() - lost < 30
    assert "has ended: no answer from beta (rank 1). The last saved state is kept" in errors[0]
    assert "process 1: Another process of this run has ended: no answer from alpha" in errors[1]
    saved = checkpoint.read_newest(out / "state").values["step"]
    assert 6 <= saved < 1000
    run = [sys.executable, "-m", "resnetkit", "train", str(out), "--resume"]
    process = subprocess.Popen(run, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    wait_for_states(out, saved + 20, process)
    process.send_signal(signal.SIGTERM)
    error = finish(process)
    assert "Resuming with 1 rank a run saved with 2" in error
    assert checkpoint.read_newest(out / "state").values["step"] > saved


@pytest.mark.slow
def test_torchrun_goes_on_with_one_host_and_takes_the_other_back(two_hosts, flat_folder, tmp_path):
    out = tmp_path / "run"
    alpha, beta = two_hosts
    begin = ["train", flat_folder, "--out", out, *FLAGS, "--set", "epochs=2000", "--resume"]
    for host in two_hosts:
        host.environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    both = [host.torchrun(*begin, elastic=True) for host in two_hosts]
    wait_for_ranks(out, 2, *both)
    beta.kill_all()
    wait_for_ranks(out, 1, both[0])
    again = beta.torchrun(*begin, elastic=True)
    wait_for_ranks(out, 2, both[0], again)
    alpha.kill_all()
    beta.kill_all()


DIFFERENCES = {
    "version": "torchvision: {torchvision} on alpha (rank 0); 0.1 on beta (rank 1)",
    "photo": "images: 48 (all), 3 classes, names ",
    "flag": "lr: nothing on alpha (rank 0); 0.01 on beta (rank 1)",
    "loopback": "beta (rank 1): gloo would use 127.0.1.1. Its interfaces: ",
    "name": "beta (rank 1) cannot reach the main rank at alpha, port ",
    "no photos": "does not exist",
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DIFFERENCES)
def test_hosts_that_differ_end_at_once_and_say_why(two_hosts, flat_folder, tmp_path, what):
    out = tmp_path / "run"
    _, beta = two_hosts
    commands = [["train", flat_folder, "--out", out, *FLAGS] for _ in two_hosts]
    if what == "version":
        info = tmp_path / "other" / "torchvision-0.1.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n")
        paths = (str(info.parent), os.environ.get("PYTHONPATH", ""))
        beta.environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    elif what == "photo":
        other = shutil.copytree(flat_folder, tmp_path / "other")
        (other / "red" / "003.png").write_bytes(b"incomplete")
        beta.mounted[flat_folder] = other
    elif what == "no photos":
        empty = tmp_path / "parent"
        empty.mkdir()
        flat_folder = shutil.move(flat_folder, empty / "squares")
        beta.mounted[empty] = None
        commands = [["train", flat_folder, "--out", out, *FLAGS] for _ in two_hosts]
    elif what == "flag":
        commands[1] += ["--lr", "0.01"]
    elif what == "loopback":
        beta.resolve("127.0.1.1")
    started = time.monotonic()
    both = [
        host.torchrun(*command, has_address=what != "name")
        for host, command in zip(two_hosts, commands, strict=True)
    ]
    errors = [finish(process, 120) for process in both]
    assert time.monotonic() - started < 110
    assert [process.returncode for process in both] == [1, 1], errors
    assert "resnet: " in errors[0]
    assert "resnet: process 1: " in errors[1]
    expected = DIFFERENCES[what].format(torchvision=metadata.version("torchvision"))
    assert expected in errors["name" in what or what == "no photos"], errors
    if what == "loopback":
        assert "export GLOO_SOCKET_IFNAME=eth0" in errors[0]
        beta.environment["GLOO_SOCKET_IFNAME"] = "eth0"  # as the message advises
        finish_both(two_hosts, *commands[0])
    elif what == "name":
        assert "1 of 2 ranks did not arrive within 24 seconds: 1" in errors[0]
    elif what == "no photos":
        assert "Another process of this run has ended: beta (rank 1)" in errors[0]
    assert (out / "model.safetensors").exists() == (what == "loopback")
