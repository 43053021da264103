"""A useful error if a batch does not fit in the device's memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import TrainingError
from ..runtime import Runtime
from .recipe import Recipe

# MPS and the CPU raise a plain RuntimeError; so do cuBLAS and cuDNN if they cannot get memory.
_TEXTS = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")


@contextmanager
def explain_out_of_memory(recipe: Recipe, runtime: Runtime) -> Iterator[None]:
    """Turn PyTorch's out-of-memory error into one that says what to change.

    Raises:
        TrainingError: the device ran out of memory inside this context.
    """
    try:
        yield
    except RuntimeError as error:
        is_out_of_memory = isinstance(error, torch.OutOfMemoryError) or any(
            text in str(error) for text in _TEXTS
        )
        if not is_out_of_memory:
            raise
        batch_size = recipe.batch_size
        ranks = runtime.world_size
        assert batch_size is not None
        smaller = max(ranks, batch_size // 2 // ranks * ranks)
        raise TrainingError(
            f"{runtime.device} does not have enough memory for {recipe.micro_batch_size(ranks)} "
            f"images at once (batch_size {batch_size}, accumulate {recipe.accumulate}, processes "
            f"{ranks}). Compute the same batch in more parts with --set "
            f"accumulate={2 * recipe.accumulate}, or use a smaller batch with --batch-size "
            f"{smaller}. PyTorch says: {str(error).splitlines()[0]}"
        ) from error
