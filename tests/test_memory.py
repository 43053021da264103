"""Memory that a process may take, as made files of a Linux system tell it."""

from __future__ import annotations

import pytest

from resnetkit.memory import UNKNOWN, available_memory

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


def test_what_is_free_on_the_machine(system):
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


def test_where_nobody_tells(tmp_path):
    assert available_memory(tmp_path, tmp_path) == UNKNOWN
