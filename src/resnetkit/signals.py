"""Ctrl-C and SIGTERM end the process also while it is stuck in native code.

Python runs its signal handlers between two of its own instructions. A main thread inside a long
call into C never gets there, so the handlers stay silent. The C half of Python's handling always
runs: it writes the signal's number to a file descriptor, and a thread reads it from there.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable

SIGNALS = (signal.SIGINT, signal.SIGTERM)

UNANSWERED = 30.0
"""Seconds after the first signal in which the main thread has to reach a handler."""

AT_ONCE = 2.0
"""The same after a second signal."""


class Watch:
    """While this context is open, a signal that no handler answers ends the process, with exit code
    128 + its number: the first after `UNANSWERED` seconds, a second one after `AT_ONCE`.

    Outside the main thread, to which Python hands no signals, it does nothing. The thread that
    watches needs Python's lock, which PyTorch and the image codecs release while they work.

    Args:
        end: what ends the process, given the exit code.
    """

    def __init__(self, end: Callable[[int], None] = os._exit) -> None:
        self._end = end
        self._count = self._answered = 0  # signals that came, and how many of them a handler saw
        self._lock = threading.RLock()  # a handler may interrupt another one
        self._timer: threading.Timer | None = None
        self._listener: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if threading.current_thread() is threading.main_thread():
            self._source, self._target = os.pipe()
            os.set_blocking(self._target, False)
            self._before = signal.set_wakeup_fd(self._target, warn_on_full_buffer=False)
            self._process = os.getpid()
            self._listener = threading.Thread(target=self._listen, name="signals", daemon=True)
            self._listener.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._listener is None or os.getpid() != self._process:
            return
        signal.set_wakeup_fd(self._before)
        os.write(self._target, b"\0")
        self._listener.join()
        self.answered()
        os.close(self._source)
        os.close(self._target)

    def answered(self) -> None:
        """Stop the clock: a handler runs, and decides what happens from here on. It may run before
        the thread has read of the signal."""
        with self._lock:
            self._answered = max(self._answered + 1, self._count)
            if self._timer is not None:
                self._timer.cancel()

    def _listen(self) -> None:
        while number := os.read(self._source, 1)[0]:
            if number in SIGNALS:
                with self._lock:
                    self._received(number)

    def _received(self, number: int) -> None:
        self._count += 1
        if self._timer is not None:
            self._timer.cancel()
        if self._count <= self._answered:
            return
        seconds = UNANSWERED if self._count == 1 else AT_ONCE
        self._timer = threading.Timer(seconds, self._stop, [number])
        self._timer.daemon = True
        self._timer.start()

    def _stop(self, number: int) -> None:
        name = signal.Signals(number).name
        print(f"resnet: {name} was not answered; the process is ended", file=sys.stderr, flush=True)
        self._end(128 + number)
