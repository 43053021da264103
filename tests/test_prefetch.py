"""Prefetching threads, and files that never arrive."""

from __future__ import annotations

import threading
import time

import pytest

from resnetkit import prefetch
from resnetkit.data import files, folder
from resnetkit.data.cache import scan
from resnetkit.data.preprocessing import Preprocessing
from resnetkit.errors import DataError, ImageError
from resnetkit.prefetch import prefetch_map, reading


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_and_errors_come_in_order(workers):
    assert list(prefetch_map(lambda x: x * x, range(50), workers)) == [x * x for x in range(50)]
    results = prefetch_map(lambda x: 6 // (3 - x), iter(range(6)), workers)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_at_most_two_results_per_worker_are_prefetched():
    begun = []
    before = threading.enumerate()
    results = prefetch_map(lambda x: begun.append(x), range(100), 2)
    next(results)
    time.sleep(0.2)
    assert len(begun) <= 5
    results.close()
    assert not {*threading.enumerate()} - {*before}


def test_a_timeout_error_of_the_function_is_not_a_stuck_thread():
    def gone(_):
        raise TimeoutError("the server does not answer")

    with pytest.raises(TimeoutError, match="does not answer"):
        list(prefetch_map(gone, [1], 1))


@pytest.fixture
def dead(monkeypatch):
    """Files that block until the test ends, as {name: how often}, and the names opened so far."""
    over, asked, gave_up = threading.Event(), [], []
    monkeypatch.setattr(prefetch, "STUCK", 0.3)
    monkeypatch.setattr(prefetch, "PATIENCE", 0.3)
    real, waiting = files.open_file, {}

    def open_file(path, name=None):
        if path.name in waiting:
            asked.append(path.name)
            if asked.count(path.name) <= waiting[path.name]:
                gave_up.extend([path.name] * (not over.wait(100)))
        return real(path, name)

    monkeypatch.setattr(files, "open_file", open_file)
    yield waiting, asked
    over.set()
    assert not gave_up


def test_a_file_that_never_arrives_is_named_and_retried_once(flat_folder, dead, capsys):
    waiting, asked = dead
    split = folder.read_dataset(flat_folder).splits["all"]
    waiting["003.png"] = 10**9  # in each of the three classes
    with pytest.raises(DataError, match=r"trying again did not help; .*blue/003\.png.* network"):
        scan(split, Preprocessing(32, 32), 2, lambda text: None)
    message = capsys.readouterr().err.replace("\n", " ")
    assert "Nothing has arrived for 0.3 seconds; being read:" in message
    assert asked.count("003.png") >= 2


def test_a_file_that_arrives_at_the_second_try_is_used(flat_folder, dead):
    waiting, asked = dead
    split = folder.read_dataset(flat_folder).splits["all"]
    expected = scan(split, Preprocessing(32, 32), 0, lambda text: None).digests
    waiting["003.png"] = 1
    found = scan(split, Preprocessing(32, 32), 2, lambda text: None)
    assert found.digests == expected
    assert not found.unreadable
    assert asked.count("003.png") == 2 * 3 + 1  # headers, files, and one retry


def test_a_batch_of_slow_files_is_not_stuck(monkeypatch, capsys):
    """Each file takes almost as long as the limit, but the clock restarts with every file."""
    now = [0.0]
    monkeypatch.setattr(prefetch, "STUCK", 1.0)
    monkeypatch.setattr(prefetch.time, "monotonic", lambda: now[0])
    looked = threading.Event()
    real = prefetch.wait

    def short_wait(futures, timeout, when):
        looked.set()
        return real(futures, 0.01, when)

    monkeypatch.setattr(prefetch, "wait", short_wait)

    def batch(_):
        for number in range(15):
            with reading(f"{number}.png"):
                looked.clear()
                assert looked.wait(60)  # the caller waits for this file
                now[0] += 0.9
        return "whole"

    assert list(prefetch_map(batch, [0], 1)) == ["whole"]
    assert "Nothing has arrived" not in capsys.readouterr().err


def test_closing_does_not_wait_for_a_blocked_file(dead, tmp_path):
    waiting, _ = dead
    (tmp_path / "slow.png").write_bytes(b"")
    waiting["slow.png"] = 10**9

    def read(path):
        with pytest.raises(ImageError):
            files.read_file(tmp_path / "missing.png")
        return files.read_file(path)

    results = prefetch_map(read, [tmp_path / "slow.png"] * 3, 2)
    with reading("something else"), pytest.raises(DataError):
        next(results)
    results.close()
