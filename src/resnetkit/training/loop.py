"""The training loop: `train` is the main path, from a folder of pictures to a model file."""

from __future__ import annotations

import math
import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import randomness, runtime
from ..data import folder
from ..data.cache import Pictures
from ..data.loader import Batch, Loader
from ..data.mixing import mix
from ..data.transforms import normalize
from ..errors import TrainingError
from ..evaluation.evaluate import evaluate_part, predict_logits
from ..evaluation.metrics import accuracy_and_loss
from ..models import modelfile
from ..progress import bar, say
from ..runtime import Runtime
from . import plan, start
from .checkpoint import Checkpoints
from .ema import Average
from .interrupts import Interrupts
from .optim import (
    class_weights,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    set_trainable,
)
from .preparation import identity_of, prepare
from .recipe import Recipe
from .run import (
    Run,
    RunFolder,
    epoch_line,
    is_run,
    make_header,
    recorded_data,
    write_beginning,
    write_end,
)
from .state import State


def train(
    data: str | os.PathLike[str],
    recipe: str | Path | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    **settings: Any,
) -> Run:
    """Train a network on a folder of pictures.

    Args:
        data: a folder of classes, a folder of splits, or a CSV manifest; see `data.folder`. With
            ``resume``, the folder of a run will do: it knows its data and its recipe.
        recipe: the name of a built-in recipe, or a YAML file. By default ``finetune`` where there
            are published weights to begin with, and ``fast`` where there are none.
        out: the folder of the run; by default a new one under ``runs/``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read pictures; by default one a core. They change no bit.
        resume: go on with a run that was stopped or killed; it ends in the same bits as an
            unbroken one. Where there is nothing to resume yet, begin.
        settings: other values for fields of the recipe, as in ``epochs=5``.

    Raises:
        RecipeError, DataError, OutputError: what was asked for cannot be done.
        TrainingError: the loss is no longer finite, or what is resumed was another run.
        Interrupted: a signal asked to stop; everything is saved.
    """
    # What to do: the recipe, with everything it leaves open found from the data and the machine.
    if resume and is_run(data):
        out, recipe, data = data, Path(data) / "recipe.yaml", recorded_data(data)
    listing = folder.read(data)
    run, saved = RunFolder.open(out, f"{listing.name}-{start.model(recipe, settings)}", resume)
    chosen = start.choose(recipe, settings, run.recorded_recipe() if resume else None)
    where = runtime.pick(device, chosen.precision)
    chosen = plan.choose_network(chosen, where)
    workers = runtime.default_workers() if workers is None else workers
    chosen = plan.choose_size(chosen, listing, where)
    prepared = prepare(listing, chosen, workers)
    chosen = plan.choose_epochs(chosen, len(prepared.train))
    assert chosen.epochs is not None

    # The network: its initial weights are f(seed), or those of a file.
    model, options = plan.make_network(chosen, len(listing.classes))
    if saved is None:
        start.load(model, chosen)
    layout = torch.channels_last if chosen.channels_last else torch.contiguous_format
    model = model.to(where.device, memory_format=layout)  # type: ignore[call-overload]
    average = Average(model, chosen.ema) if chosen.ema else None
    identity = identity_of(prepared, chosen)
    state = State(model, make_optimizer(model, chosen), identity, average)
    weights = class_weights(chosen, prepared.train.part.counts(state.classes), where.device)
    sampling, repeats = chosen.sampling, chosen.repeats
    loader = Loader(prepared.train, chosen.batch_size, workers, sampling=sampling, repeats=repeats)
    batches = loader.training_batches()
    steps = chosen.steps or batches * chosen.epochs

    # Say so, and begin; or go on.
    if saved is None:
        expected = plan.measure(model, chosen, where, batches, len(prepared.val))
        say(plan.describe(prepared, chosen, where, model, workers, expected))
        run.claim()
        write_beginning(run, prepared, chosen, data)
        say(f"{'results in':14}{run.path}\n")
    else:
        state.restore(saved)
        if run.is_finished():
            say(f"{run.path} is finished already; nothing was changed.")
            return run.result(chosen, state.history)
        say(f"Going on with {run.path} at epoch {state.epoch + 1}, batch {state.batch + 1}.")

    saving = Checkpoints(run.path / "state", chosen.checkpoint_seconds)
    with saving as checkpoints, Interrupts() as interrupts:
        while state.epoch < chosen.epochs and not state.is_stuck(chosen.patience):
            # An epoch of training: order and pictures are f(seed, epoch).
            size, first = chosen.train_size(state.epoch), state.batch
            last = min(batches, steps - batches * state.epoch)  # of a run of so many steps
            augment, epoch = chosen.augmentation(), state.epoch
            coming = loader.training(augment, size, chosen.seed, epoch, first, last)
            with bar(f"epoch {epoch + 1}/{chosen.epochs}", last, first) as advance:
                clock = time.perf_counter()
                for batch in coming:
                    set_trainable(model, chosen, state.step, steps)
                    rate = learning_rate(chosen, state.step, steps)
                    loss, right = training_step(state, batch, chosen, where, rate, weights)
                    check_finite(loss, state.step, batch, prepared.train)
                    seconds, clock = time.perf_counter() - clock, time.perf_counter()
                    state.end_step(loss, right, len(batch.indices), seconds)
                    advance(state.tally.text())
                    pause(state, checkpoints, interrupts, run, checkpoints.due())

            # What it reached, on pictures that it is not trained on; the best model is kept.
            state.check_finite()
            logits = predict_logits(state.evaluated, prepared.val, where.device, workers)
            accuracy, val_loss = accuracy_and_loss(logits, prepared.val.labels())
            row = {
                "epoch": state.epoch + 1,
                "image_size": size,
                "lr": learning_rate(chosen, state.step - 1, steps),
                "train_loss": state.tally.loss,
                "train_accuracy": state.tally.accuracy,
                "val_loss": val_loss,
                "val_accuracy": accuracy,
            }
            if state.end_epoch(row, time.perf_counter() - clock):
                header = make_header(prepared, chosen, options, row)
                modelfile.write(run.model, state.evaluated.state_dict(), header)
            run.write_rows("history.csv", state.history)
            run.write_rows("timings.csv", state.timings)
            say(epoch_line(row, state.timings[-1], chosen.epochs))
            pause(state, checkpoints, interrupts, run, due=True)
        checkpoints.finish()
    if state.epoch < chosen.epochs:
        say(f"No better epoch in {chosen.patience}; stopped early.")

    # The evidence comes from the saved file, by the road that anyone takes later.
    header = make_header(prepared, chosen, options, state.history[-1])
    modelfile.write(run.last, state.evaluated.state_dict(), header)
    evaluation = evaluate_part(run.model, prepared.val.part, "val", device=device, workers=workers)
    write_end(run, chosen, state.history, evaluation)
    return run.result(chosen, state.history)


def training_step(
    state: State,
    batch: Batch,
    recipe: Recipe,
    where: Runtime,
    rate: float,
    weights: Tensor | None = None,
) -> tuple[float, int]:
    """Forward, backward, update. Returns the mean loss, and how many pictures were right.

    ``weights`` are those of the classes in the loss. A batch may be computed in parts, whose
    gradients add up; only batch norm sees the parts.
    """
    model, optimizer = state.model, state.optimizer
    torch.manual_seed(randomness.derive(recipe.seed, "network", state.step, 0))
    images = normalize(batch.images.to(where.device), recipe.preprocessing())  # (n, 3, S, S)
    labels = batch.labels.to(where.device)  # (n,)
    images, targets = mix(
        images, labels, recipe.mixup, recipe.cutmix, state.classes, recipe.seed, state.step
    )
    if not recipe.channels_last:
        images = images.contiguous()

    count, total, right = len(labels), 0.0, 0
    parts = [x.tensor_split(min(recipe.accumulate, count)) for x in (images, targets, labels)]
    for image, target, label in zip(*parts, strict=True):
        with where.autocast():
            logits = model(image)  # (n, classes)
        smoothing = recipe.label_smoothing
        loss = F.cross_entropy(
            logits.float(), target, weights, reduction="sum", label_smoothing=smoothing
        )
        loss = loss / (count if weights is None else weights[labels].sum())
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
        right += int((logits.detach().argmax(1) == label).sum())
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    optimizer.zero_grad()
    if state.average is not None and state.step % recipe.ema_every == 0:
        state.average.update(model, state.step)
    return total, right


def check_finite(loss: float, step: int, batch: Batch, pictures: Pictures) -> None:
    """Stop before a network that is no longer finite is saved."""
    if math.isfinite(loss):
        return
    names = ", ".join(str(pictures.part.paths[i]) for i in batch.indices)
    raise TrainingError(
        f"The loss is {loss} at step {step + 1}. A lower learning rate (--lr) usually helps. "
        f"The model files of the last whole epoch are kept. Pictures of this batch: {names}"
    )


def pause(
    state: State, checkpoints: Checkpoints, interrupts: Interrupts, run: RunFolder, due: bool
) -> None:
    """Save the state where that is due, and leave where a signal asked for it."""
    if due or interrupts.asked:
        state.check_finite()
        checkpoints.save(state.snapshot())
    if interrupts.asked:
        checkpoints.wait()
        interrupts.leave(f"resnet train --resume {shlex.quote(str(run.path))}")
