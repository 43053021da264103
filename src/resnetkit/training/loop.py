"""The training loop: `train` is the main path, from a folder of images to a model file."""

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
from ..data.corrections import Corrections, read_corrections
from ..data.folder import read_dataset
from ..data.loader import Batch
from ..data.mixing import mix
from ..data.transforms import normalize
from ..evaluation.evaluate import BATCH_SIZE, predict_logits
from ..evaluation.metrics import accuracy_and_loss
from ..progress import bar, say
from ..runtime import Runtime, connected, pick, pytorch_defaults, restored_threads
from ..text import pluralize
from .checkpoint import Checkpoints, Snapshot
from .distributed import launch_command, sync_gradients
from .initial_weights import network_name, resolve_recipe
from .interrupts import Interrupts, raise_interrupted
from .margins import label_margins
from .optimizer import set_learning_rate
from .out_of_memory import explain_out_of_memory
from .outcomes import Outcome, Outcomes
from .preflight import check_hosts
from .recipe import Recipe
from .run import Run, RunFolder, recorded_arguments
from .run_files import begin_run, finish_run, format_epoch, write_epoch
from .schedule import learning_rate
from .session import Session, set_up
from .state import State
from .tensorboard import TensorBoardLogger, writer_class


@pytorch_defaults()  # ignore the caller's dtype, device and autocast
@randomness.preserve_generators()  # restore the caller's RNG states afterwards
@connected()  # join the other ranks if torchrun started us
@restored_threads()  # restore the caller's thread count afterwards
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
    corrections: str | os.PathLike[str] | None = None,
    **settings: Any,
) -> Run:
    """Train a network on a folder of images.

    Under torchrun, every rank runs this function and computes its share of every batch. Only the
    main rank validates and writes; `Runtime.on_main` calls a function there and returns its result
    on all ranks.

    Args:
        data: a folder of classes, a folder of splits, or a CSV manifest; see `data.folder`. With
            ``resume``, a run folder works too: it records its data and its recipe.
        recipe: the name of a built-in recipe, or a YAML file. The default is ``finetune`` if
            published weights are available to start from, else ``fast``.
        out: the run folder; by default a new one under ``runs/``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read images; by default one per core. The number does not affect the
            result.
        resume: continue a run that was stopped or killed; start one if there is nothing to resume.
            On a CPU, the result is bit-identical to that of an uninterrupted run. On a GPU, cuDNN
            may choose other kernels.
        tensorboard: also write the history for TensorBoard, into ``tensorboard/`` of the run.
        show_plan: measure a few steps and print the plan before training.
        corrections: a ``suspects.csv`` whose verdicts relabel or drop images; see
            `read_corrections`. A resumed run keeps its own.
        settings: recipe fields to override, such as ``epochs=5``.

    Raises:
        RecipeError, DataError, OutputError: the request cannot be carried out.
        TrainingError: the loss is not finite, or the saved state belongs to a different run.
        Interrupted: a signal stopped the run, after everything was saved.
    """
    if tensorboard:
        writer_class()  # an error if it is not installed, before there is a run folder
    # Start a run, or resume one where it left off. `open_run`, below, reads the images, builds the
    # network, the optimizer and the loader, and restores `session.state` from the saved state.
    session, run_folder, saved = open_run(
        data, recipe, out, device, workers, resume, show_plan, corrections, settings
    )
    full_recipe = session.recipe  # every field has a value
    patience = full_recipe.patience  # epochs without improvement, or None
    runtime = session.runtime  # device, precision, rank
    state = session.state  # all that training updates: weights, moments, epoch, batch, history, ...
    # Only now, because `open_run` rejects a command with other settings than the saved run's.
    if saved is not None and runtime.on_main(run_folder.is_finished):
        say(f"{run_folder.path} is already finished; nothing was changed.")
        return runtime.on_main(run_folder.result, full_recipe, state.history)

    checkpoints = Checkpoints(run_folder.path / "state", full_recipe.checkpoint_seconds, saved)
    logger = TensorBoardLogger(
        run_folder.path / "tensorboard" if tensorboard and runtime.is_main else None
    )
    with checkpoints, logger, session.backend_settings(), Interrupts() as interrupts:
        runtime.on_main(checkpoints.lock)  # no other process may write to this run
        while state.epoch < session.epochs and not state.has_stopped_improving(patience):
            # Train for one epoch, or for the rest of it if the run stopped at `state.batch`.
            image_size = full_recipe.train_size(state.epoch)  # may grow from epoch to epoch
            # Adds the losses of all ranks to `state.tally`, one step late: to read the loss of the
            # latest step, the CPU would wait for the GPU.
            pending = Outcomes(state, session.data.train.split, runtime)
            label = f"epoch {state.epoch + 1}/{session.epochs}"
            progress = bar(label, session.batch_count(state.epoch), state.batch)
            with progress as advance, explain_out_of_memory(full_recipe, runtime):
                # From `state.batch` on, with the images on the device, as uint8. Shuffling and
                # augmentation depend only on the seed and the position.
                for batch in session.batches(image_size):
                    session.set_training_phase()  # model.train(); layers may unfreeze in mid-epoch
                    lr = learning_rate(full_recipe, state.step, session.steps)
                    outcome = training_step(
                        state, batch, full_recipe, runtime, lr, session.class_weights
                    )
                    if state.ema is not None:  # the averaged weights are validated and saved
                        is_last = state.step + 1 == session.steps
                        state.ema.update(state.model, state.step, is_last)
                    pending.add(outcome, batch.indices)  # indices of the whole batch
                    state.end_step()  # counts the batch and the step; a resumed run starts there
                    # All ranks must save or stop at the same step. The main rank decides when to
                    # save; a signal on any rank stops them all.
                    save_due, signal = pending.exchange(checkpoints.is_due(), interrupts.received)
                    if save_due or signal:
                        save(session, checkpoints, pending)
                    if signal:
                        stop(session, run_folder, checkpoints, signal)  # raises Interrupted
                    advance(state.tally.text())
            pending.drain()  # read the loss of the last step
            state.check_finite()  # an epoch that ended in NaN is never recorded

            # Validate on the main rank, while the others wait, and record the epoch.
            started = time.perf_counter()
            scores = runtime.on_main(validate, session)
            seconds = time.perf_counter() - started
            row = epoch_row(session, image_size, scores)
            # `end_epoch` counts the epoch, and decides whether to keep the model: if its accuracy
            # is the highest so far, or within two standard errors of it. Such a gap is noise, and
            # later weights have settled more. Without validation images, it is always kept.
            is_kept = state.end_epoch(row, val_seconds=seconds, val_images=len(session.data.val))
            if runtime.is_main:
                write_epoch(run_folder, session, row, is_kept)  # the history; the model if kept
                logger.write(row)
            say(format_epoch(row, state.timings[-1], session.epochs))
            # A run that is killed before this line trains from its last save again, and writes the
            # same files again.
            save(session, checkpoints, pending)
            # No loss is pending, so the ranks only exchange signals received since the last step.
            _, signal = pending.exchange(False, interrupts.received)
            if signal:
                stop(session, run_folder, checkpoints, signal)
        runtime.on_main(checkpoints.finish)  # wait for the last save
    if patience is not None and state.epoch < session.epochs:
        say(f"No improvement in the last {pluralize(patience, 'epoch')}; stopped early.")

    # Evaluate the saved model with the same code as `resnet evaluate`, and write the report.
    return runtime.on_main(finish_run, run_folder, session)


def training_step(
    state: State,
    batch: Batch,
    recipe: Recipe,
    runtime: Runtime,
    lr: float,
    class_weights: Tensor | None = None,
) -> Outcome:
    """Run forward and backward on a batch and update the weights.

    A batch may be computed in several micro-batches (``accumulate``), whose gradients add up. Apart
    from batch norm and rounding, the result is the same. Each rank computes its share of a batch,
    and the mean loss of the whole batch is the sum over micro-batches and ranks.

    Args:
        state: model, optimizer and position.
        batch: the images of this rank, with the labels of the whole batch.
        recipe: the resolved recipe.
        runtime: device, precision and rank.
        lr: the learning rate of this step.
        class_weights: ``(classes,)`` float32, the weight of each class in the loss.

    Returns:
        Loss and number of correct images of each micro-batch, ``(parts, 2)``, and the margin of
        each of this rank's images, ``(n,)``; on the device. The CPU does not wait for them.
    """
    set_learning_rate(state.optimizer, lr)
    # The network may draw random numbers too, for dropout. They are f(seed, step, rank).
    randomness.seed_generators(runtime.device, recipe.seed, "network", state.step, runtime.rank)
    labels = batch.labels  # (N,) of the whole batch
    # Mixing moves weight between images in the batch, but preserves the total.
    total_weight = len(labels) if class_weights is None else class_weights[labels].sum()
    images, targets, local_labels = rank_inputs(state, batch, recipe, runtime)

    # Very few images may not fill `accumulate` parts. All ranks have the same number of parts.
    parts = min(recipe.accumulate, len(labels) // runtime.world_size)
    micro_batches = zip(
        images.tensor_split(parts),
        targets.tensor_split(parts),
        local_labels.tensor_split(parts),
        strict=True,
    )
    totals = []
    margins = []
    for number, (micro_images, micro_targets, micro_labels) in enumerate(micro_batches, 1):
        with sync_gradients(state.forward, is_last=(number == parts)):
            with runtime.autocast():
                logits = state.forward(micro_images)  # (n, classes); the model, perhaps in DDP
            loss = F.cross_entropy(
                logits.float(),
                micro_targets,
                class_weights,
                reduction="sum",
                label_smoothing=recipe.label_smoothing,
            )
            loss = loss / total_weight  # the sum over micro-batches and ranks is the mean
            # DDP averages gradients over the ranks; the update needs their sum.
            state.scaler.scale(loss * runtime.world_size).backward()  # type: ignore[no-untyped-call]
        correct = (logits.detach().argmax(1) == micro_labels).sum()
        totals.append(torch.stack([loss.detach(), correct.float()]))
        margins.append(label_margins(logits, micro_labels))  # low for mislabeled images

    # Always, not only to clip: our optimizers call PyTorch's kernels, which do not unscale.
    state.scaler.unscale_(state.optimizer)  # type: ignore[arg-type]
    if recipe.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), recipe.clip_norm)
    state.scaler.step(state.optimizer)  # type: ignore[arg-type]  # skipped if a gradient overflowed
    state.scaler.update()
    state.optimizer.zero_grad()
    return Outcome(torch.stack(totals), torch.cat(margins))


def rank_inputs(
    state: State, batch: Batch, recipe: Recipe, runtime: Runtime
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalize and mix this rank's share of a batch.

    When images are mixed across ranks, each share starts with an extra image from another rank
    (``lead`` is 1), which is mixed into the next image and then dropped.

    Returns:
        Images ``(n, C, S, S)``; targets, which are labels ``(n,)``, or probabilities
        ``(n, classes)`` if images are mixed; and the labels of the unmixed images
        ``(n,)``, for the accuracy.
    """
    labels = batch.labels[batch.local_indices]
    images = normalize(batch.images, recipe.preprocessing())
    images, targets = mix(
        images, labels, recipe.mixup, recipe.cutmix, state.classes, recipe.seed, state.step
    )
    images = images[batch.lead :].contiguous(memory_format=runtime.memory_format)
    return images, targets[batch.lead :], labels[batch.lead :]


def save(session: Session, checkpoints: Checkpoints, pending: Outcomes) -> None:
    """Check that loss and weights are finite, and start saving the state in the background.

    All ranks must call this.

    Args:
        session: its state is saved.
        checkpoints: where it is saved.
        pending: the outcomes of this epoch that have not been read yet.

    Raises:
        TrainingError: the loss or a weight is not finite.
    """
    pending.drain()
    session.state.check_finite()
    session.runtime.on_main(lambda: checkpoints.save(session.state.snapshot()))


def stop(session: Session, run_folder: RunFolder, checkpoints: Checkpoints, signal: int) -> None:
    """Wait until the saved state is on disk, and end the run. All ranks must call this.

    Args:
        session: the run.
        run_folder: its folder, named in the message on how to resume.
        checkpoints: where the state is saved.
        signal: the number of the signal, whichever rank received it.

    Raises:
        Interrupted: always.
    """
    session.runtime.on_main(checkpoints.wait)
    command = launch_command(session.runtime)
    raise_interrupted(signal, f"{command} train --resume {shlex.quote(str(run_folder.path))}")


def validate(session: Session) -> dict[str, float]:
    """Return ``val_loss`` and ``val_accuracy``, or an empty dict without validation images.

    On a CPU they equal the results of `evaluate`. On a GPU, validation is faster than `evaluate`:
    it runs in the training precision and in larger batches. Without gradients, twice a micro-batch
    needs no more memory than training does.
    """
    images = session.data.val
    if not len(images):
        return {}
    runtime = session.runtime
    recipe = session.recipe
    options: dict[str, Any] = {}
    if runtime.device.type != "cpu":
        batch_size = max(BATCH_SIZE, 2 * recipe.micro_batch_size(runtime.world_size))
        options = {"precision": runtime.precision, "batch_size": batch_size}
    model = session.evaluated_model()  # the EMA weights if there are any
    with explain_out_of_memory(recipe, runtime):  # in eval mode, without gradients
        logits = predict_logits(model, images, runtime.device, session.workers, **options)
    accuracy, loss = accuracy_and_loss(logits, images.labels())
    return {"val_loss": loss, "val_accuracy": accuracy}


def epoch_row(session: Session, image_size: int, scores: dict[str, float]) -> dict[str, Any]:
    """Return the row of the history for the epoch that just ended.

    Args:
        session: the run.
        image_size: side of the training images in pixels.
        scores: as `validate` returns them.
    """
    state = session.state
    return {
        "epoch": state.epoch + 1,
        "image_size": image_size,
        "lr": learning_rate(session.recipe, state.step - 1, session.steps),  # of the last step
        "train_loss": state.tally.loss,
        "train_accuracy": state.tally.accuracy,
        **scores,
    }


def open_run(
    data: str | os.PathLike[str],
    recipe: str | Path | None,
    out: str | os.PathLike[str] | None,
    device: str,
    workers: int | None,
    resume: bool,
    show_plan: bool,
    corrections: str | os.PathLike[str] | None,
    settings: dict[str, Any],
) -> tuple[Session, RunFolder, Snapshot | None]:
    """Start a run, or continue one where it stopped. All ranks must call this.

    Args: as in `train`.

    Returns:
        The session, its run folder, and the saved state if the run is resumed.
    """
    # Find the folder and the recipe. A stopped run has recorded both.
    given_options = {"resume": resume, "recipe": recipe, "device": device, **settings}
    runtime = pick(device)  # its precision follows from the recipe, in `set_up`
    recorded_run = runtime.on_main(recorded_arguments, data, out, recipe, resume)
    if recorded_run is not None:  # `data` is a run folder
        out, recipe, data = recorded_run
    dataset = read_dataset(data)  # on all ranks: each reads its own images

    def open_folder() -> tuple[RunFolder, Snapshot | None, Recipe | None, Corrections | None]:
        name = f"{dataset.name}-{network_name(recipe, settings)}"
        run_folder, saved = RunFolder.open(out, name, resume, data)
        recorded = run_folder.recorded_recipe() if resume else None
        file = corrections or (run_folder.recorded_corrections() if resume else None)
        corrected = None if file is None else read_corrections(file, dataset)
        return run_folder, saved, recorded, corrected

    run_folder, saved, recorded, corrected = runtime.on_main(open_folder)
    requested = runtime.on_main(resolve_recipe, recipe, settings, recorded)
    check_hosts(
        dataset, requested, run_folder, runtime, given=given_options, is_resumed=saved is not None
    )

    # Prepare the images, the network, the optimizer and the loader. This completes the recipe.
    session = set_up(
        dataset,
        requested,
        runtime,
        workers,
        corrections=corrected,
        recorded=recorded,
        is_resumed=saved is not None,
    )
    runtime = session.runtime
    state = session.state

    if saved is None:
        if show_plan:
            say(session.describe())
        run_folder = runtime.on_main(begin_run, run_folder, session, data)
        note = run_folder.note_on_other_run(data) if out is None else ""
        say(f"results in    {run_folder.path}{note}\n")
        return session, run_folder, None

    # `restore` needs the hint and the split only for its error messages.
    is_finished = runtime.on_main(run_folder.is_finished)
    extend_hint = (
        runtime.on_main(run_folder.extend_hint, data, session.recipe, saved) if is_finished else ""
    )
    new_split = runtime.on_main(run_folder.describe_new_split, session.data)
    state.restore(saved, extend_hint, new_split)
    if not is_finished:
        say(f"Resuming {run_folder.path} at epoch {state.epoch + 1}, batch {state.batch + 1}.")
    return session, run_folder, saved
