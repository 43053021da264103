"""A session: everything that a run trains with, set up in one place.

`train` and the learning-rate finder share it. What it does not know is the folder of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .. import runtime as machine
from ..data.device_loader import to_device
from ..data.folder import Dataset
from ..data.loader import Batch, Loader
from ..data.resident_loader import make_loader
from ..runtime import Runtime
from . import parallel, plan, start
from .depth import shallow
from .ema import ModelEma
from .loss import class_weights
from .optimizer import Optimizer
from .param_groups import make_optimizer, set_trainable
from .preparation import Prepared, check_equal, identity_of, prepare
from .recipe import Recipe
from .state import State


@dataclass
class Session:
    """What a run trains with.

    Args:
        recipe: the resolved recipe: nothing in it is left open.
        runtime: device, precision, memory layout and rank.
        prepared: the images to train on and to validate on.
        model: the network, with its plain names: what is saved, averaged and evaluated.
        model_options: what builds the network again.
        state: what changes from step to step: weights, moments, position.
        loader: makes the batches of this rank.
        class_weights: ``(classes,)`` float32 on the device; None if all classes count the same.
        workers: threads that read images.
    """

    recipe: Recipe
    runtime: Runtime
    prepared: Prepared
    model: nn.Module
    model_options: dict[str, Any]
    optimizer: Optimizer
    state: State
    loader: Loader
    class_weights: Tensor | None
    workers: int

    def __post_init__(self) -> None:
        assert self.recipe.epochs is not None
        self.epochs = self.recipe.epochs
        self.epoch_batches = self.loader.training_batches()
        self.steps = self.recipe.steps or self.epoch_batches * self.epochs
        self._shallow_model = shallow(self.model, self.recipe)
        self._phase: tuple[bool, bool] | None = None

    def batches_in(self, epoch: int) -> int:
        """Return how many batches an epoch (0-based) has; the last one of a run may be cut short
        by ``steps``."""
        return min(self.epoch_batches, self.steps - self.epoch_batches * epoch)

    def batches(self, image_size: int) -> Iterator[Batch]:
        """Yield the batches from the current position to the end of the epoch, on the device.

        Args:
            image_size: side of the images in pixels.
        """
        epoch = self.state.epoch
        batches = self.loader.training(
            self.recipe.augmentation(),
            image_size,
            self.recipe.seed,
            epoch,
            first=self.state.batch,
            last=self.batches_in(epoch),
        )
        return to_device(batches, self.runtime.device)

    def set_phase(self) -> None:
        """Make the network ready for the current step.

        A run may begin with a phase in which only a new head is trained (``head_share``), or in
        which blocks that start as the identity are left out (``shallow_share``).
        """
        phase = (
            self.state.step < self.recipe.head_share * self.steps,
            self.state.step < self.recipe.shallow_share * self.steps,
        )
        if phase == self._phase:
            return
        self._phase = phase
        set_trainable(self.model, self.recipe, self.state.step, self.steps)
        network = self._shallow_model if phase[1] else self.model
        self.state.network = parallel.wrap(network, self.recipe, self.runtime, self.state.network)

    def evaluated_model(self) -> nn.Module:
        """Return the network to validate: the averaged one if the recipe averages.

        Blocks that were left out up to here change no logit, so they are left out here too.
        """
        model = self.state.evaluated
        if self.state.step <= self.recipe.shallow_share * self.steps:
            return shallow(model, self.recipe)
        return model

    def describe(self) -> str:
        """Measure a few steps, and return in words what the run is going to do."""
        train = self.prepared.train
        val = self.prepared.val
        seconds = plan.measure(self.model, self.recipe, self.runtime, len(train), len(val))
        return plan.describe(
            self.prepared, self.recipe, self.runtime, self.model, self.workers, seconds
        )

    @contextmanager
    def tuned(self) -> Iterator[None]:
        """Set cuDNN and the compiler for these steps; put them back at the end."""
        image_sizes = {self.recipe.train_size(epoch) for epoch in range(self.epochs)}
        sizes_repeat = self.steps >= 100 * len(image_sizes)
        with self.runtime.tuned(sizes_repeat), parallel.compiling(self.recipe):
            yield


def set_up(
    dataset: Dataset,
    recipe: Recipe,
    device: str,
    workers: int | None,
    *,
    recorded: Recipe | None = None,
    is_resumed: bool = False,
) -> Session:
    """Fill in what the recipe leaves open, read the images, and build the network.

    Args:
        dataset: the images and their classes.
        recipe: the recipe, its weights already resolved.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read images; None for one per core.
        recorded: the recipe of the run in the folder, if there is one.
        is_resumed: the weights come from a saved state, so none are loaded here.

    Raises:
        RecipeError, DataError, WeightsError: the recipe does not fit the data or the machine.
        TrainingError: the weights changed since the run began.
    """
    runtime = machine.pick(device, recipe.precision)
    recipe = plan.choose(recipe, dataset, runtime)
    parallel.check(recipe, runtime)
    if workers is None:
        workers = machine.default_workers()
    prepared = prepare(dataset, recipe, workers)
    parallel.check_images(len(prepared.train), runtime)
    recipe = plan.choose_length(
        recipe, len(prepared.train), runtime, recorded if is_resumed else None
    )

    # The network: its initial weights are f(seed), or those of a file.
    model, model_options, runtime = start.begin(
        recipe, dataset.classes, runtime, fresh=not is_resumed
    )
    recipe = plan.choose_threads(model, recipe, runtime, recorded)
    identity = identity_of(prepared, recipe)
    check_equal(identity, runtime)
    model = parallel.synchronized(model, recipe)

    average = ModelEma(model, recipe.ema) if recipe.ema else None
    optimizer = make_optimizer(model, recipe)
    state = State(
        model,
        optimizer,
        identity,
        average,
        runtime.scaler(),
        world_size=runtime.world_size,
    )
    assert recipe.batch_size is not None
    loader = make_loader(
        runtime.device,
        recipe.augmentation(),
        prepared.train,
        recipe.batch_size,
        workers,
        runtime.rank,
        runtime.world_size,
        mixed=recipe.mixup > 0 or recipe.cutmix > 0,
        sampling=recipe.sampling,
        repeats=recipe.repeats,
    )
    weights = class_weights(recipe, prepared.train.split.counts(state.classes), runtime.device)
    return Session(
        recipe,
        runtime,
        prepared,
        model,
        model_options,
        optimizer,
        state,
        loader,
        weights,
        workers,
    )
