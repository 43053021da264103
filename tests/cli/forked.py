"""Run ``python -m resnetkit`` in a process that `command.resnet` has forked."""

import atexit
import os
import runpy
import sys

if __name__ == "__main__":
    arguments, folder, environment, streams = REQUEST  # noqa: F821, an argument of run_path
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(streams):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    sys.argv = ["resnet", *arguments]
    try:
        runpy.run_module("resnetkit", run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing skips exit handlers
