"""Signals to a process whose main thread is stuck in native code."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

ENDING = "ending the process\n"

BUSY = """
import signal, sys, torch
from resnetkit import signals
from resnetkit.{module} import {name}
signals.FIRST_TIMEOUT, signals.REPEAT_TIMEOUT = {first}, {second}
torch.set_num_threads(1)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as the command does
matrix = torch.randn(5000, 5000, dtype=torch.float64)
torch.linalg.eigvals(matrix[:2, :2])  # loads LAPACK
with {name}():
    print("in", flush=True)
    torch.linalg.eigvals(matrix)  # half a minute in LAPACK
"""


def outcome(module, number, first, second, again):
    """Start a process, send it a signal (twice if ``again``); return exit code and stderr."""
    name = "SignalWatchdog" if module == "signals" else "Interrupts"
    code = BUSY.format(module=module, name=name, first=first, second=second)
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "in\n"
        time.sleep(1)
        process.send_signal(number)
        if again:
            time.sleep(1)
            assert process.poll() is None  # the first signal is left to Python's handlers
            process.send_signal(number)
        _, stderr = process.communicate(timeout=100)
    return process.returncode, stderr


@pytest.mark.parametrize("module", ["signals", "training.interrupts"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_a_process_that_is_stuck_in_native_code(module, number):
    code, stderr = outcome(module, number, first=1000, second=0.2, again=True)
    assert (code, stderr) == (128 + number, f"resnet: no response to {number.name}; {ENDING}")


@pytest.mark.parametrize("module", ["signals", "training.interrupts"])
def test_one_signal_ends_it_after_the_timeout(module):
    code, stderr = outcome(module, signal.SIGTERM, first=0.5, second=1000, again=False)
    assert (code, stderr) == (143, f"resnet: no response to SIGTERM; {ENDING}")


ACKNOWLEDGED = """
import os, signal, threading, time
from resnetkit import signals

signals.FIRST_TIMEOUT = 0.2
ended = []
threads = threading.active_count()
with signals.SignalWatchdog(ended.append) as watchdog:
    signal.signal(signal.SIGTERM, lambda *_: watchdog.acknowledge())
    for _ in range(50):  # before and after the listening thread has read it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.001)
    time.sleep(1)
    assert not ended
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.kill(os.getpid(), signal.SIGTERM)  # this one is never acknowledged
    for _ in range(100):
        if ended:
            break
        time.sleep(0.1)
assert ended == [143], ended
assert signal.set_wakeup_fd(-1) == -1
assert threading.active_count() == threads
"""


def test_an_acknowledged_signal_does_not_end_the_process():
    subprocess.run([sys.executable, "-c", ACKNOWLEDGED], check=True, timeout=100)


OTHERS = """
import os, signal, threading, time
from resnetkit import signals

signals.FIRST_TIMEOUT = 0.0
ended, counts = [], []
signal.signal(signal.SIGUSR1, lambda *_: None)
with signals.SignalWatchdog(ended.append):
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.3)


def elsewhere():
    with signals.SignalWatchdog(ended.append):
        counts.append(threading.active_count())


thread = threading.Thread(target=elsewhere)
thread.start()
thread.join()
assert not ended
assert counts == [2]  # nobody watches
"""


def test_other_signals_and_other_threads_are_left_alone():
    subprocess.run([sys.executable, "-c", OTHERS], check=True, timeout=100)
