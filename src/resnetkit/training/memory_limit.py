"""What to do when a batch does not fit into the memory of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import TrainingError
from ..runtime import Runtime
from .recipe import Recipe

# MPS and the CPU raise a plain RuntimeError; cuBLAS and cuDNN do for their own memory.
_TEXTS = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")


@contextmanager
def enough_memory(recipe: Recipe, where: Runtime) -> Iterator[None]:
    """Say what to change if the memory of the device is not enough for what is done in here.

    Raises:
        TrainingError: it is not.
    """
    try:
        yield
    except RuntimeError as error:
        told = isinstance(error, torch.OutOfMemoryError) or any(x in str(error) for x in _TEXTS)
        if not told:
            raise
        size, parts, ranks = recipe.batch_size, recipe.accumulate, where.world_size
        assert size is not None
        smaller = max(ranks, size // 2 // ranks * ranks)
        raise TrainingError(
            f"The memory of {where.device} is not enough for {recipe.at_once(ranks)} images at "
            f"once (batch_size {size}, accumulate {parts}, processes {ranks}). Compute the same "
            f"batch in more parts with --set accumulate={2 * parts}, or take a smaller one with "
            f"--batch-size {smaller}. PyTorch says: {str(error).splitlines()[0]}"
        ) from error
