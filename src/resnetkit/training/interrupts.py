"""SIGTERM and Ctrl-C: finish the step, save, stop. A second signal stops immediately."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ..errors import Interrupted
from ..progress import say
from ..signals import SIGNALS, SignalWatchdog


class Interrupts:
    """A context manager that only records the first signal, in ``received``.

    A second signal acts as it would outside this context. If the main thread is stuck in
    native code and reaches neither handler, a `signals.SignalWatchdog` ends the process.

    Outside the main thread, where Python delivers no signals, the context does nothing.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._handlers: dict[int, Any] = {}  # the handlers to restore
        self._watchdog = SignalWatchdog()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._watchdog.__enter__()
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # background jobs ignore it
                    self._handlers[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore_handlers()
        self._watchdog.__exit__(*error)

    def _record(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._watchdog.acknowledge()
        self._restore_handlers()
        say("Finishing this step and saving. Send the signal again to stop at once.")

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def raise_interrupted(number: int, resume_command: str) -> None:
    """End a run whose state is saved, after a signal to this or another process of the run.

    Args:
        number: the number of the signal.
        resume_command: the command that resumes the run.

    Raises:
        Interrupted: always.
    """
    message = f"Stopped; everything is saved. To resume: {resume_command}"
    raise Interrupted(message, 128 + number)
