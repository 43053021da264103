"""Fill in the fields that a recipe leaves open, from the data and the device."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..data.dataset import are_all_gray, find_see_through, image_sizes
from ..data.folder import Dataset, Split
from ..data.paths import shown
from ..data.preprocessing import STATISTICS
from ..data.value_range import find_value_range
from ..errors import DataError, RecipeError
from ..models.architectures import ARCHITECTURES
from ..processes import default_workers
from ..progress import say
from ..randomness import permutation
from ..runtime import Runtime
from ..text import pluralize, printable
from .recipe import DEFAULT_MODEL, Recipe


class DeviceDefaults(NamedTuple):
    """Defaults for one type of device.

    Args:
        batch_sizes: the minimum and maximum number of images per step, summed over all processes;
            see `fill_batch_size`.
        images_shown: number of images shown to the network over the whole run. It determines the
            number of epochs, within the limits of `EPOCHS`.
        largest_size: upper limit on the image side in pixels; see `fill_image_size`.
    """

    batch_sizes: tuple[int, int]
    images_shown: int
    largest_size: int


DEVICE_DEFAULTS = {
    "cpu": DeviceDefaults(batch_sizes=(16, 128), images_shown=40_000, largest_size=128),
    "mps": DeviceDefaults(batch_sizes=(64, 64), images_shown=80_000, largest_size=192),
    "cuda": DeviceDefaults(batch_sizes=(128, 128), images_shown=160_000, largest_size=224),
}
"""Defaults by type of device. Small batches leave a GPU partly idle, so GPU batches are
larger. A run on a GPU also shows more images, which makes up for some of the steps lost to larger
batches. Only the CPU defaults were measured (benchmarks/speed_cpu_2026-11-20.md,
benchmarks/defaults_cpu_2026-11-29.md)."""

FEW_IMAGES = 1000
"""With fewer training images than this, ``trivial_augment: few`` turns on TrivialAugment."""

STEPS_PER_EPOCH = 190
"""Approximate number of steps per epoch, within the limits of `DEVICE_DEFAULTS`.

With a few thousand images, training needs the many steps that small batches give. With 24,000
images or more, batches of 128 reach the same accuracy in the same number of epochs and in half the
time.
"""

EPOCHS = (16, 300)
"""Smallest and largest default number of epochs."""


PRETRAINED_SHARE = 0.4
"""Share of ``images_shown`` for a run that starts from trained weights."""


def fill_defaults(
    recipe: Recipe, dataset: Dataset, runtime: Runtime, *, recorded: Recipe | None = None
) -> Recipe:
    """Fill in precision, network, input channels, value range and image size.

    Args:
        recipe: the recipe, with its weights resolved.
        dataset: the images and their classes.
        runtime: the device.
        recorded: the recipe of the run being resumed; its number of input channels is kept.

    Raises:
        DataError: there are no training images, or no single range of values fits all images.
        RecipeError: the recipe and its network differ in the number of channels.
    """
    recipe = fill_network(recipe, dataset, runtime)
    recipe = fill_channels(recipe, dataset, recorded=recorded)
    recipe = fill_value_range(recipe, dataset)
    return fill_image_size(recipe, dataset, runtime)


def fill_network(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> Recipe:
    """Fill in precision and network.

    On a CPU, the default network has half the usual width, or a quarter for fewer than 2,000
    images. A narrower network sees more images in the same time, and it reached the same accuracy
    on the same photos sooner (benchmarks/README.md).
    """
    values: dict[str, Any] = {"precision": runtime.precision}
    if recipe.model is None:
        split = dataset.splits.get("train") or dataset.splits.get("all")
        width = 16 if split is None or len(split) < 2000 else 32
        narrow = {"width": width} if runtime.device.type == "cpu" else {}
        values["model"] = DEFAULT_MODEL
        values["model_options"] = {**narrow, **recipe.model_options}
    return recipe.with_settings(values)


def fill_channels(recipe: Recipe, dataset: Dataset, *, recorded: Recipe | None = None) -> Recipe:
    """Fill in ``channels``, and set the network's ``in_channels`` option to match.

    If the recipe does not set the number, a network with random weights has one input channel if
    all training images are stored as grayscale. Any other network has three.

    Raises:
        RecipeError: ``channels`` and ``in_channels`` are both set and differ, or images cannot have
            this number of channels.
    """
    options = dict(recipe.model_options)
    channels = options.get("in_channels", recipe.channels)
    if channels is None and recorded is not None:
        channels = recorded.channels or 3
    elif channels is None:
        split = dataset.splits.get("train") or dataset.splits.get("all")
        is_gray = recipe.weights == "none" and split is not None and are_all_gray(split)
        channels = 1 if is_gray else 3
        if is_gray:
            say(
                "Note: all training images are grayscale, so the network gets one input channel. "
                "Use --channels 3 for RGB."
            )
        if split is not None:
            _note_transparency(split)
    if recipe.channels not in (None, channels):
        raise RecipeError(
            f"channels is {recipe.channels}, but the network's in_channels is {channels}. Remove "
            "one of them"
        )
    if channels not in list(STATISTICS):
        raise RecipeError(f"in_channels is {channels}; images have 1, 3 or 4 channels")
    if channels != 3:
        options["in_channels"] = channels
        recipe = recipe.with_settings({"channels": channels})
    return recipe.with_settings({"model_options": options})


def _note_transparency(split: Split) -> None:
    """Print a note if at least a tenth of up to 64 training images are partly transparent."""
    checked = permutation(0, 0, len(split))[:64]
    found = find_see_through(split, checked, default_workers())
    if found and 10 * len(found) >= len(checked):
        say(
            f"Note: {len(found):,} of {pluralize(len(checked), 'training image')} checked, such as "
            f"{printable(min(found))}, are partly transparent. Transparent areas become white. Use "
            "--channels 4 to keep transparency."
        )


def fill_value_range(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Fill in the values that become black and white in images with more than 8 bits.

    Raises:
        DataError: the images are of different kinds, so no single range of values fits.
    """
    splits = [dataset.splits[name] for name in ("train", "all", "val") if name in dataset.splits]
    if recipe.value_range is not None or not splits:
        return recipe
    return recipe.with_settings({"value_range": find_value_range(splits, default_workers())})


def fill_image_size(recipe: Recipe, dataset: Dataset, runtime: Runtime) -> Recipe:
    """Fill in image size, resize size, and the stem for small images.

    The image size is the median shorter side of 200 training images, rounded down to a multiple of
    32, and limited to what the device can train on in reasonable time.

    Raises:
        DataError: there are no training images.
    """
    image_size = recipe.image_size
    split = dataset.splits.get("train") or dataset.splits.get("all")
    if split is None:
        raise DataError(
            f"{shown(dataset.root)} has no training images, only the splits "
            f"{', '.join(dataset.splits)}"
        )
    if image_size is None:
        sides = [min(size) for size in image_sizes(split, permutation(0, 0, len(split))[:200])]
        fitting = int(np.median(sides or [32])) // 32 * 32
        image_size = min(max(32, fitting), DEVICE_DEFAULTS[runtime.device.type].largest_size)
    options = dict(recipe.model_options)
    architecture = ARCHITECTURES.get(str(recipe.model))
    has_own_stem = architecture is None or "stem" in architecture.numbers
    # Pretrained weights keep the stem that they were trained with.
    if recipe.weights == "none" and image_size <= 32 and not has_own_stem:
        options.setdefault("stem", "small")
    return recipe.with_settings(
        {
            "image_size": image_size,
            "resize_size": recipe.resize_size or image_size,
            "model_options": options,
        }
    )


def fill_length(
    recipe: Recipe, images: int, runtime: Runtime, *, recorded: Recipe | None = None
) -> Recipe:
    """Fill in batch size, epochs, and whether there are few enough images for TrivialAugment.

    See `fill_batch_size` and `fill_epochs`.

    Args:
        recipe: the recipe.
        images: number of training images.
        runtime: device and number of ranks.
        recorded: the recipe of the run being resumed. Its values fill in what ``recipe`` leaves
            open, whatever device that run was on.

    Raises:
        RecipeError: epochs and steps are both set, but disagree.
    """
    if recorded is not None:
        values: dict[str, Any] = {"batch_size": recipe.batch_size or recorded.batch_size}
        if recipe.epochs is None and recipe.steps is None:
            values["epochs"] = recorded.epochs
        recipe = recipe.with_settings(values)
    if recipe.trivial_augment == "few":
        recipe = recipe.with_settings({"trivial_augment": images < FEW_IMAGES})
    recipe = fill_batch_size(recipe, images, runtime)
    return fill_epochs(recipe, images, runtime, is_resumed=recorded is not None)


def fill_batch_size(recipe: Recipe, images: int, runtime: Runtime) -> Recipe:
    """Fill in the batch size: the power of two that gives about `STEPS_PER_EPOCH` steps.

    It stays within the limits of `DEVICE_DEFAULTS`, does not exceed the number of training
    ``images``, and is a multiple of the number of ranks.
    """
    if recipe.batch_size is not None:
        return recipe
    ranks = runtime.world_size
    smallest, largest = DEVICE_DEFAULTS[runtime.device.type].batch_sizes
    wanted = 2 ** round(math.log2(max(1.0, images / STEPS_PER_EPOCH)))
    fitting = min(max(smallest, min(wanted, largest)), images) // ranks * ranks
    return recipe.with_settings({"batch_size": max(ranks, fitting)})


def fill_epochs(
    recipe: Recipe, images: int, runtime: Runtime, *, is_resumed: bool = False
) -> Recipe:
    """Fill in the number of epochs.

    With ``steps``, it is the number of epochs needed for that many steps; the last epoch may be cut
    short. Otherwise, it is the number needed to show ``images_shown`` images (see
    `DEVICE_DEFAULTS`), or `PRETRAINED_SHARE` of them if the network starts from trained weights,
    within the limits of `EPOCHS`.

    Args:
        recipe: the recipe; its batch size is filled in.
        images: number of training images.
        runtime: the device.
        is_resumed: whether the run is resumed. Its recipe then has both epochs and steps. If they
            no longer agree, the data has changed, and a later check reports it.

    Raises:
        RecipeError: epochs and steps are both set, but disagree.
    """
    if recipe.steps is not None:
        assert recipe.batch_size is not None
        epochs = math.ceil(recipe.steps / max(1, images // recipe.batch_size))
        if recipe.epochs not in (None, epochs) and not is_resumed:
            raise RecipeError(
                f"epochs is {recipe.epochs}, but with {images} images and a batch size of "
                f"{recipe.batch_size}, {recipe.steps} steps take {epochs} epochs. Set epochs or "
                "steps to null"
            )
        return recipe.with_settings({"epochs": epochs, "steps": recipe.steps})
    if recipe.epochs is not None:
        return recipe
    fewest, most = EPOCHS
    images_shown: float = DEVICE_DEFAULTS[runtime.device.type].images_shown
    if recipe.weights != "none":
        images_shown *= PRETRAINED_SHARE
    epochs = min(most, max(fewest, round(images_shown / images)))
    return recipe.with_settings({"epochs": epochs})
