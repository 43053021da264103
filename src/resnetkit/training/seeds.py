"""One recipe from several seeds: what a single run cannot tell is how far chance goes."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import runtime, storage
from ..data import folder
from ..errors import RecipeError
from ..progress import say
from . import start
from .loop import train
from .run import Run


@dataclass(frozen=True)
class SeedSweep:
    """``runs``, one a seed; mean and standard deviation (of the sample) of their accuracies."""

    folder: Path
    runs: tuple[Run, ...]
    mean: float
    deviation: float


def parse_seeds(text: str, fewest: int = 2) -> list[int]:
    """``"0-4"``, ``"1,5,7"`` or a mixture.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]

    Raises:
        RecipeError: something else, the same number twice, or fewer than ``fewest``.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        found = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        if found is None:
            raise RecipeError(f"--seeds takes numbers, as in 0-4 or 1,5,7; got {text!r}")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    if len(seeds) < fewest or len(set(seeds)) < len(seeds):
        least = "two or more different numbers" if fewest == 2 else "different numbers"
        raise RecipeError(f"--seeds takes {least}, as in 0-4 or 1,5,7; got {text!r}")
    return seeds


def train_seeds(
    data: str | os.PathLike[str],
    recipe: str | Path | None = None,
    *,
    seeds: Sequence[int],
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    **settings: Any,
) -> SeedSweep:
    """`train` once for each of ``seeds``, into ``seed-0``, ``seed-1``, ... of one folder.

    All of them compute with the threads that were measured for the first.

    Args:
        out: that folder; by default ``runs/<data>-<model>-seeds``. ``seeds.json`` comes last.
        resume: go on with what is there; runs that are finished stay as they are.
        device, workers, tensorboard, settings: as in `train`; a ``seed`` among the settings is an
            error.

    Raises:
        RecipeError: ``seed`` is given too, or fewer than two seeds. And all that `train` raises.
    """
    if "seed" in settings:
        raise RecipeError("give --seed or --seeds, not both")
    if len(set(seeds)) < max(2, len(seeds)):
        raise RecipeError(f"seeds are two or more different numbers; got {list(seeds)}")
    name = f"{folder.read_dataset(data).name}-{start.network_name(recipe, settings)}-seeds"
    path = Path("runs") / name if out is None else Path(out)
    if not resume:
        storage.refuse_used(path)
    runs: list[Run] = []
    for seed in seeds:
        say(f"\nseed {seed}\n")
        one = train(
            data,
            recipe,
            out=path / f"seed-{seed}",
            device=device,
            workers=workers,
            resume=resume,
            tensorboard=tensorboard,
            show_plan=not runs,
            **{**settings, "seed": seed},
        )
        runs.append(one)
        settings = {"threads": one.recipe.threads, **settings}
    accuracies = [run.metrics["accuracy"] for run in runs]
    mean, deviation = statistics.mean(accuracies), statistics.stdev(accuracies)
    found = {"seeds": list(seeds), "accuracies": accuracies, "mean": mean, "deviation": deviation}
    if runtime.rank() == 0:
        storage.write_json(path / "seeds.json", found)
    return SeedSweep(path, tuple(runs), mean, deviation)
