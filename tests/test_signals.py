"""Signals to a process whose main thread never comes back to Python."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

ENDED = "the process is ended\n"

BUSY = """
import signal, sys, torch
from resnetkit import signals
from resnetkit.{room} import {name}
signals.UNANSWERED, signals.AT_ONCE = {first}, {second}
torch.set_num_threads(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
matrix = torch.randn(5000, 5000, dtype=torch.float64)
torch.linalg.eigvals(matrix[:2, :2])  # loads LAPACK
with {name}():
    print("in", flush=True)
    torch.linalg.eigvals(matrix)  # half a minute in LAPACK
"""


def outcome(room, number, first, second, again):
    """Start a process, send it ``number``, twice if ``again``; return its exit code and words."""
    name = "Watch" if room == "signals" else "Interrupts"
    code = BUSY.format(room=room, name=name, first=first, second=second)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        time.sleep(1)
        process.send_signal(number)
        if again:
            time.sleep(1)
            assert process.poll() is None  # the first is left to Python's handlers
            process.send_signal(number)
        _, words = process.communicate(timeout=100)
    return process.returncode, words


@pytest.mark.parametrize("room", ["signals", "training.interrupts"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_that_is_stuck_in_native_code(room, number):
    code, words = outcome(room, number, first=1000, second=0.2, again=True)
    assert (code, words) == (128 + number, f"resnet: {number.name} was not answered; {ENDED}")


@pytest.mark.parametrize("room", ["signals", "training.interrupts"])
def test_one_signal_ends_it_when_nothing_answers_in_time(room):
    code, words = outcome(room, signal.SIGTERM, first=0.5, second=1000, again=False)
    assert (code, words) == (143, f"resnet: SIGTERM was not answered; {ENDED}")


ANSWERED = """
import os, signal, threading, time
from resnetkit import signals

signals.UNANSWERED = 0.2
ended = []
threads = threading.active_count()
with signals.Watch(ended.append) as watch:
    signal.signal(signal.SIGTERM, lambda *_: watch.answered())
    for _ in range(50):  # before and after the thread has read of it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
    time.sleep(1)
    assert not ended
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.kill(os.getpid(), signal.SIGTERM)  # nobody says that this one was answered
    for _ in range(100):
        if ended:
            break
        time.sleep(0.1)
assert ended == [143], ended
assert signal.set_wakeup_fd(-1) == -1
assert threading.active_count() == threads
"""


def test_a_signal_that_is_answered_ends_nothing():
    subprocess.run([sys.executable, "-c", ANSWERED], check=True, timeout=100)


OTHERS = """
import os, signal, threading, time
from resnetkit import signals

signals.UNANSWERED = 0.0
ended, counts = [], []
signal.signal(signal.SIGUSR1, lambda *_: None)
with signals.Watch(ended.append):
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.3)


def elsewhere():
    with signals.Watch(ended.append):
        counts.append(threading.active_count())


thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
assert not ended
assert counts == [2]  # nobody watches
"""


def test_other_signals_and_other_threads_are_left_alone():
    subprocess.run([sys.executable, "-c", OTHERS], check=True, timeout=100)
