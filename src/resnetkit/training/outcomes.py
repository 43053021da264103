"""The outcomes of training steps, read one step late.

Reading a number from a GPU means waiting for the GPU, which then idles because nothing new is
queued. So the copy of a step's outcome to the CPU starts as soon as the step is queued, and the
outcome is read after the next step is queued.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from torch import Tensor

from .. import runtime as machine
from ..data.folder import Split
from ..data.loader import shares
from ..errors import TrainingError
from ..runtime import Runtime
from .state import State


class Outcome(NamedTuple):
    """The measurements of a training step on one rank.

    Args:
        totals: ``(micro-batches, 2)`` float32: loss and number of correct images in each.
        margins: ``(n,)`` float32, the margin of each image; see `label_margins`.
    """

    totals: Tensor
    margins: Tensor


@dataclass(frozen=True)
class _Pending:
    """An outcome on its way to the CPU."""

    step: int
    indices: np.ndarray  # (N,), of all images in the batch
    read_totals: Callable[[], Tensor]
    read_margins: Callable[[], Tensor]


class Outcomes:
    """The outcomes of an epoch's steps, which are added to the tally and margins in the state.

    Args:
        state: the state of the run.
        split: the training images, to name them in errors.
        runtime: this rank and its connection to the others.
    """

    def __init__(self, state: State, split: Split, runtime: Runtime) -> None:
        self.state = state
        self.split = split
        self.runtime = runtime
        self._pending: deque[_Pending] = deque()
        self._last_read = time.perf_counter()

    def add(self, outcome: Outcome, indices: np.ndarray) -> None:
        """Start copying the outcome of the current step to the CPU.

        Args:
            outcome: the result of `training_step`.
            indices: ``(N,)``, indices into the training split, for the whole batch.
        """
        self._pending.append(_Pending(self.state.step, indices, *map(machine.read_later, outcome)))

    def exchange(self, is_due: bool, signal: int | None) -> tuple[bool, int]:
        """Read the outcome of the previous step, and agree with the other ranks on what to do next.

        All ranks must call this. The outcome of the latest step stays pending.

        Args:
            is_due: whether a checkpoint is due; the main rank decides.
            signal: the number of the signal that this rank received, if any.

        Returns:
            Whether a checkpoint is due, and the number of a signal that any rank received, or 0.

        Raises:
            TrainingError: the loss is not finite; raised on all ranks.
        """
        return self._read_oldest(is_due, signal or 0, keep=1)

    def drain(self) -> None:
        """Read all pending outcomes. All ranks must call this.

        Raises:
            TrainingError: the loss is not finite; raised on all ranks.
        """
        self._read_oldest(keep=0)

    def _read_oldest(self, is_due: bool = False, signal: int = 0, *, keep: int) -> tuple[bool, int]:
        """Add the oldest outcome to the state if more than ``keep`` are pending."""
        oldest = self._pending.popleft() if len(self._pending) > keep else None
        loss, correct = (0.0, 0) if oldest is None else loss_and_correct(oldest.read_totals())
        numbers = [loss, correct, is_due, signal]
        if oldest is not None and self.state.margins is not None:
            numbers += _padded_margins(oldest, self.runtime.world_size)
        rows = self.runtime.gather(numbers)  # one row per rank
        losses, corrects, dues, signals, *margins = zip(*rows, strict=True)
        if oldest is not None:
            self._check_finite(losses, oldest)
            if self.state.margins is not None:
                by_rank = shares(oldest.indices, len(rows))
                for indices, row in zip(by_rank, zip(*margins, strict=True), strict=True):
                    self.state.margins.add(indices, row[: len(indices)])
            now = time.perf_counter()
            seconds = now - self._last_read
            self._last_read = now
            self.state.tally.add(sum(losses), int(sum(corrects)), len(oldest.indices), seconds)
        return bool(dues[0]), int(max(signals))

    def _check_finite(self, losses: Sequence[float], outcome: _Pending) -> None:
        failed = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        if not failed:
            return
        self.state.check_scale()
        by_rank = shares(outcome.indices, len(losses))
        names = ", ".join(str(self.split.paths[i]) for rank in failed for i in by_rank[rank])
        ranks = f" on rank {', '.join(map(str, failed))}" if len(losses) > 1 else ""
        fp32_hint = " or --set precision=fp32" if self.runtime.precision == "fp16" else ""
        raise TrainingError(
            f"The loss is {losses[failed[0]]} at step {outcome.step + 1}. A lower learning rate "
            f"(--lr){fp32_hint} usually helps. Earlier saves are kept. Images in this "
            f"batch{ranks}: {names}"
        )


def _padded_margins(outcome: _Pending, ranks: int) -> list[float]:
    """Return the margins of this rank, padded with zeros to the length of the longest share.

    All ranks must gather the same number of values, but their shares can differ in length by one.
    """
    margins: list[float] = outcome.read_margins().tolist()
    longest = -(-len(outcome.indices) // ranks)
    return margins + [0.0] * (longest - len(margins))


def loss_and_correct(totals: Tensor) -> tuple[float, int]:
    """Return the loss of a batch and its number of correct images, summed over micro-batches.

    Args:
        totals: ``(micro-batches, 2)`` float32; see `Outcome`.
    """
    losses, corrects = zip(*totals.tolist(), strict=True)
    return sum(losses), int(sum(corrects))
