"""A seed sweep: one recipe with several seeds, to measure how much results vary between seeds."""

from __future__ import annotations

import os
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import processes, storage
from ..data import folder
from ..errors import Interrupted, RecipeError
from ..progress import say
from .initial_weights import network_name
from .loop import train
from .recipe import load_recipe
from .run import Run

MAX_SEEDS = 10_000
"""Maximum number of seeds in a range. Each seed is a run."""


@dataclass(frozen=True)
class SeedSweep:
    """The result of a seed sweep.

    Args:
        folder: holds a run folder for each seed, and ``seeds.json``.
        runs: one run per seed.
        mean: mean validation accuracy of the runs.
        deviation: sample standard deviation of the runs' accuracies.
    """

    folder: Path
    runs: tuple[Run, ...]
    mean: float
    deviation: float


def parse_seeds(text: str, fewest: int = 2) -> list[int]:
    """Parse seeds from ``"0-4"``, ``"1,5,7"`` or a mix of both.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]

    Raises:
        RecipeError: the text is malformed, repeats a seed, or has too many or fewer than ``fewest``
            seeds.
    """
    seeds: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", piece)
        if match is None:
            raise RecipeError(f"--seeds takes numbers, as in 0-4 or 1,5,7; got {text!r}")
        first = int(match[1])
        last = int(match[2] or match[1])
        if last - first >= MAX_SEEDS:
            raise RecipeError(f"--seeds takes up to {MAX_SEEDS:,} seeds; got {text!r}")
        seeds += range(first, last + 1)
    if len(seeds) < fewest or len(set(seeds)) < len(seeds):
        expected = "two or more different numbers" if fewest == 2 else "different numbers"
        raise RecipeError(f"--seeds takes {expected}, as in 0-4 or 1,5,7; got {text!r}")
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
    corrections: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> SeedSweep:
    """Train once per seed, into ``seed-0``, ``seed-1``, ... inside one folder.

    All runs use the number of compute threads that was measured for the first.

    Args:
        data: as in `train`.
        recipe: as in `train`.
        seeds: two or more different seeds.
        out: the folder; by default ``runs/<data>-<model>-seeds``. ``seeds.json`` is written last.
        device: as in `train`.
        workers: as in `train`.
        resume: continue the runs in the folder; finished runs do not change.
        tensorboard: as in `train`.
        corrections: as in `train`.
        settings: as in `train`; ``seed`` is not allowed.

    Raises:
        RecipeError: ``seed`` is also set, ``val_split`` is 0, or there are fewer than two different
            seeds.

    It also raises the same errors as `train`.
    """
    if "seed" in settings:
        raise RecipeError("Set --seed or --seeds, not both")
    if load_recipe(recipe or "finetune").with_settings(settings).val_split == 0:
        raise RecipeError("A seed sweep compares validation accuracies: set val_split above 0")
    if len(set(seeds)) < max(2, len(seeds)):
        raise RecipeError(f"seeds must be two or more different numbers; got {list(seeds)}")
    name = f"{folder.read_dataset(data).name}-{network_name(recipe, settings)}-seeds"
    path = Path("runs") / name if out is None else Path(out)
    if not resume:
        storage.refuse_used(path)
    runs: list[Run] = []
    for seed in seeds:
        say(f"\nseed {seed}\n")
        try:
            run = train(
                data,
                recipe,
                out=path / f"seed-{seed}",
                device=device,
                workers=workers,
                resume=resume,
                tensorboard=tensorboard,
                corrections=corrections,
                show_plan=not runs,
                **{**settings, "seed": seed},
            )
        except Interrupted as error:
            raise Interrupted(
                "Stopped; everything is saved. To continue, add --resume to the same command",
                error.exit_code,
            ) from error
        runs.append(run)
        if processes.rank() == 0:
            storage.make_output(path)  # not earlier: `train` may refuse to start
        settings = {"threads": run.recipe.threads, **settings}
    accuracies = [run.metrics["accuracy"] for run in runs]
    mean = statistics.mean(accuracies)
    deviation = statistics.stdev(accuracies)
    if processes.rank() == 0:
        storage.write_json(
            path / "seeds.json",
            {"seeds": list(seeds), "accuracies": accuracies, "mean": mean, "deviation": deviation},
        )
    return SeedSweep(path, tuple(runs), mean, deviation)
