"""Measure steps before a run: how many compute threads to use, and how long the run will take."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from copy import deepcopy
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data.transforms import normalize
from ..errors import RecipeError
from ..limits import cores
from ..models.modes import in_mode
from ..progress import say
from ..runtime import Runtime
from .distributed import revert_sync_bn
from .optimizer import Optimizer
from .out_of_memory import explain_out_of_memory
from .param_groups import make_optimizer, set_trainable
from .recipe import Recipe
from .shallow import shallow_model

EVAL_BATCH_SIZE = 16
"""Images per batch when measuring evaluation speed."""

THREADS_SECONDS = 2.0
"""Time limit for measuring compute threads."""

THREADS_ROUNDS = 7
"""Maximum number of rounds; each round times every thread count once."""

THREADS_GAIN = 0.1
"""How much slower than the fastest a step with fewer threads may be, as a share."""


def check_batch_norm(model: nn.Module, recipe: Recipe, runtime: Runtime, train_count: int) -> None:
    """Check that batch norm can train on the smallest micro-batch, at the smallest image size.

    Args:
        model: the network, on its device; it stays unchanged.
        recipe: the resolved recipe.
        runtime: device, precision and ranks.
        train_count: number of training images.

    Raises:
        RecipeError: the network reduces the micro-batch to one value per channel.
    """
    assert recipe.epochs is not None
    if recipe.sync_bn and runtime.world_size > 1:  # the batch of all ranks is normalized together
        return
    local_images = _batch_images(recipe, train_count) // runtime.world_size
    if local_images // min(recipe.accumulate, local_images) > 1:
        return
    image_size = min(recipe.train_size(epoch) for epoch in range(recipe.epochs))
    image, _ = _blank_batch(1, image_size, recipe.channels or 3, runtime)
    try:
        copy = deepcopy(model)
        set_trainable(copy, recipe, step=1, steps=1)  # all but frozen layers
        with torch.no_grad():
            copy(normalize(image, recipe.preprocessing()))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise RecipeError(
            "Batch norm needs more than one value per channel, but this network reduces 1 image of "
            f"{image_size} px to a single value. Use a larger --batch-size, a smaller accumulate, "
            "or larger images (--image-size)"
        ) from error


def _batch_images(recipe: Recipe, train_count: int) -> int:
    """Return the number of images in a batch, summed over all ranks."""
    assert recipe.batch_size is not None
    return min(train_count, recipe.batch_size)


def fill_threads(
    model: nn.Module,
    recipe: Recipe,
    runtime: Runtime,
    train_count: int,
    *,
    recorded: Recipe | None = None,
) -> Recipe:
    """Fill in the number of compute threads, and use it from here on.

    Training steps with 1, 2, 4, ... threads take turns for at most `THREADS_SECONDS`. The result is
    the smallest number whose median step is within `THREADS_GAIN` of the fastest: a small network
    gains little from more threads, and threads that wait for each other slow down every other
    process. If steps take too long to compare, the first step decides; see `fewest_fast_threads`.

    Nothing is measured if the number is given: by the recipe, by OMP_NUM_THREADS, by torchrun, or
    by the run being resumed (``recorded``).
    """
    most = min(torch.get_num_threads(), cores())
    is_given = runtime.world_size > 1 or "OMP_NUM_THREADS" in os.environ
    if recorded is not None and recipe.threads is None:
        # Recipes from older runs do not record a thread count; `State.restore` sets it.
        recipe = recipe.with_settings({"threads": recorded.threads})
    elif recipe.threads is None:
        is_measured = most > 1 and not is_given and runtime.device.type == "cpu"
        step = _usual_step(model, recipe, runtime, train_count) if is_measured else None
        count = most if step is None else fewest_fast_threads(step, most)
        recipe = recipe.with_settings({"threads": count})
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    return recipe


def fewest_fast_threads(
    step: Callable[[], None],
    most: int,
    clock: Callable[[], float] = time.perf_counter,
    cpu_clock: Callable[[], float] = time.process_time,
) -> int:
    """Return the fewest compute threads that are nearly as fast as any; see `fill_threads`.

    If steps take too long to compare, the first step decides: the result is about the number of
    cores that the process got, which is its CPU time divided by the elapsed time. On an idle
    machine, that is ``most``. If other processes are busy, it is less, because a step becomes
    several times slower when threads wait for one that is not running.

    Args:
        step: runs a training step.
        most: the maximum number of threads to try.
        clock: returns seconds, like `time.perf_counter`.
        cpu_clock: returns the CPU seconds of all threads, like `time.process_time`.
    """
    candidates: list[int] = [2**power for power in range(most.bit_length()) if 2**power < most] + [
        most
    ]
    seconds: dict[int, list[float]] = {count: [] for count in candidates}

    def time_step(count: int) -> float:
        torch.set_num_threads(count)
        started = clock()
        step()
        return clock() - started

    time_step(most)  # warm-up: it compiles kernels and allocates memory
    started, cpu_started = clock(), cpu_clock()
    with_most = time_step(most)
    if with_most * sum(most / count for count in candidates) > THREADS_SECONDS:
        cores_used = (cpu_clock() - cpu_started) / with_most
        return int(min(candidates, key=lambda count: abs(count - cores_used)))
    for finished_rounds in range(THREADS_ROUNDS):
        for count in candidates:
            seconds[count].append(time_step(count))
        expected = (clock() - started) * (finished_rounds + 2) / (finished_rounds + 1)
        if expected > THREADS_SECONDS:
            break
    medians = {count: median(values) for count, values in seconds.items()}
    limit = (1 + THREADS_GAIN) * min(medians.values())
    return min(count for count, value in medians.items() if value <= limit)


def _usual_step(
    model: nn.Module, recipe: Recipe, runtime: Runtime, train_count: int
) -> Callable[[], None]:
    """Return a training step on a copy of the network, at the median training image size."""
    copy = deepcopy(model)
    assert recipe.epochs is not None
    image_sizes = sorted(recipe.train_size(epoch) for epoch in range(recipe.epochs))
    return _training_step(
        shallow_model(copy, recipe),
        make_optimizer(copy, recipe),
        recipe=recipe,
        runtime=runtime,
        count=-(-_batch_images(recipe, train_count) // recipe.accumulate),
        image_size=image_sizes[len(image_sizes) // 2],
    )


def estimate_seconds(
    model: nn.Module, recipe: Recipe, runtime: Runtime, train_count: int, val_count: int
) -> float:
    """Estimate the seconds that a run will take, from a few steps of training and evaluation.

    The steps run on a copy of the network, so the network and every RNG stay unchanged. Each
    process measures its own share of a batch, split into ``accumulate`` micro-batches. The steps
    run eagerly, and without communication, because ranks measure different numbers of steps.

    Args:
        model: the network, on its device.
        recipe: the resolved recipe.
        runtime: device, precision and ranks.
        train_count: number of training images.
        val_count: number of validation images.

    Raises:
        TrainingError: the device runs out of memory.
    """
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    say("Measuring a few steps.")
    image_sizes = [recipe.train_size(epoch) for epoch in range(recipe.epochs)]
    usual_size = sorted(image_sizes)[len(image_sizes) // 2]
    copy = revert_sync_bn(deepcopy(model))
    optimizer = make_optimizer(copy, recipe)
    epoch_batches = max(1, train_count // recipe.batch_size)
    local_images = -(-_batch_images(recipe, train_count) // runtime.world_size)
    micro_batches = min(recipe.accumulate, local_images)

    step_seconds = 0.0
    evaluation_seconds = 0.0
    shallow_share = recipe.shallow_share
    networks = [(shallow_model(copy, recipe), shallow_share), (copy, 1 - shallow_share)]
    for network, share in networks:
        if not share:
            continue
        train = _training_step(
            network,
            optimizer,
            recipe=recipe,
            runtime=runtime,
            count=-(-local_images // micro_batches),
            image_size=usual_size,
        )
        evaluate = _evaluation_step(network, recipe, runtime)
        with explain_out_of_memory(recipe, runtime):
            step_seconds += share * micro_batches * _median_seconds(train, 10, runtime)
            evaluation_seconds += share * _median_seconds(evaluate, 2, runtime)

    # Larger images take longer, in proportion to their pixels.
    usual_steps = epoch_batches * sum((size / usual_size) ** 2 for size in image_sizes)
    if recipe.steps is not None:  # the last epoch may be cut short
        usual_steps *= recipe.steps / (epoch_batches * recipe.epochs)
    evaluations = recipe.epochs * val_count / EVAL_BATCH_SIZE
    return usual_steps * step_seconds + evaluations * evaluation_seconds


def _training_step(
    model: nn.Module,
    optimizer: Optimizer,
    *,
    recipe: Recipe,
    runtime: Runtime,
    count: int,
    image_size: int,
) -> Callable[[], None]:
    """Return a function that runs a training step on ``count`` blank images."""
    images, labels = _blank_batch(count, image_size, recipe.channels or 3, runtime)

    def step() -> None:
        inputs = normalize(images, recipe.preprocessing())
        with runtime.autocast():
            logits = model(inputs.contiguous(memory_format=runtime.memory_format))
        loss = F.cross_entropy(logits.float(), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def _evaluation_step(model: nn.Module, recipe: Recipe, runtime: Runtime) -> Callable[[], None]:
    """Return a function that evaluates `EVAL_BATCH_SIZE` blank images."""
    assert recipe.image_size is not None
    channels = recipe.channels or 3
    images, _ = _blank_batch(EVAL_BATCH_SIZE, recipe.image_size, channels, runtime)

    def step() -> None:
        # Restore the modes: a shallow network shares its modules with the full one, measured next.
        with torch.inference_mode(), in_mode(model, training=False):
            inputs = normalize(images, recipe.preprocessing())
            model(inputs.contiguous(memory_format=runtime.memory_format))

    return step


def _blank_batch(
    count: int, image_size: int, channels: int, runtime: Runtime
) -> tuple[Tensor, Tensor]:
    """Return ``(N, C, S, S)`` uint8 images of zeros, channels last, and ``(N,)`` int64 labels."""
    pixels = torch.zeros(count, image_size, image_size, channels, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    return pixels.permute(0, 3, 1, 2).to(runtime.device), labels.to(runtime.device)


def _median_seconds(step: Callable[[], None], times: int, runtime: Runtime) -> float:
    """Return the median time of a step in seconds.

    After a warm-up step, it times up to ``times`` steps within a quarter of a second.
    """
    step()
    seconds: list[float] = []
    while len(seconds) < times and sum(seconds) < 0.25:
        runtime.synchronize()
        started = time.perf_counter()
        step()
        runtime.synchronize()
        seconds.append(time.perf_counter() - started)
    return sorted(seconds)[len(seconds) // 2]
