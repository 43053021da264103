"""Run ``resnet`` in its own process, forked from one that has already imported PyTorch.

Importing PyTorch takes seconds of CPU time, and the tests run the command a hundred times.
PyTorch is loaded before the command can set variables for it, such as GOMP_SPINCOUNT.
"""

import functools
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORTED = (
    "torch",
    "matplotlib.pyplot",
    "resnetkit.training.loop",
    "resnetkit.inference.predictor",
)
READ_LATE = {"COLUMNS"}
"""Variables that are read only when the command runs. Others may be read when Python starts."""


def resnet(*arguments, cwd=None, input=None, text=False, **environment):
    """Run the command and return the finished process, as `subprocess.run` does.

    Args:
        arguments: the command's arguments.
        cwd: the folder it runs in.
        input: standard input.
        text: whether ``stdout`` and ``stderr`` are strings, not bytes.
        environment: extra variables; any except COLUMNS requires a new Python process.
    """
    arguments = [str(argument) for argument in arguments]
    is_new = not set(environment) <= READ_LATE or os.name != "posix"
    environment = {**os.environ, "COLUMNS": "100", **environment}
    if is_new:
        command = [sys.executable, "-m", "resnetkit", *arguments]
        done = subprocess.run(
            command, capture_output=True, cwd=cwd, input=input, env=environment, timeout=300
        )
    else:
        done = _forked(arguments, cwd or os.getcwd(), input, environment)
    if text:
        done.stdout, done.stderr = done.stdout.decode(), done.stderr.decode()
    return done


def _forked(arguments, cwd, input, environment):
    with tempfile.TemporaryDirectory(prefix="command-") as folder:
        streams = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        for path in streams:
            path.write_bytes(input or b"" if path.name == "stdin" else b"")
        request = (arguments, str(cwd), environment, [str(path) for path in streams])
        script = str(Path(__file__).with_name("forked.py"))
        process = _server().Process(
            target=runpy.run_path, args=(script, {"REQUEST": request}, "__main__")
        )
        process.start()
        process.join(300)
        if process.exitcode is None:
            process.kill()
            raise subprocess.TimeoutExpired(arguments, 300)
        output = [path.read_bytes() for path in streams[1:]]
        return subprocess.CompletedProcess(arguments, process.exitcode, *output)


@functools.cache
def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context
