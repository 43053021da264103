"""Memory and CPU limits, read from simulated Linux files."""

from __future__ import annotations

import math
import os

import pytest

from resnetkit import limits
from resnetkit.limits import UNKNOWN, available_memory, cpu_quota

MB = 2**20


@pytest.fixture
def system(tmp_path):
    def made(files):
        files = {"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 1024000 kB\n", **files}
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(str(text))
        return available_memory(tmp_path / "proc", tmp_path / "groups")

    return made


def group(folder, limit, used, cached=0, version=2):
    names = ("memory.max", "memory.current", "inactive_file")
    if version == 1:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    stat = f"anon 12345\n{names[2]} {cached}\n"
    return {
        f"{folder}/{names[0]}": limit,
        f"{folder}/{names[1]}": used,
        f"{folder}/memory.stat": stat,
    }


def test_free_memory_of_the_machine(system):
    assert system({}) == 1000 * MB
    assert system({"proc/self/cgroup": "0::/user\n"}) == 1000 * MB


def test_the_limit_of_a_container_counts(system):
    own = {"proc/self/cgroup": "0::/\n"}
    assert system({**own, **group("groups", 400 * MB, 300 * MB, 50 * MB)}) == 150 * MB
    assert system({**own, **group("groups", "max", 300 * MB)}) == 1000 * MB
    assert system({**own, **group("groups", 400 * MB, 500 * MB)}) == 0


def test_the_tightest_of_the_groups_above_counts(system):
    files = {"proc/self/cgroup": "0::/batch/job7/step\n"}
    files |= group("groups/batch/job7/step", "max", 10 * MB)
    files |= group("groups/batch/job7", 500 * MB, 100 * MB)
    files |= group("groups/batch", 300 * MB, 120 * MB, 20 * MB)
    assert system(files) == 200 * MB


def test_the_first_version_of_control_groups(system):
    files = {"proc/self/cgroup": "5:cpu,memory:/docker/abc\n3:pids:/docker/abc\n"}
    files |= group("groups/memory", 2**63 - 4096, 10**10, version=1)
    files |= group("groups/memory/docker/abc", 700 * MB, 200 * MB, version=1)
    assert system(files) == 500 * MB


def test_a_system_that_does_not_say(tmp_path):
    assert available_memory(tmp_path, tmp_path) == UNKNOWN


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, math.inf),
        ({"proc/self/cgroup": "0::/\n"}, math.inf),
        ({"proc/self/cgroup": "0::/\n", "groups/cpu.max": "150000 100000\n"}, 1.5),
        ({"proc/self/cgroup": "0::/\n", "groups/cpu.max": "max 100000\n"}, math.inf),
        (
            {
                "proc/self/cgroup": "0::/batch/job\n",
                "groups/batch/job/cpu.max": "max 100000\n",
                "groups/batch/cpu.max": "400000 100000\n",
            },
            4.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/docker/a\n7:memory:/docker/a\n",
                "groups/cpu,cpuacct/cpu.cfs_quota_us": "250000\n",
                "groups/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            2.5,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/docker/a\n",
                "groups/cpu/docker/a/cpu.cfs_quota_us": "-1\n",
                "groups/cpu/docker/a/cpu.cfs_period_us": "100000\n",
            },
            math.inf,
        ),
    ],
)
def test_the_cpu_quota_of_a_container(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path / "proc", tmp_path / "groups") == expected


def test_a_container_quota_limits_the_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    for quota, expected in ((float("inf"), 8), (1.5, 2), (0.2, 1), (64.0, 8)):
        monkeypatch.setattr(limits, "cpu_quota", lambda quota=quota: quota)
        assert limits.cores() == expected
