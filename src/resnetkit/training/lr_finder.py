"""The learning-rate finder: a short run whose rate grows, and what its loss says.

Smith, arXiv:1506.01186, section 3.3: raise the rate from far too low to far too high, once, and
look at the loss. It falls while the rate is useful, and rises where it is too high.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import randomness, runtime
from ..data import folder
from ..data.loader import Batch
from ..errors import RecipeError, TrainingError
from ..progress import bar
from . import start
from .loop import training_step
from .memory_limit import enough_memory
from .outcomes import totals
from .session import Session, set_up

LOWEST, HIGHEST, STEPS = 1e-6, 3.0, 120
SMOOTHING = 0.9  # share of the old mean in the next


@dataclass(frozen=True)
class LearningRates:
    """``losses`` are smoothed, one for each of ``rates``; ``suggestion`` is where to set ``lr``."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


@runtime.pytorch_defaults()
@randomness.preserve_generators()
@runtime.restored_threads()
def find_lr(
    data: str | os.PathLike[str],
    recipe: str | Path | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    **settings: Any,
) -> LearningRates:
    """Train for up to 120 steps at rates from 1e-6 to 3, and suggest the greatest useful one: a
    third of the rate at which the smoothed loss was lowest. Nothing is written.

    Args:
        data, recipe, device, workers, settings: as in `train`; the head is not trained alone.

    Raises:
        RecipeError, DataError: as in `train`; or there are several processes.
        TrainingError: the loss never fell.
    """
    if runtime.world_size() > 1:
        raise RecipeError("learning rates are tried by one process: leave out torchrun")
    asked = start.resolve_recipe(recipe, {**settings, "head_share": 0.0})
    session = set_up(folder.read_dataset(data), asked, device, workers)
    state = session.state
    losses: list[float] = []
    with bar("trying learning rates", STEPS) as advance:
        for rate, batch in zip(_rates(), _batches(session), strict=False):
            session.set_phase()
            with enough_memory(session.recipe, session.runtime):
                outcome = training_step(
                    state, batch, session.recipe, session.runtime, rate, session.class_weights
                )
            loss, _ = totals(outcome)
            if not math.isfinite(loss) or (losses and loss > 4 * min(losses) + 1):
                break
            losses.append(loss)
            state.step += 1
            advance(f"rate {rate:.1e}  loss {loss:.3f}")
    return suggest(_rates()[: len(losses)], losses)


def suggest(rates: Sequence[float], losses: Sequence[float]) -> LearningRates:
    """What the ``losses`` of single steps say about their ``rates``.

    Raises:
        TrainingError: the loss never fell.
    """
    smooth, mean = [], 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth.append(mean / (1 - SMOOTHING**count))  # without the zero that the mean began with
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    if lowest < 3:
        raise TrainingError(
            f"The loss never fell at rates from {LOWEST:g} to {HIGHEST:g}: look at the pictures "
            "and their classes (`train_batch.png` of a run shows them)"
        )
    return LearningRates(tuple(rates), tuple(smooth), rates[lowest] / 3)


def _rates() -> list[float]:
    growth = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    return [LOWEST * growth**step for step in range(STEPS)]


def _batches(session: Session) -> Iterator[Batch]:
    """Yield the batches of one epoch after another, at the largest size of training."""
    image_size = session.recipe.train_size(session.epochs - 1)
    while True:
        yield from session.batches(image_size)
        session.state.epoch += 1
