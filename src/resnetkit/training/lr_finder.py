"""The learning-rate finder: a short run at increasing rates, and the rate that it suggests.

Smith, arXiv:1506.01186, section 3.3: raise the rate once from far too low to far too high, and
watch the loss. It falls while the rate is useful, and rises when the rate is too high.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import processes, randomness
from .. import runtime as machine
from ..data import folder
from ..data.device_loader import to_device
from ..data.loader import Batch
from ..errors import RecipeError, TrainingError
from ..progress import bar
from .initial_weights import resolve_recipe
from .loop import training_step
from .out_of_memory import explain_out_of_memory
from .outcomes import loss_and_correct
from .session import Session, set_up

LOWEST = 1e-6
HIGHEST = 3.0
STEPS = 120
SMOOTHING = 0.9  # share of the old mean in the new one


@dataclass(frozen=True)
class LearningRates:
    """The result of the finder.

    Args:
        rates: the learning rates that were tried, in increasing order.
        losses: the smoothed loss at each rate.
        suggestion: a good value for ``lr``.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float


@machine.pytorch_defaults()
@randomness.preserve_generators()
@machine.restored_threads()
def find_lr(
    data: str | os.PathLike[str],
    recipe: str | Path | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    **settings: Any,
) -> LearningRates:
    """Train for up to 120 steps at rates from 1e-6 to 3, and suggest the largest useful rate.

    The suggestion is a third of the rate with the lowest smoothed loss. Nothing is written to disk.

    Args:
        data, recipe, device, workers, settings: as in `train`; ``head_share`` is set to 0.

    Raises:
        RecipeError, DataError: see `train`; or there is more than one process.
        TrainingError: the loss never fell.
    """
    if processes.world_size() > 1:
        raise RecipeError("The learning-rate finder runs in one process. Start it without torchrun")
    loaded = resolve_recipe(recipe, {**settings, "head_share": 0.0})
    session = set_up(folder.read_dataset(data), loaded, machine.pick(device), workers)
    state = session.state
    losses: list[float] = []
    with bar("trying learning rates", STEPS) as advance:
        for rate, batch in zip(_rates(), _batches(session), strict=False):
            session.set_training_phase()
            with explain_out_of_memory(session.recipe, session.runtime):
                outcome = training_step(
                    state, batch, session.recipe, session.runtime, rate, session.class_weights
                )
            loss, _ = loss_and_correct(outcome.totals)
            if not math.isfinite(loss) or (losses and loss > 4 * min(losses) + 1):
                break
            losses.append(loss)
            state.step += 1
            advance(f"rate {rate:.1e}  loss {loss:.3f}")
    return suggest_rate(_rates()[: len(losses)], losses)


def suggest_rate(rates: Sequence[float], losses: Sequence[float]) -> LearningRates:
    """Smooth the losses of the individual steps, and suggest a rate.

    Raises:
        TrainingError: the loss never fell.
    """
    smooth = []
    mean = 0.0
    for count, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        smooth.append(mean / (1 - SMOOTHING**count))  # corrects for the initial mean of 0
    lowest = min(range(len(smooth)), key=smooth.__getitem__, default=0)
    if lowest < 3:
        raise TrainingError(
            f"The loss never fell at rates from {LOWEST:g} to {HIGHEST:g}. Check the images and "
            "their classes (`train_batch.png` in a run folder shows them)"
        )
    return LearningRates(tuple(rates), tuple(smooth), rates[lowest] / 3)


def _rates() -> list[float]:
    growth = (HIGHEST / LOWEST) ** (1 / (STEPS - 1))
    return [LOWEST * growth**step for step in range(STEPS)]


def _batches(session: Session) -> Iterator[Batch]:
    """Yield the batches of one epoch after another, at the largest training size."""
    image_size = session.recipe.train_size(session.epochs - 1)
    for epoch in itertools.count():
        batches = session.loader.training(
            session.recipe.augmentation(), image_size, session.recipe.seed, epoch
        )
        yield from to_device(batches, session.runtime.device)
