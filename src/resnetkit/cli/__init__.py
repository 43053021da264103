"""The command line: parsing, dispatch and exit codes. Nothing is computed here."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import warnings


def main() -> None:
    """Run the ``resnet`` command and exit.

    The exit codes are 0 for success, 1 for a failure, 2 for wrong usage, 3 if some inputs failed
    (`predict`, `explain`, `similar`), 130 or 143 after a signal, and 141 if the reader of the
    output is gone. The errors in `resnetkit.errors` have their own code in ``exit_code``.
    """
    _open_closed_streams()
    # Set before PyTorch is loaded. Its OpenMP threads wait for each other by spinning. By default
    # they spin so long that one other busy process makes small networks 10 to 90 times slower. A
    # short spin costs nothing when the cores are free (benchmarks/spinning.py).
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # Pillow warns about odd metadata, which changes no pixels, and about sizes, which we check.
    warnings.filterwarnings("ignore", module=r"PIL\.")

    from ..distribution import explain_missing
    from ..errors import ResnetkitError
    from ..signals import SignalWatchdog
    from .commands import app

    # File names may contain characters that the terminal cannot encode.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if not all(argument.isprintable() for argument in sys.argv):
        from ..progress import keep_on_one_line

        keep_on_one_line(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with SignalWatchdog(), explain_missing(_user()):
            app()
    except ResnetkitError as error:
        from ..progress import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("resnet: interrupted", file=sys.stderr)
        sys.exit(130)
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # the reader of our output has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)  # the exit code of a process that SIGPIPE kills
        raise
    except OSError as error:  # such as a full disk, or a folder that may not be written
        from ..progress import print_error

        # Errors about files that we write name the file, so an error about a full disk that names
        # no file is about standard output.
        name = "standard output" if error.errno == errno.ENOSPC else None
        name = error.filename or name
        print_error(OSError(f"{name}: {error.strerror}") if name else error)
        sys.exit(1)


def _user() -> str:
    """Return the command; if it also takes exported files, add that it was given a model file."""
    command = " ".join(["resnet", *sys.argv[1:2]])
    exported_too = {*sys.argv[1:2]} & {"predict", "evaluate", "bench", "serve"}
    return f"{command} with a model file" if exported_too else command


def _open_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    Some schedulers start a command without standard streams. The first files that Python opens
    would then get the numbers 0 to 2, and receive what libraries print.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115
            if stream.fileno() != number:
                os.dup2(stream.fileno(), number)
            setattr(sys, name, stream)
