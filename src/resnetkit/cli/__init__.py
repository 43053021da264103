"""Parse, dispatch, exit codes; computes nothing."""

from __future__ import annotations

import io
import logging
import os
import signal
import sys
import warnings


class _Said(logging.Handler):
    """Shows what the library logs, such as notes about a checkpoint, as everything else."""

    def emit(self, record: logging.LogRecord) -> None:
        from ..progress import say

        say(self.format(record))


def main() -> None:
    """The command ``resnet``: 0 done, 1 failed, 2 usage, 3 some inputs failed, 130/143 signals."""
    _open_closed_streams()
    # Before PyTorch is loaded. Its OpenMP threads wait for each other by spinning, by default so
    # long that one other busy process makes small nets ten to ninety times slower; a short spin
    # costs nothing where the cores are free (benchmarks/spinning.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Pillow warns about odd metadata, which changes no pixel, and about sizes that we limit.
    warnings.filterwarnings("ignore", module=r"PIL\.")

    from ..errors import ResnetkitError
    from ..signals import Watch
    from .commands import app

    for stream in (sys.stdout, sys.stderr):  # a file's name may hold what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    logging.getLogger("resnetkit").addHandler(_Said(logging.WARNING))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with Watch():
            app()
    except ResnetkitError as error:
        from ..progress import complain

        complain(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("resnet: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # the reader of our output has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)  # as SIGPIPE ends others
        raise
    except OSError as error:  # a disk that is full or fails, a folder that may not be read
        from ..progress import complain

        complain(OSError(f"{error.filename}: {error.strerror}") if error.filename else error)
        sys.exit(1)


def _open_closed_streams() -> None:
    """Some schedulers start a command without standard streams. What Python then opens first would
    get their numbers, and receive what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
            if stream.fileno() != number:
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
