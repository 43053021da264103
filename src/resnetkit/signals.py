"""End the process on Ctrl-C or SIGTERM even while the main thread is stuck in native code.

Python runs signal handlers between bytecode instructions, so a main thread that is stuck in a call
into C never runs them. The C half of Python's signal handling always runs: it writes the signal's
number to a file descriptor, from which a thread reads it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)

FIRST_TIMEOUT = 30.0
"""Seconds that the main thread has to reach a handler after the first signal."""

REPEAT_TIMEOUT = 2.0
"""Seconds that it has to reach a handler after any later signal."""


class SignalWatchdog:
    """A context manager that ends the process if no handler acknowledges a signal.

    The process ends with exit code 128 + the signal's number: `FIRST_TIMEOUT` seconds after the
    first signal, or `REPEAT_TIMEOUT` after a later one. Python delivers signals only to the main
    thread; in any other thread, the context does nothing. The watching thread needs the GIL, which
    PyTorch and the image codecs release while they work.

    Args:
        end_process: called with the exit code.
    """

    def __init__(self, end_process: Callable[[int], None] = os._exit) -> None:
        self._end_process = end_process
        self._received = 0
        self._acknowledged = 0
        self._lock = threading.RLock()  # one handler may interrupt another
        self._timer: threading.Timer | None = None
        self._listener: threading.Thread | None = None

    def __enter__(self) -> SignalWatchdog:
        if threading.current_thread() is threading.main_thread():
            self._source, self._target = os.pipe()
            if hasattr(os, "set_blocking"):  # added for Windows in Python 3.12
                os.set_blocking(self._target, False)
            self._previous_fd = signal.set_wakeup_fd(self._target, warn_on_full_buffer=False)
            self._process = os.getpid()
            self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._listener is None or os.getpid() != self._process:
            return
        signal.set_wakeup_fd(self._previous_fd)
        os.write(self._target, b"\0")
        self._listener.join()
        self.acknowledge()
        os.close(self._source)
        os.close(self._target)

    def acknowledge(self) -> None:
        """Stop the timer: a handler is running, and decides what happens next.

        The handler may call this before the listening thread has read the signal.
        """
        with self._lock:
            self._acknowledged = max(self._acknowledged + 1, self._received)
            if self._timer is not None:
                self._timer.cancel()

    def _listen(self) -> None:
        while number := os.read(self._source, 1)[0]:
            if number in SIGNALS:
                with self._lock:
                    self._start_timer(number)

    def _start_timer(self, number: int) -> None:
        self._received += 1
        if self._timer is not None:
            self._timer.cancel()
        if self._received <= self._acknowledged:
            return
        seconds = FIRST_TIMEOUT if self._received == 1 else REPEAT_TIMEOUT
        self._timer = threading.Timer(seconds, self._stop, [number])
        self._timer.daemon = True
        self._timer.start()

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        print(f"resnet: no response to {name}; ending the process", file=sys.stderr, flush=True)
        self._end_process(128 + number)
