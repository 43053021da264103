"""Randomness as a function: every random choice is f(seed, purpose, position).

A run therefore gives bit-identical results with any number of loader workers, and wherever it was
stopped and resumed. No RNG state is stored, restored or kept in sync.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(*parts: int | str) -> int:
    """Return a 63-bit seed that depends on every part and on nothing else.

    >>> derive(0, "order", 1) == derive(0, "order", 1) != derive(0, "order", 2)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """Return the image order for an epoch: ``range(count)`` permuted, as int64; f(seed, epoch).

    >>> np.array_equal(permutation(0, 3, count=4), permutation(0, 3, count=4))
    True
    """
    return np.random.Generator(np.random.PCG64(derive(seed, "order", epoch))).permutation(count)


def image_rng(seed: int, epoch: int, image: int, copy: int = 0) -> random.Random:
    """Return the rng that augments one copy of an image: f(seed, epoch, image, copy)."""
    return random.Random(derive(seed, "picture", epoch, image, copy))


def seed_generators(device: torch.device, *parts: int | str) -> None:
    """Seed only the global PyTorch generators that a network on ``device`` draws from."""
    import torch

    seed = derive(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Restore the global generators of PyTorch, NumPy and Python on exit.

    If CUDA is initialized inside the context, its generators are seeded with the caller's last
    `torch.manual_seed`.
    """
    import torch

    python_state = random.getstate()
    numpy_state = np.random.get_state()
    torch_state = torch.get_rng_state()
    cuda_was_initialized = _is_cuda_initialized()
    cuda_states = torch.cuda.get_rng_state_all() if cuda_was_initialized else []
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)
        if cuda_was_initialized:
            torch.cuda.set_rng_state_all(cuda_states)
        elif _is_cuda_initialized():
            torch.cuda.manual_seed_all(torch.initial_seed())


def _is_cuda_initialized() -> bool:
    import torch

    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
