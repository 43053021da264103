"""The training loop: `train` is the main path, from a folder of pictures to a model file."""

from __future__ import annotations

import os
import shlex
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import randomness
from .. import runtime as machine
from ..data import folder
from ..data.loader import Batch
from ..data.mixing import mix
from ..data.transforms import normalize
from ..evaluation.evaluate import BATCH_SIZE, predict_logits
from ..evaluation.metrics import accuracy_and_loss
from ..progress import bar, say
from ..runtime import Runtime
from . import parallel, start
from .checkpoint import Checkpoints
from .interrupts import Interrupts, leave
from .memory_limit import enough_memory
from .optimizer import set_learning_rate
from .outcomes import Outcomes
from .recipe import Recipe
from .run import (
    Run,
    RunFolder,
    begun_with,
    epoch_line,
    finish,
    is_run,
    write_beginning,
    write_epoch,
)
from .schedule import learning_rate
from .session import Session, set_up
from .state import State
from .tensorboard import TensorBoardLogger


@machine.pytorch_defaults()
@randomness.preserve_generators()
@machine.connected()
@machine.restored_threads()
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

    Under torchrun every process runs this function and computes its share of every batch. The main
    rank alone measures and writes: `Runtime.on_main` gives its result to the others.

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
    # The folder of the run, and the recipe: its weights are found, the rest may still be open.
    if resume and is_run(data):
        out, recipe, data = begun_with(data, out, recipe)
    main = machine.pick(device)
    dataset = folder.read_dataset(data)
    name = f"{dataset.name}-{start.network_name(recipe, settings)}"
    run, saved = main.on_main(RunFolder.open, out, name, resume, data)
    recorded = main.on_main(run.recorded_recipe) if resume else None
    asked = main.on_main(start.resolve_recipe, recipe, settings, recorded)

    # The data, the network, the optimiser and the loader; now nothing in the recipe is open.
    session = set_up(
        dataset, asked, device, workers, recorded=recorded, is_resumed=saved is not None
    )
    resolved = session.recipe
    runtime = session.runtime
    state = session.state

    # Show the plan and claim the folder; or go back to where the run was stopped.
    if saved is None:
        if show_plan:
            say(session.describe())
        run = runtime.on_main(write_beginning, run, session, data)
        say(f"{'results in':14}{run.path}{run.whose_is_first(data) if out is None else ''}\n")
    else:
        longer = run.longer(data, resolved) if run.is_finished() else ""
        state.restore(saved, longer, run.moved(session.prepared))
        if runtime.on_main(run.is_finished):
            say(f"{run.path} is finished already; nothing was changed.")
            return runtime.on_main(run.result, resolved, state.history)
        say(f"Going on with {run.path} at epoch {state.epoch + 1}, batch {state.batch + 1}.")

    checkpoints = Checkpoints(run.path / "state", resolved.checkpoint_seconds, saved)
    logger = TensorBoardLogger(
        run.path / "tensorboard" if tensorboard and runtime.is_main else None
    )
    with checkpoints, logger, session.tuned(), Interrupts() as interrupts:
        runtime.on_main(checkpoints.hold)
        while state.epoch < session.epochs and not state.is_stuck(resolved.patience):
            # Train for an epoch. Its order and its augmentation are f(seed, epoch).
            image_size = resolved.train_size(state.epoch)
            label = f"epoch {state.epoch + 1}/{session.epochs}"
            outcomes = Outcomes(state, session.prepared.train.split, runtime)
            with bar(label, session.batches_in(state.epoch), state.batch) as advance:
                for batch in session.batches(image_size):
                    session.set_phase()
                    rate = learning_rate(resolved, state.step, session.steps)
                    with enough_memory(resolved, runtime):
                        outcome = training_step(
                            state, batch, resolved, runtime, rate, session.class_weights
                        )
                    outcomes.add(outcome, batch.indices)
                    save_if_due(session, run, outcomes, checkpoints, interrupts)
                    advance(state.tally.text())
            outcomes.read(keep=0)

            # Validate on images that the network is not trained on, and keep the best model.
            clock = time.perf_counter()
            state.check_finite()
            accuracy, val_loss = runtime.on_main(validate, session)
            row = {
                "epoch": state.epoch + 1,
                "image_size": image_size,
                "lr": learning_rate(resolved, state.step - 1, session.steps),
                "train_loss": state.tally.loss,
                "train_accuracy": state.tally.accuracy,
                "val_loss": val_loss,
                "val_accuracy": accuracy,
            }
            is_best = state.end_epoch(row, time.perf_counter() - clock)
            if runtime.is_main:
                write_epoch(run, session, row, is_best)
                logger.write(row)
            say(epoch_line(row, state.timings[-1], session.epochs))
            save_if_due(session, run, outcomes, checkpoints, interrupts, due=True)
        runtime.on_main(checkpoints.finish)
    if state.epoch < session.epochs:
        say(f"No better epoch in {resolved.patience}; stopped early.")

    # The evidence comes from the saved file, through the code that `resnet evaluate` runs.
    return runtime.on_main(finish, run, session, device)


def training_step(
    state: State,
    batch: Batch,
    recipe: Recipe,
    runtime: Runtime,
    lr: float,
    class_weights: Tensor | None = None,
) -> Tensor:
    """Run forward and backward on a batch and update the weights.

    A batch may be computed in several parts (``accumulate``), whose gradients add up; only batch
    norm sees the parts. Each rank computes its share of a batch. The mean loss of the whole batch
    is the sum over parts and ranks.

    Args:
        state: model, optimiser and position.
        batch: the images of this rank, with the labels of the whole batch.
        recipe: the resolved recipe.
        runtime: device, precision and rank.
        lr: the learning rate of this step.
        class_weights: ``(classes,)`` float32, the weight of each class in the loss.

    Returns:
        ``(parts, 2)`` float32 on the device: loss and number of correct images of each part.
        Nothing here waits for the device.
    """
    randomness.seed_generators(runtime.device, recipe.seed, "network", state.step, runtime.rank)
    labels = batch.labels  # (N,) of the whole batch
    total_weight = len(labels) if class_weights is None else class_weights[labels].sum()
    ranks_labels = labels[batch.local_indices]  # (n,) of this rank
    images = normalize(batch.images, recipe.preprocessing())  # (n, 3, S, S)
    images, targets = mix(
        images, ranks_labels, recipe.mixup, recipe.cutmix, state.classes, recipe.seed, state.step
    )
    # The first image of a rank's share may only be there to be mixed into the next one.
    images = images[batch.lead :].contiguous(memory_format=runtime.memory_format)
    targets = targets[batch.lead :]  # (n,) labels, or (n, classes) shares of them where mixed
    ranks_labels = ranks_labels[batch.lead :]

    count = min(recipe.accumulate, len(labels) // runtime.world_size)  # the same on all ranks
    outcome = []
    for part in range(count):
        image = images.tensor_split(count)[part]
        target = targets.tensor_split(count)[part]
        label = ranks_labels.tensor_split(count)[part]
        with parallel.exchange(state.forward, last=part == count - 1):
            with runtime.autocast():
                logits = state.forward(image)  # (n, classes)
            loss = F.cross_entropy(
                logits.float(),
                target,
                class_weights,
                reduction="sum",
                label_smoothing=recipe.label_smoothing,
            )
            loss = loss / total_weight
            # The exchange takes the mean of the ranks' gradients; their sum is what is needed.
            state.scaler.scale(loss * runtime.world_size).backward()  # type: ignore[no-untyped-call]
        correct = (logits.detach().argmax(1) == label).sum()
        outcome.append(torch.stack([loss.detach(), correct.float()]))

    state.scaler.unscale_(state.optimizer)  # type: ignore[arg-type]
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm)
    set_learning_rate(state.optimizer, lr)
    state.scaler.step(state.optimizer)  # type: ignore[arg-type]  # skipped if a gradient overflowed
    state.scaler.update()
    state.optimizer.zero_grad()
    if state.average is not None and state.step % recipe.ema_every == 0:
        state.average.update(state.model, state.step)
    return torch.stack(outcome)


def save_if_due(
    session: Session,
    run: RunFolder,
    outcomes: Outcomes,
    checkpoints: Checkpoints,
    interrupts: Interrupts,
    due: bool | None = None,
) -> None:
    """Agree with the other ranks; save the state if it is due, and leave if a signal asked for it.

    The same exchange carries the outcome of the step before. It is read only now, so that a GPU
    never waits for the CPU between two steps.

    Args:
        due: None asks the clock of the main rank.

    Raises:
        Interrupted: a signal asked to stop; everything is saved.
        TrainingError: the loss or a weight is not finite.
    """
    keep = 1 if due is None else 0
    asked = interrupts.asked or 0
    due, signal = outcomes.read(keep, checkpoints.due() if due is None else due, asked)
    if not (due or signal):
        return
    outcomes.read(keep=0)  # nothing is saved before its loss is known to be finite
    session.state.check_finite()
    session.runtime.on_main(lambda: checkpoints.save(session.state.snapshot()))
    if signal:
        session.runtime.on_main(checkpoints.wait)  # no rank leaves before it is on the disk
        command = parallel.command(session.runtime)
        leave(signal, f"{command} train --resume {shlex.quote(str(run.path))}")


def validate(session: Session) -> tuple[float, float]:
    """Return accuracy and loss on the validation split.

    On a CPU they are the numbers that `evaluate` will find. On a GPU they come sooner: in the
    precision of training, in batches that need no more memory than training does.
    """
    runtime = session.runtime
    recipe = session.recipe
    options: dict[str, Any] = {}
    if runtime.device.type != "cpu":
        at_once = max(BATCH_SIZE, 2 * recipe.at_once(runtime.world_size))
        options = {"precision": runtime.precision, "batch_size": at_once}
    images = session.prepared.val
    model = session.evaluated_model()
    with enough_memory(recipe, runtime):
        logits = predict_logits(model, images, runtime.device, session.workers, **options)
    return accuracy_and_loss(logits, images.labels())
