"""Measure what the search for wrong labels adds to training, as ratios within one process.

    python benchmarks/label_errors_cost.py PHOTOS IMAGE_SIZE

It alternates training steps with and without margins, then compares the final pass over some images
with the training steps on them. It measures CPU seconds of the process, because other programs may
be running.
"""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import replace

import numpy as np
import torch

from resnetkit.data.folder import read_dataset
from resnetkit.evaluation.evaluate import predict_features
from resnetkit.runtime import pick
from resnetkit.training import loop
from resnetkit.training.initial_weights import resolve_recipe
from resnetkit.training.outcomes import Outcomes
from resnetkit.training.session import set_up

STEPS = 12
ROUNDS = 4
EPOCHS = 16


def main() -> None:
    data, size = sys.argv[1:]
    torch.set_num_threads(1)
    settings = {"image_size": int(size), "threads": 1, "epochs": EPOCHS}
    session = set_up(read_dataset(data), resolve_recipe(None, settings), pick("cpu"), 1)
    state = session.state
    train_size = session.recipe.train_size(EPOCHS // 2)
    made = session.loader.training(session.recipe.augmentation(), train_size, 0, 0, last=STEPS)
    batches = list(made)
    state.step = session.steps // 2  # after the phase that trains only the head
    session.set_training_phase()
    outcomes = Outcomes(state, session.data.train.split, session.runtime)
    margins = state.margins
    real = loop.label_margins

    def step(batch: loop.Batch, with_margins: bool) -> float:
        loop.label_margins = real if with_margins else lambda _, labels: labels
        state.margins = margins if with_margins else None
        started = time.process_time()
        outcome = loop.training_step(state, batch, session.recipe, session.runtime, 1e-4)
        outcomes.add(outcome, batch.indices)
        outcomes.drain()
        return time.process_time() - started

    for batch in batches[:5]:
        step(batch, True)
    pairs = [(step(b, True), step(b, False)) for _ in range(ROUNDS) for b in batches]
    with_margins, without = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"a step with margins: {with_margins / without - 1:+.2%}, n = {len(pairs)} pairs")

    train = session.data.train
    shown = train.select(train.split.select(np.arange(sum(len(b.indices) for b in batches))))
    shown = replace(shown, preprocessing=session.recipe.preprocessing())
    ratios = []
    for _ in range(ROUNDS):
        seconds = sum(step(batch, True) for batch in batches)
        started = time.process_time()
        predict_features(
            session.model,
            shown,
            session.runtime.device,
            0,
            precision=session.runtime.precision,
        )
        ratios.append((time.process_time() - started) / seconds)
    ratio = statistics.median(ratios)
    print(f"the final pass: {ratio:.1%} of an epoch, {ratio / EPOCHS:+.2%} on {EPOCHS} epochs")


if __name__ == "__main__":
    main()
