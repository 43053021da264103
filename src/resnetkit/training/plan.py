"""What a run is going to do: the recipe with nothing left open, and the words to show it in."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from ..data.dataset import image_sizes
from ..data.folder import Dataset, Split
from ..data.transforms import STATISTICS, normalize
from ..data.value_range import find_value_range
from ..errors import DataError, RecipeError
from ..models.architectures import ARCHITECTURES
from ..progress import columns, counted, padded, printable, say
from ..randomness import order
from ..runtime import Runtime, cores, default_workers
from . import parallel, wording
from .depth import shallow
from .memory_limit import enough_memory
from .optimizer import Optimizer
from .param_groups import make_optimizer
from .preparation import Prepared
from .recipe import Recipe
from .start import DEFAULT_MODEL


class DeviceDefaults(NamedTuple):
    """What a recipe that leaves it open gets on one type of device.

    Args:
        batch_size: images a step, of all processes together.
        images_shown: images of the whole run, which decide its epochs within `EPOCHS`.
        largest_size: the most pixels of the side of an image; see `choose_size`.
    """

    batch_size: int
    images_shown: int
    largest_size: int


DEVICE_DEFAULTS = {
    "cpu": DeviceDefaults(batch_size=16, images_shown=40_000, largest_size=128),
    "mps": DeviceDefaults(batch_size=64, images_shown=80_000, largest_size=192),
    "cuda": DeviceDefaults(batch_size=128, images_shown=160_000, largest_size=224),
}
"""By type of device. A GPU is idle in small batches, so it takes larger ones and, to make up for
some of the steps that those save, shows more images. Only the row of the CPU was measured
(benchmarks/speed_cpu_2026-11-20.md)."""

EPOCHS = (16, 300)  # at least, at most
EVALUATED = 16  # pictures, to measure how long evaluation takes
FEW_IMAGES = 30  # a class
THREADS_SECONDS, THREADS_ROUNDS = 2.0, 7  # at most, to measure compute threads
THREADS_WORTH = 0.1  # the speed that more threads must bring
SMALL_BATCH = 8  # images at once; from fewer, batch norm estimates a mean and variance badly


def choose(recipe: Recipe, data: Dataset, runtime: Runtime) -> Recipe:
    """Fill in precision, network, input channels, the range of values and picture size.

    Raises:
        DataError: there is no part to train on, or nothing says which numbers are black and white.
        RecipeError: the network takes another number of channels than the recipe says.
    """
    recipe = choose_channels(choose_network(recipe, data, runtime))
    return choose_size(choose_range(recipe, data), data, runtime)


def choose_channels(recipe: Recipe) -> Recipe:
    """Make the channels of the recipe and those of the network the same.

    Raises:
        RecipeError: both are given and differ, or no image has so many channels.
    """
    options = dict(recipe.model_options)
    taken = options.get("in_channels", recipe.channels or 3)
    if recipe.channels not in (None, taken):
        raise RecipeError(
            f"channels is {recipe.channels}, and the network takes {taken} (in_channels). Leave "
            "one of them out"
        )
    if taken not in list(STATISTICS):
        raise RecipeError(f"images have 1, 3 or 4 channels; got a network of in_channels {taken}")
    if taken != 3:
        options["in_channels"] = taken
        recipe = recipe.with_settings({"channels": taken})
    return recipe.with_settings({"model_options": options})


def choose_range(recipe: Recipe, data: Dataset) -> Recipe:
    """Fill in the numbers that become black and white in images of 16 or 32 bits of grey.

    Raises:
        DataError: images of several kinds.
    """
    parts = [data.splits[name] for name in ("train", "all", "val") if name in data.splits]
    if recipe.value_range is not None or not parts:
        return recipe
    return recipe.with_settings({"value_range": find_value_range(parts, default_workers())})


def choose_network(recipe: Recipe, data: Dataset, runtime: Runtime) -> Recipe:
    """Fill in precision and network. On a CPU the default is half as wide, and a quarter for fewer
    than 2,000 pictures: it sees more of them in the same time, and on the same photos reached the
    same accuracy sooner (benchmarks/README.md)."""
    found: dict[str, Any] = {"precision": runtime.precision}
    if recipe.model is None:
        split = data.splits.get("train") or data.splits.get("all")
        width = 16 if split is None or len(split) < 2000 else 32
        narrow = {"width": width} if runtime.device.type == "cpu" else {}
        found |= {"model": DEFAULT_MODEL, "model_options": {**narrow, **recipe.model_options}}
    return recipe.with_settings(found)


def choose_size(recipe: Recipe, data: Dataset, runtime: Runtime) -> Recipe:
    """Fill in the picture size: the median shorter side of 200 pictures, down to a multiple of 32,
    and no more than the device trains on in reasonable time.

    Raises:
        DataError: there is no part to train on.
    """
    image_size = recipe.image_size
    split = data.splits.get("train") or data.splits.get("all")
    if split is None:
        raise DataError(f"{data.root} has only {', '.join(data.splits)}: nothing to train on")
    if image_size is None:
        sides = [min(size) for size in image_sizes(split, order(0, 0, len(split))[:200])]
        fitting = int(np.median(sides or [32])) // 32 * 32
        image_size = min(max(32, fitting), DEVICE_DEFAULTS[runtime.device.type].largest_size)
    options = dict(recipe.model_options)
    known = ARCHITECTURES.get(str(recipe.model))
    random = recipe.weights == "none"  # others come with the stem that they were trained with
    if random and image_size <= 32 and known is not None and "stem" not in known.numbers:
        options.setdefault("stem", "small")
    resize_size = recipe.resize_size or image_size
    found = {"image_size": image_size, "resize_size": resize_size, "model_options": options}
    return recipe.with_settings(found)


def choose_length(
    recipe: Recipe, images: int, runtime: Runtime, recorded: Recipe | None = None
) -> Recipe:
    """Fill in batch size and epochs for so many training ``images``; see `choose_batch_size` and
    `choose_epochs`.

    Args:
        recorded: the recipe of the run that is resumed. What ``recipe`` leaves open is what that
            run found, on whatever device.

    Raises:
        RecipeError: epochs and steps are both given, and are not the same length.
    """
    if recorded is not None:
        found: dict[str, Any] = {"batch_size": recipe.batch_size or recorded.batch_size}
        if recipe.epochs is None and recipe.steps is None:
            found["epochs"] = recorded.epochs
        recipe = recipe.with_settings(found)
    recipe = choose_batch_size(recipe, images, runtime)
    return choose_epochs(recipe, images, runtime, resumed=recorded is not None)


def choose_batch_size(recipe: Recipe, images: int, runtime: Runtime) -> Recipe:
    """Fill in the batch size: that of the device in `DEVICE_DEFAULTS`, no more than the training
    ``images``, and a multiple of the processes."""
    if recipe.batch_size is not None:
        return recipe
    ranks = runtime.world_size
    fitting = min(DEVICE_DEFAULTS[runtime.device.type].batch_size, images) // ranks * ranks
    return recipe.with_settings({"batch_size": max(ranks, fitting)})


def choose_epochs(
    recipe: Recipe, images: int, runtime: Runtime, *, resumed: bool = False
) -> Recipe:
    """Fill in the number of epochs: those that ``steps`` take, the last perhaps in part; else as
    many as show the images that `DEVICE_DEFAULTS` has for the device, between 16 and 300. The
    recipe of a run that is ``resumed`` has both: where they no longer fit together, its data have
    changed, which is told later.

    Raises:
        RecipeError: both are given, and are not the same length.
    """
    if recipe.steps is not None:
        assert recipe.batch_size is not None
        epochs = math.ceil(recipe.steps / max(1, images // recipe.batch_size))
        if recipe.epochs not in (None, epochs) and not resumed:
            raise RecipeError(
                f"epochs is {recipe.epochs}, and {recipe.steps} steps of {recipe.batch_size} of "
                f"these {images} pictures are {epochs}. Set one of epochs and steps to null"
            )
        return recipe.with_settings({"epochs": epochs, "steps": recipe.steps})
    if recipe.epochs is not None:
        return recipe
    least, most = EPOCHS
    shown = DEVICE_DEFAULTS[runtime.device.type].images_shown
    epochs = min(most, max(least, round(shown / images)))
    return recipe.with_settings({"epochs": epochs})


def choose_threads(
    model: nn.Module, recipe: Recipe, runtime: Runtime, recorded: Recipe | None = None
) -> Recipe:
    """Fill in the number of compute threads, and compute with it from here on.

    Steps of training with 1, 2, 4, ... threads take turns for at most `THREADS_SECONDS`, and the
    fewest threads whose median step is within `THREADS_WORTH` of the fastest win: a small network
    gains little from more, and threads that wait for each other slow every other process down.
    Not measured, but taken as they are: a number in the recipe or in OMP_NUM_THREADS, the threads
    that torchrun gave each process, and those of the run that is resumed (``recorded``).
    """
    most = min(torch.get_num_threads(), cores())
    given = runtime.world_size > 1 or "OMP_NUM_THREADS" in os.environ
    if recorded is not None and recipe.threads is None:
        recipe = recipe.with_settings({"threads": recorded.threads})  # the state knows older ones
    elif recipe.threads is None:
        measured = most > 1 and not given and runtime.device.type == "cpu"
        count = fastest(_step(model, recipe, runtime), most) if measured else most
        recipe = recipe.with_settings({"threads": count})
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return recipe


def fastest(
    step: Callable[[], None], most: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Return the number of compute threads for ``step``, from 1 to ``most``: see `choose_threads`.

    Args:
        clock: seconds, as `time.perf_counter` gives them.
    """
    candidates = [2**power for power in range(most.bit_length()) if 2**power < most] + [most]
    taken: dict[int, list[float]] = {count: [] for count in candidates}

    def run(count: int) -> float:
        torch.set_num_threads(count)
        begun = clock()
        step()
        return clock() - begun

    run(most)  # compiles kernels and takes memory
    begun, largest = clock(), run(most)
    if largest * sum(most / count for count in candidates) > THREADS_SECONDS:
        return most  # a step as large as this one gains by every thread
    for finished in range(THREADS_ROUNDS):
        for count in candidates:
            taken[count].append(run(count))
        if (clock() - begun) * (finished + 2) / (finished + 1) > THREADS_SECONDS:
            break
    middle = {count: median(values) for count, values in taken.items()}
    good = (1 + THREADS_WORTH) * min(middle.values())
    return min(count for count, seconds in middle.items() if seconds <= good)


def _step(model: nn.Module, recipe: Recipe, runtime: Runtime) -> Callable[[], None]:
    """Return a step of training on a copy of the network, at its usual image size."""
    copy = deepcopy(model)
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    sizes = sorted(recipe.train_size(epoch) for epoch in range(recipe.epochs))
    count = -(-recipe.batch_size // recipe.accumulate)
    optimizer = make_optimizer(copy, recipe)
    network = shallow(copy, recipe)
    return _training_step(network, optimizer, recipe, runtime, count, sizes[len(sizes) // 2])


def measure(
    model: nn.Module, recipe: Recipe, runtime: Runtime, trained: int, validated: int
) -> float:
    """Seconds that a run will take on so many pictures, from a few steps of training and evaluation
    on a copy of the network: this process's share of them in the parts of ``accumulate``, eager,
    without any exchange: ranks measure different numbers of steps. The real network and every
    source of chance stay as they are.

    Raises:
        RecipeError: batch norm cannot train on parts as small as these.
        TrainingError: the memory of the device is not enough.
    """
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    say("Measuring a few steps.")
    sizes = [recipe.train_size(epoch) for epoch in range(recipe.epochs)]
    middle = sorted(sizes)[len(sizes) // 2]
    copy = parallel.local_norms(deepcopy(model))
    optimizer = make_optimizer(copy, recipe)
    per_step = per_evaluation = 0.0
    batches = max(1, trained // recipe.batch_size)
    own = -(-min(trained, recipe.batch_size) // runtime.world_size)
    parts = min(recipe.accumulate, own)
    share = recipe.shallow_share
    for network, split in ((shallow(copy, recipe), share), (copy, 1 - share)):
        if split:
            step = _training_step(network, optimizer, recipe, runtime, -(-own // parts), middle)
            evaluation = _evaluation_step(network, recipe, runtime)
            with enough_memory(recipe, runtime):
                per_step += split * parts * _seconds(step, 10, runtime)
                per_evaluation += split * _seconds(evaluation, 2, runtime)
    steps = batches * sum((size / middle) ** 2 for size in sizes)
    if recipe.steps is not None:  # the last epoch is not whole
        steps *= recipe.steps / (batches * recipe.epochs)
    return steps * per_step + recipe.epochs * validated / EVALUATED * per_evaluation


def _training_step(
    model: nn.Module,
    optimizer: Optimizer,
    recipe: Recipe,
    runtime: Runtime,
    count: int,
    size: int,
) -> Callable[[], None]:
    images, labels = _made_batch(count, size, recipe.channels or 3, runtime)

    def step() -> None:
        try:
            shown = normalize(images, recipe.preprocessing())
            with runtime.autocast():
                logits = model(shown.contiguous(memory_format=runtime.memory_format))
            loss = F.cross_entropy(logits.float(), labels)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise RecipeError(
                f"batch norm needs more than one number of a channel, and {count} picture(s) of "
                f"{size} px come to one in this network: a larger --batch-size, a smaller "
                "accumulate or larger pictures (--image-size) would do"
            ) from error
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _evaluation_step(model: nn.Module, recipe: Recipe, runtime: Runtime) -> Callable[[], None]:
    assert recipe.image_size is not None
    images, _ = _made_batch(EVALUATED, recipe.image_size, recipe.channels or 3, runtime)

    def step() -> None:
        with torch.inference_mode():
            shown = normalize(images, recipe.preprocessing())
            model.eval()(shown.contiguous(memory_format=runtime.memory_format))

    return step


def _made_batch(
    count: int, size: int, channels: int, runtime: Runtime
) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.zeros(count, size, size, channels, dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.zeros(count, dtype=torch.int64)
    return images.to(runtime.device), labels.to(runtime.device)


def _seconds(step: Callable[[], None], times: int, runtime: Runtime) -> float:
    """Median seconds of up to so many steps in a quarter of a second, after one to warm up."""
    step()
    taken: list[float] = []
    while len(taken) < times and sum(taken) < 0.25:
        runtime.synchronize()
        start = time.perf_counter()
        step()
        runtime.synchronize()
        taken.append(time.perf_counter() - start)
    return sorted(taken)[len(taken) // 2]


def describe(
    prepared: Prepared,
    recipe: Recipe,
    runtime: Runtime,
    model: nn.Module,
    workers: int,
    seconds: float,
) -> str:
    """The plan as it is shown before the first step."""
    data, train, val = prepared.data, prepared.train.split, prepared.val.split
    assert recipe.epochs is not None
    counts = f"{len(train)} + {len(val)} pictures, {len(data.classes)} classes"
    lines = [f"{printable(str(data.root))}: {counts}", ""]
    lines += _class_table(data.classes, train, val)
    lines.append("")
    lines += _remarks(prepared, recipe)
    lines += _batch_norm_remark(recipe, runtime, model)

    parameters = sum(p.numel() for p in model.parameters())
    sizes = [recipe.train_size(epoch) for epoch in range(recipe.epochs)]
    growing = f"{sizes[0]} growing to {sizes[-1]}" if sizes[0] != sizes[-1] else f"{sizes[0]}"
    options = "".join(f", {key} {value}" for key, value in recipe.model_options.items())
    minutes = f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
    processes = f"{runtime.world_size} processes of " if runtime.world_size > 1 else ""
    rows = {
        "network": f"{recipe.model}{options}, {parameters:,} parameters, {_origin(recipe)}",
        "pictures": f"trained at {growing} px, evaluated at {recipe.image_size} px (shorter side "
        f"{recipe.resize_size} px, centre cut)",
        "augmentation": wording.augmentation(recipe),
        "training": wording.training(recipe, len(train)),
        "optimiser": wording.optimiser(recipe),
        "machine": f"{runtime.device}, {runtime.precision}, {processes}"
        f"{counted(recipe.threads or torch.get_num_threads(), 'compute thread')}, "
        f"{counted(workers, 'thread')} to read images",
        "expected": f"{minutes} (from a few measured steps)",
    }
    lines += [f"{name:14}{text}" for name, text in rows.items()]
    return "\n".join(lines)


def _origin(recipe: Recipe) -> str:
    """In words, what the network begins with."""
    if recipe.weights == "none":
        return "random weights"
    begun = f"weights of {printable(Path(recipe.weights).name)}"
    if recipe.freeze:
        begun += f", {', '.join(recipe.freeze)} frozen"
    return begun + (f", {recipe.head_share:.0%} for the head alone" if recipe.head_share else "")


def _remarks(prepared: Prepared, recipe: Recipe) -> list[str]:
    """What a person should know of the data before they are trained on."""
    data, train = prepared.data, prepared.train.split
    lines = []
    if prepared.made_split:
        lines.append(
            f"No validation part was given: {recipe.val_split:.0%} of each class was set apart for "
            "it (listed in split.csv; exact duplicates stay together)."
        )
    lines += [f"Left out: {line}." for line in data.left_out.lines()]
    lines += [f"Note: {note}." for note in data.notes]
    lines += [f"Note: {note}." for note in prepared.notes]
    lines += [f"Skipped, cannot be read: {text}" for text in prepared.skipped]
    if recipe.value_range is not None:
        low, high = recipe.value_range
        lines.append(
            f"Images of 16 or 32 bits of grey: {low:,g} becomes black and {high:,g} white, here "
            f"and wherever the model is used (--set value_range=[{low:g},{high:g}])."
        )
    if prepared.conflicting:
        lines.append(
            f"Note: {len(prepared.conflicting)} picture(s) lie under more than one class: "
            f"{', '.join(prepared.conflicting[:5])}."
        )
    if recipe.flip and _may_mind_mirrors(data.classes):
        lines.append(
            "Note: pictures are mirrored at random. The class names look as if a mirrored picture "
            "could be of another class; if so, add --set flip=false."
        )
    if len(train) < FEW_IMAGES * len(data.classes):
        lines.append(
            f"Note: {len(train) / len(data.classes):.0f} training pictures a class are few; more "
            "will help more than anything else."
        )
    return [printable(line) for line in lines]


def _batch_norm_remark(recipe: Recipe, runtime: Runtime, model: nn.Module) -> list[str]:
    """Return what to change where processes leave batch norm too few images; else nothing."""
    count, ranks = recipe.at_once(runtime.world_size), runtime.world_size
    norms = any(
        isinstance(module, nn.BatchNorm2d) for module in model.modules()
    )  # not SyncBatchNorm
    if ranks == 1 or count >= SMALL_BATCH or not norms:
        return []
    larger = SMALL_BATCH * ranks * recipe.accumulate
    return [
        f"Note: batch norm sees {counted(count, 'image')} at once in each of {ranks} processes, "
        f"which makes its statistics noisy: add --batch-size {larger}, or on CUDA GPUs "
        "--set sync_bn=true."
    ]


def _may_mind_mirrors(classes: tuple[str, ...]) -> bool:
    """Whether the names speak of left and right, or are digits or letters."""
    words = {word for name in classes for word in re.split(r"[\W_]+", name.lower())}
    return bool(words & {"left", "right"}) or all(re.fullmatch(r"[A-Za-z]|\d+", n) for n in classes)


def _class_table(classes: tuple[str, ...], train: Split, val: Split, most: int = 30) -> list[str]:
    counts = list(zip(classes, train.counts(len(classes)), val.counts(len(classes)), strict=True))
    shown = counts if len(counts) <= most else sorted(counts, key=lambda row: row[1])[:most]
    width = max(len("class"), *(columns(name) for name, _, _ in shown))
    lines = [f"  {'class':{width}}  train    val"]
    lines += [f"  {padded(name, width)}  {n:5}  {m:5}" for name, n, m in shown]
    if len(counts) > most:
        rest = sorted(counts, key=lambda row: row[1])[most:]
        trained = _range([count for _, count, _ in rest])
        validated = _range([count for _, _, count in rest])
        lines.append(
            f"  ... the {most} smallest of {len(counts):,} classes; the other {len(rest):,} have "
            f"{trained} images for training and {validated} for validation"
        )
    return lines


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
