"""Find convolutions that our networks can use and whose kernels are wrong.

    python benchmarks/shapes.py                  # this processor as it is, then without AVX-512
    python benchmarks/shapes.py --quick          # fewer sizes: about a minute

A wrong kernel computes wrong numbers or writes outside its memory. Each convolution runs forward
and backward, in both memory layouts, in its own process under the C library's checking allocator
(Linux with glibc), and is compared with float64. A group that is killed or exceeds its time limit
is reported like one that computes wrong numbers.
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

CHANNELS = (1, 2, 3, 4, 5, 7, 8, 12, 16, 32, 64)
MAPS = (1, 2, 3, 5, 8, 15)
BATCHES = (1, 2, 12, 16)
RESULTS = ("output", "input gradient", "weight gradient")
LIMIT = 60  # seconds for a group of shapes

AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
CHECKED = {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "85", "LD_PRELOAD": "libc_malloc_debug.so.0"}


class Convolution(NamedTuple):
    kernel: int
    stride: int
    dilation: int
    groups: int
    inputs: int
    outputs: int
    layout: str


def convolutions(quick: bool) -> Iterator[Convolution]:
    channels = CHANNELS[::2] if quick else CHANNELS
    for kernel, stride, dilation in (
        (1, 1, 1),
        (1, 2, 1),
        (3, 1, 1),
        (3, 2, 1),
        (3, 1, 2),
        (7, 2, 1),
    ):
        for inputs, outputs in product(channels, channels):
            if kernel == 7 and inputs > 4:
                continue
            shared = [g for g in (2, 4, inputs) if inputs % g == 0 == outputs % g]
            for groups in {1, *(shared if kernel == 3 else ())}:
                for layout in ("channels_last", "contiguous"):
                    yield Convolution(kernel, stride, dilation, groups, inputs, outputs, layout)


def check(case: Convolution, quick: bool) -> str:
    """Run one convolution at all sizes; return what is wrong, or an empty string."""
    import torch
    from torch.nn import functional as F

    layout = getattr(torch, f"{case.layout}_format" if case.layout == "contiguous" else case.layout)
    padding = case.dilation * (case.kernel // 2)

    def run(x: torch.Tensor, w: torch.Tensor, g: torch.Tensor | None) -> list[torch.Tensor]:
        x, w = x.requires_grad_(), w.requires_grad_()
        y = F.conv2d(x, w, None, case.stride, padding, case.dilation, case.groups)
        g = torch.randn_like(y) if g is None else g
        return [y.detach(), *torch.autograd.grad(y, (x, w), g), g]

    for side, batch in product(MAPS[::2] if quick else MAPS, BATCHES[::2] if quick else BATCHES):
        torch.manual_seed(0)
        x = torch.randn(batch, case.inputs, side, side).to(memory_format=layout)
        shape = (case.outputs, case.inputs // case.groups, case.kernel, case.kernel)
        w = torch.randn(shape).to(memory_format=layout)
        found = run(x, w, None)
        exact = run(x.detach().double(), w.detach().double(), found[3].double())
        for name, got, expected in zip(RESULTS, found, exact, strict=False):
            off = float((got.double() - expected).abs().max() / expected.abs().max().clamp(min=1))
            if not off < 1e-4:
                return f"{name} is off by {off:.2g} at batch {batch}, {side} x {side}"
    return ""


def forked(case: Convolution, quick: bool) -> str:
    """Run `check` in its own process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(LIMIT)
        os.write(write, check(case, quick).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return (
        f"killed by {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else text
    )


def walk(quick: bool) -> int:
    import torch

    torch.set_num_threads(1)  # no threads before a fork
    check(Convolution(3, 1, 1, 1, 8, 8, "contiguous"), quick=True)  # triggers lazy loading
    print(
        f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"torch {torch.__version__}",
        flush=True,
    )
    wrong: dict[tuple[object, ...], list[str]] = defaultdict(list)
    cases = list(convolutions(quick))
    for case in cases:
        problem = forked(case, quick)
        if problem:
            kind = (*case[:4], case.layout, problem.split(" at ")[0].split(" by ")[0])
            wrong[kind].append(f"{case.inputs}->{case.outputs}")
    for (kernel, stride, dilation, groups, layout, problem), pairs in wrong.items():
        print(
            f"{kernel}x{kernel} stride {stride} dilation {dilation} groups {groups} {layout}: "
            f"{problem}: {', '.join(pairs)}"
        )
    print(f"{len(cases)} convolutions, {sum(map(len, wrong.values()))} of them wrong", flush=True)
    return len(wrong)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--here", action="store_true", help="only with this process's settings")
    options = parser.parse_args()
    if options.here:
        return int(walk(options.quick) > 0)
    arguments = [sys.executable, __file__, "--here", *(["--quick"] if options.quick else [])]
    return max(
        subprocess.run(arguments, env={**os.environ, **CHECKED, **cpu}).returncode
        for cpu in ({}, AVX2)
    )


if __name__ == "__main__":
    sys.exit(main())
