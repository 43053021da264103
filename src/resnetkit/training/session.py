"""A session: everything a run trains with, set up in one place.

`train` and the learning-rate finder share it. It knows nothing about the run folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..data.corrections import Corrections
from ..data.device_loader import to_device
from ..data.folder import Dataset
from ..data.loader import Batch, Loader
from ..data.resident_loader import make_loader
from ..processes import default_workers
from ..runtime import Runtime
from . import defaults, distributed, measure, plan
from .ema import ModelEma
from .initial_weights import initial_network
from .loss import class_weights
from .margins import Margins
from .optimizer import Optimizer
from .param_groups import make_optimizer, set_trainable
from .preflight import check_ranks_agree
from .preparation import PreparedData, correct, prepare, run_identity
from .recipe import Recipe
from .shallow import shallow_model
from .state import State

TUNING_STEPS = 100
"""Steps at each image size needed for tuning cuDNN's kernels to pay off."""


@dataclass
class Session:
    """The objects that a run trains with.

    Args:
        recipe: the resolved recipe, with no field left open.
        runtime: device, precision, memory layout and rank.
        data: the images to train on and to validate on.
        model: the network with its plain parameter names, in the form that is saved and evaluated.
        model_options: the options that rebuild the network.
        optimizer: updates the parameters of ``model``.
        state: everything that changes from step to step: weights, moments, position.
        loader: yields the batches for this rank.
        class_weights: ``(classes,)`` float32 on the device; None if all have the same weight.
        workers: number of threads that read images.

    Attributes:
        epochs, steps: the length of the run.
        epoch_batches: number of batches in a full epoch.
    """

    recipe: Recipe
    runtime: Runtime
    data: PreparedData
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
        self._shallow_model = shallow_model(self.model, self.recipe)
        self._phase: tuple[bool, bool] | None = None

    def batch_count(self, epoch: int) -> int:
        """Return the number of batches in an epoch (0-based).

        With ``steps``, the last epoch of a run may be shorter than the others.
        """
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
            last=self.batch_count(epoch),
        )
        return to_device(batches, self.runtime.device)

    def set_training_phase(self) -> None:
        """Set which layers the current step trains, and their modes, if the phase has changed.

        A run may start with a phase that trains only the new head (``head_share``), and with one
        that skips the blocks initialized as the identity (``shallow_share``).
        """
        only_head = self.state.step < self.recipe.head_share * self.steps
        is_shallow = self.state.step < self.recipe.shallow_share * self.steps
        if (only_head, is_shallow) == self._phase:
            return
        self._phase = (only_head, is_shallow)
        set_trainable(self.model, self.recipe, self.state.step, self.steps)
        self.state.network = distributed.wrap_model(
            self._shallow_model if is_shallow else self.model,
            self.recipe,
            self.runtime,
            previous=self.state.network,
        )

    def evaluated_model(self) -> nn.Module:
        """Return the network to validate: the EMA if the recipe has one.

        Blocks that were skipped in every step so far change no logit, so they are skipped here too.
        """
        model = self.state.evaluated
        # "<=", because `step` already counts the last step, and the phase ends with a shallow one.
        if self.state.step <= self.recipe.shallow_share * self.steps:
            return shallow_model(model, self.recipe)
        return model

    def describe(self) -> str:
        """Measure a few steps and return the plan of the run as text."""
        seconds = measure.estimate_seconds(
            self.model,
            self.recipe,
            self.runtime,
            train_count=len(self.data.train),
            val_count=len(self.data.val),
        )
        return plan.describe_plan(
            self.data,
            self.recipe,
            self.runtime,
            model=self.model,
            workers=self.workers,
            seconds=seconds,
        )

    @contextmanager
    def backend_settings(self) -> Iterator[None]:
        """Tune cuDNN and the compiler for this run, and restore their settings at the end."""
        image_sizes = {self.recipe.train_size(epoch) for epoch in range(self.epochs)}
        sizes_repeat = self.steps >= TUNING_STEPS * len(image_sizes)
        with self.runtime.tuned(sizes_repeat), distributed.compile_every_size(self.recipe):
            yield


def set_up(
    dataset: Dataset,
    recipe: Recipe,
    runtime: Runtime,
    workers: int | None,
    *,
    corrections: Corrections | None = None,
    recorded: Recipe | None = None,
    is_resumed: bool = False,
) -> Session:
    """Fill in the open fields of the recipe, read the images, and build the network.

    Args:
        dataset: the images and their classes.
        recipe: the recipe, with its weights resolved.
        runtime: device and ranks; the recipe sets the precision.
        workers: threads that read images; None for one per core.
        corrections: the labels to change and the images to leave out.
        recorded: the recipe of the run in the folder, if there is one.
        is_resumed: whether the weights come from a saved state; if so, no weights file is loaded.

    Raises:
        RecipeError, DataError, WeightsError: the recipe does not fit the data or the machine.
        TrainingError: the weights file changed since the run began.
    """
    # Resolve the precision, then fill in the recipe fields that do not depend on how many images
    # can be read.
    runtime = runtime.with_precision(recipe.precision)
    recipe = defaults.fill_defaults(recipe, dataset, runtime, recorded=recorded)
    distributed.check_recipe(recipe, runtime)
    if workers is None:
        workers = default_workers()

    # Read the images once; batch size and epochs depend on how many of them can be read. A run that
    # starts over in its folder keeps only its number of threads, which affects nothing but the last
    # bits of the result.
    data = prepare(dataset, recipe, workers)
    if corrections is not None:
        data = correct(data, corrections)
    distributed.check_image_count(len(data.train), runtime)
    recipe = defaults.fill_length(
        recipe, len(data.train), runtime, recorded=recorded if is_resumed else None
    )

    # The initial weights are f(seed), or come from a file.
    model, model_options, runtime = initial_network(  # adds the memory layout to runtime
        recipe, dataset.classes, runtime, load_weights=not is_resumed
    )
    measure.check_batch_norm(model, recipe, runtime, len(data.train))
    recipe = measure.fill_threads(model, recipe, runtime, len(data.train), recorded=recorded)
    identity = run_identity(data, recipe)
    check_ranks_agree(identity, runtime)
    model = distributed.convert_sync_bn(model, recipe)

    optimizer = make_optimizer(model, recipe)
    is_mixed = recipe.mixup > 0 or recipe.cutmix > 0
    state = State(
        model,
        optimizer,
        identity,
        ema=ModelEma(model, recipe.ema, recipe.ema_every) if recipe.ema else None,
        margins=None if is_mixed else Margins(len(data.train)),
        scaler=runtime.scaler(),
        world_size=runtime.world_size,
    )
    assert recipe.batch_size is not None
    loader = make_loader(
        runtime.device,
        recipe.augmentation(),
        data.train,
        recipe.batch_size,
        workers,
        runtime.rank,
        runtime.world_size,
        mixed=is_mixed,
        sampling=recipe.sampling,
        repeats=recipe.repeats,
    )
    return Session(
        recipe=recipe,
        runtime=runtime,
        data=data,
        model=model,
        model_options=model_options,
        optimizer=optimizer,
        state=state,
        loader=loader,
        class_weights=class_weights(recipe, data.train.split.counts(state.classes), runtime.device),
        workers=workers,
    )
