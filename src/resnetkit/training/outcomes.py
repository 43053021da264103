"""What training steps reached, read one step late.

To read a number from a GPU is to wait until the GPU has it, and meanwhile nobody gives it more to
do. So the numbers of a step start their way to the CPU as soon as the step is queued, and are read
after the next one is queued.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from .. import runtime
from ..data.folder import Split
from ..data.loader import shares
from ..errors import TrainingError
from ..runtime import Runtime
from .state import State


@dataclass(frozen=True)
class _Queued:
    step: int
    indices: np.ndarray  # of the images of the whole batch
    numbers: Callable[[], Tensor]


class Outcomes:
    """The outcomes of an epoch's steps, on their way into the tally of ``state``.

    Args:
        part: the training images, which an error names.
    """

    def __init__(self, state: State, split: Split, where: Runtime) -> None:
        self.state, self.split, self.where = state, split, where
        self._queued: deque[_Queued] = deque()
        self._clock = time.perf_counter()

    def add(self, outcome: Tensor, indices: np.ndarray) -> None:
        """Start to fetch the outcome of the step that was just queued, and turn to the next."""
        self._queued.append(_Queued(self.state.step, indices, runtime.fetch(outcome)))
        self.state.end_step()

    def read(self, keep: int, due: bool = False, signal: int = 0) -> tuple[bool, int]:
        """Read the oldest outcome, unless only ``keep`` are queued; and agree with the other ranks,
        in the same exchange, on whether a checkpoint is ``due`` and a ``signal`` came.

        Raises:
            TrainingError: the loss is not finite; all ranks find the same.
        """
        oldest = self._queued.popleft() if len(self._queued) > keep else None
        loss, correct = (0.0, 0) if oldest is None else totals(oldest.numbers())
        told = self.where.gather([loss, correct, due, signal])
        losses, corrects, dues, signals = zip(*told, strict=True)
        if oldest is not None:
            self._check_finite(losses, oldest)
            seconds, self._clock = time.perf_counter() - self._clock, time.perf_counter()
            count = len(oldest.indices)
            self.state.tally.add(sum(losses), int(sum(corrects)), count, seconds)
        return bool(dues[0]), int(max(signals))

    def _check_finite(self, losses: Sequence[float], of: _Queued) -> None:
        wrong = [rank for rank, loss in enumerate(losses) if not math.isfinite(loss)]
        if not wrong:
            return
        self.state.check_scale()
        of_rank = shares(of.indices, len(losses))
        names = ", ".join(str(self.split.paths[i]) for rank in wrong for i in of_rank[rank])
        ranks = f" on rank {', '.join(map(str, wrong))}" if len(losses) > 1 else ""
        exact = " or --set precision=fp32" if self.where.precision == "fp16" else ""
        raise TrainingError(
            f"The loss is {losses[wrong[0]]} at step {of.step + 1}. A lower learning rate "
            f"(--lr){exact} usually helps. The model files of the last whole epoch are kept. "
            f"Pictures of this batch{ranks}: {names}"
        )


def totals(outcome: Tensor) -> tuple[float, int]:
    """The loss of a batch and its number of correct images, summed over its parts.

    Args:
        outcome: ``(parts, 2)`` float32, as `training_step` returns it.
    """
    losses, corrects = zip(*outcome.tolist(), strict=True)
    return sum(losses), int(sum(corrects))
