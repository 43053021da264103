"""SIGTERM and Ctrl-C: finish the step, save, leave. A second one stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from ..errors import Interrupted
from ..progress import say
from ..signals import SIGNALS, SignalWatchdog


class Interrupts:
    """While this context is open, the first signal is only noted, in ``asked``. A second one has
    the effect that it had before. Where the main thread is stuck in native code and reaches neither
    handler, a `signals.SignalWatchdog` ends the process.

    Outside the main thread, to which Python hands no signals, it does nothing.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}
        self._watchdog = SignalWatchdog()

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._watchdog.__enter__()
            for number in SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # a job in the background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()
        self._watchdog.__exit__(*error)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._watchdog.acknowledge()
        self._restore()
        say("Finishing this step and saving; once more to stop at once.")

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave(number: int, how_to_resume: str) -> None:
    """End the run where everything is saved, after the signal ``number`` to this process or to
    another one of the run.

    Raises:
        Interrupted: always.
    """
    message = f"Stopped; everything is saved. To go on: {how_to_resume}"
    raise Interrupted(message, 128 + number)
