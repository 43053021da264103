"""The training loop: `train` is the main path, from a folder of pictures to a model file."""

from __future__ import annotations

import math
import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import randomness, runtime
from ..data import folder
from ..data.device_loader import to_device
from ..data.loader import Batch
from ..data.mixing import mix
from ..data.ondevice import make_loader
from ..data.transforms import normalize
from ..evaluation.evaluate import BATCH_SIZE, predict_logits
from ..evaluation.metrics import accuracy_and_loss
from ..progress import bar, say
from ..runtime import Runtime
from . import parallel, plan, start
from .checkpoint import Checkpoints
from .depth import shallow
from .ema import Average
from .events import Events
from .interrupts import Interrupts, leave
from .memory_limit import enough_memory
from .optim import (
    class_weights,
    learning_rate,
    make_optimizer,
    set_learning_rate,
    set_trainable,
)
from .outcomes import Outcomes
from .preparation import Prepared, check_equal, identity_of, prepare
from .recipe import Recipe
from .run import (
    Run,
    RunFolder,
    begun_with,
    epoch_line,
    finish,
    is_run,
    make_header,
    write_beginning,
    write_epoch,
)
from .state import State


@runtime.pytorch_defaults()
@randomness.preserve_generators()
@runtime.connected()
@runtime.restored_threads()
def train(
    data: str | os.PathLike[str],
    recipe: str | Path | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    show_plan: bool = True,
    **settings: Any,
) -> Run:
    """Train a network on a folder of pictures.

    Under torchrun every process comes here, and each takes its share of every batch. What
    `Runtime.once` is given is done by the first of them alone: it measures and writes for all.

    Args:
        data: a folder of classes, a folder of splits, or a CSV manifest; see `data.folder`. With
            ``resume``, the folder of a run will do: it knows its data and its recipe.
        recipe: the name of a built-in recipe, or a YAML file. By default ``finetune`` where there
            are published weights to begin with, and ``fast`` where there are none.
        out: the folder of the run; by default a new one under ``runs/``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read pictures; by default one a core. They change no bit.
        resume: go on with a run that was stopped or killed. On a CPU it ends in the same bits as
            an unbroken one; on a GPU cuDNN may choose other kernels. Where there is nothing to
            resume yet, begin.
        tensorboard: write the history for TensorBoard too, into ``tensorboard/`` of the run.
        show_plan: measure a few steps, and say what the run is going to do.
        settings: other values for fields of the recipe, as in ``epochs=5``.

    Raises:
        RecipeError, DataError, OutputError: what was asked for cannot be done.
        TrainingError: the loss is no longer finite, or what is resumed was another run.
        Interrupted: a signal asked to stop; everything is saved.
    """
    # What to do: the recipe, with everything it leaves open found from the data and the machine.
    if resume and is_run(data):
        out, recipe, data = begun_with(data, out, recipe)
    where = runtime.pick(device)
    listing = folder.read(data)
    name = f"{listing.name}-{start.model(recipe, settings)}"
    run, saved = where.once(RunFolder.open, out, name, resume, data)
    recorded = where.once(run.recorded_recipe) if resume else None
    chosen = where.once(start.choose, recipe, settings, recorded)
    where = runtime.pick(device, chosen.precision)
    chosen = plan.choose(chosen, listing, where)
    parallel.check(chosen, where)
    workers = runtime.default_workers() if workers is None else workers
    prepared = prepare(listing, chosen, workers)
    parallel.check_pictures(len(prepared.train), where)
    resumed = recorded if saved is not None else None
    chosen = plan.choose_length(chosen, len(prepared.train), where, resumed)

    # The network: its initial weights are f(seed), or those of a file.
    model, options, where = start.begin(chosen, listing.classes, where, fresh=saved is None)
    chosen = plan.choose_threads(model, chosen, where, recorded)
    assert chosen.epochs is not None
    assert chosen.batch_size is not None
    identity = identity_of(prepared, chosen)
    check_equal(identity, where)
    model = parallel.synchronized(model, chosen)
    average = Average(model, chosen.ema) if chosen.ema else None
    optimizer = make_optimizer(model, chosen)
    state = State(model, optimizer, identity, average, where.scaler(), world_size=where.world_size)
    weights = class_weights(chosen, prepared.train.part.counts(state.classes), where.device)
    loader = make_loader(
        where.device,
        chosen.augmentation(),
        prepared.train,
        chosen.batch_size,
        workers,
        where.rank,
        where.world_size,
        mixed=chosen.mixup > 0 or chosen.cutmix > 0,
        sampling=chosen.sampling,
        repeats=chosen.repeats,
    )
    batches = loader.training_batches()
    steps = chosen.steps or batches * chosen.epochs
    short, short_steps = shallow(model, chosen), chosen.shallow_share * steps
    turns = {math.ceil(share * steps) for share in (chosen.head_share, chosen.shallow_share)}

    # Say so, and begin; or go on.
    if saved is None:
        if show_plan:
            counts = len(prepared.train), len(prepared.val)
            expected = plan.measure(model, chosen, where, *counts)
            say(plan.describe(prepared, chosen, where, model, workers, expected))
        run = where.once(write_beginning, run, prepared, chosen, data, where.device)
        say(f"{'results in':14}{run.path}{run.whose_is_first(data) if out is None else ''}\n")
    else:
        state.restore(saved, run.longer(data, chosen) if run.is_finished() else "")
        if where.once(run.is_finished):
            say(f"{run.path} is finished already; nothing was changed.")
            return where.once(run.result, chosen, state.history)
        say(f"Going on with {run.path} at epoch {state.epoch + 1}, batch {state.batch + 1}.")

    saving = Checkpoints(run.path / "state", chosen.checkpoint_seconds, saved)
    watching = Events(run.path / "tensorboard" if tensorboard and where.rank == 0 else None)
    sizes = {chosen.train_size(epoch) for epoch in range(chosen.epochs)}
    tuning, compiling = where.tuned(steps >= 100 * len(sizes)), parallel.compiling(chosen)
    with saving as checkpoints, watching as events, tuning, compiling, Interrupts() as interrupts:
        where.once(checkpoints.hold)
        while state.epoch < chosen.epochs and not state.is_stuck(chosen.patience):
            # An epoch of training: order and pictures are f(seed, epoch).
            size, first = chosen.train_size(state.epoch), state.batch
            last = min(batches, steps - batches * state.epoch)  # of a run of so many steps
            augment, epoch = chosen.augmentation(), state.epoch
            outcomes = Outcomes(state, prepared.train.part, where)
            coming = loader.training(augment, size, chosen.seed, epoch, first, last)
            with bar(f"epoch {epoch + 1}/{chosen.epochs}", last, first) as advance:
                for batch in to_device(coming, where.device):
                    if state.batch == first or state.step in turns:  # what is trained may change
                        set_trainable(model, chosen, state.step, steps)
                        network = short if state.step < short_steps else model
                        state.network = parallel.wrap(network, chosen, where, state.network)
                    rate = learning_rate(chosen, state.step, steps)
                    with enough_memory(chosen, where):
                        outcome = training_step(state, batch, chosen, where, rate, weights)
                    outcomes.add(outcome, batch.indices)
                    # The step before is read only now: no GPU waits for what it does next.
                    due, signal = outcomes.read(1, checkpoints.due(), interrupts.asked or 0)
                    advance(state.tally.text())
                    if due or signal:
                        outcomes.read(0)  # nothing is saved before its loss is known to be finite
                        pause(state, checkpoints, where, run, due, signal)
            outcomes.read(0)

            # What it reached, on pictures that it is not trained on; the best model is kept.
            clock = time.perf_counter()
            state.check_finite()
            tested = state.evaluated  # the blocks that are still left out change no logit of it
            tested = shallow(tested, chosen) if state.step <= short_steps else tested
            accuracy, val_loss = where.once(validate, tested, prepared, chosen, where, workers)
            row = {
                "epoch": state.epoch + 1,
                "image_size": size,
                "lr": learning_rate(chosen, state.step - 1, steps),
                "train_loss": state.tally.loss,
                "train_accuracy": state.tally.accuracy,
                "val_loss": val_loss,
                "val_accuracy": accuracy,
            }
            better = state.end_epoch(row, time.perf_counter() - clock)
            header = make_header(prepared, chosen, options, row)
            where.once(write_epoch, run, state, header, better)
            events.write(row)
            say(epoch_line(row, state.timings[-1], chosen.epochs))
            (asked,) = max(where.gather([interrupts.asked or 0]))
            pause(state, checkpoints, where, run, due=True, signal=int(asked))
        where.once(checkpoints.finish)
    if state.epoch < chosen.epochs:
        say(f"No better epoch in {chosen.patience}; stopped early.")

    # The evidence comes from the saved file, by the road that anyone takes later.
    header = make_header(prepared, chosen, options, state.history[-1])
    return where.once(finish, run, state, header, prepared, chosen, device, workers)


def training_step(
    state: State,
    batch: Batch,
    recipe: Recipe,
    where: Runtime,
    rate: float,
    weights: Tensor | None = None,
) -> Tensor:
    """Forward, backward, update. Returns, on the device, a row ``(loss, correct images)`` for each
    part of the batch, ``(parts, 2)`` float32; nothing here waits for the device.

    ``weights`` are those of the classes in the loss. A batch may be computed in parts, whose
    gradients add up; only batch norm sees the parts. Of several ranks each computes its share. The
    mean loss of the whole batch is the sum over parts and ranks.
    """
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    randomness.seed_generators(where.device, recipe.seed, "network", state.step, where.rank)
    images = normalize(batch.images, recipe.preprocessing())  # (n, 3, S, S)
    everyone = batch.labels  # (N,) of the whole batch
    whole = len(everyone) if weights is None else weights[everyone].sum()
    labels = everyone[batch.places]  # (n,)
    images, targets = mix(
        images, labels, recipe.mixup, recipe.cutmix, state.classes, recipe.seed, state.step
    )
    images, targets, labels = (x[batch.lead :] for x in (images, targets, labels))
    images = images.contiguous(memory_format=where.memory_format)

    rows = []
    count = min(recipe.accumulate, len(everyone) // where.world_size)  # the same on all ranks
    parts = [x.tensor_split(count) for x in (images, targets, labels)]
    for number, (image, target, label) in enumerate(zip(*parts, strict=True), 1):
        with parallel.exchange(state.forward, last=number == count):
            with where.autocast():
                logits = state.forward(image)  # (n, classes)
            smoothing = recipe.label_smoothing
            loss = F.cross_entropy(
                logits.float(), target, weights, reduction="sum", label_smoothing=smoothing
            )
            loss = loss / whole
            # The exchange takes the mean of the ranks' gradients; what is wanted is their sum.
            scaler.scale(loss * where.world_size).backward()  # type: ignore[no-untyped-call]
        correct = (logits.detach().argmax(1) == label).sum()
        rows.append(torch.stack([loss.detach(), correct.float()]))
    scaler.unscale_(optimizer)  # type: ignore[arg-type]
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
    set_learning_rate(optimizer, rate)
    scaler.step(optimizer)  # type: ignore[arg-type]  # not if a gradient overflowed
    scaler.update()
    optimizer.zero_grad()
    if state.average is not None and state.step % recipe.ema_every == 0:
        state.average.update(model, state.step)
    return torch.stack(rows)


def pause(
    state: State, checkpoints: Checkpoints, where: Runtime, run: RunFolder, due: bool, signal: int
) -> None:
    """Save the state where that is due, and leave where a signal asked for it."""
    if due or signal:
        state.check_finite()
        where.once(lambda: checkpoints.save(state.snapshot()))
    if signal:
        where.once(checkpoints.wait)  # no rank leaves before everything is on the disk
        leave(signal, f"{parallel.command(where)} train --resume {shlex.quote(str(run.path))}")


def validate(
    model: nn.Module, prepared: Prepared, recipe: Recipe, where: Runtime, workers: int
) -> tuple[float, float]:
    """Accuracy and loss on the validation part: on a CPU the numbers that `evaluate` will find, on
    a GPU faster, in the precision of training and in batches that need no more memory than it."""
    how: dict[str, Any] = {}
    if where.device.type != "cpu":
        at_once = max(BATCH_SIZE, 2 * recipe.at_once(where.world_size))
        how = {"precision": where.precision, "batch_size": at_once}
    with enough_memory(recipe, where):
        logits = predict_logits(model, prepared.val, where.device, workers, **how)
    return accuracy_and_loss(logits, prepared.val.labels())
