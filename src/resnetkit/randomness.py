"""Randomness as a function: whoever needs chance asks for f(seed, what, where), and keeps no state.

So a run gives the same bits whatever the number of loader workers, and wherever it was stopped and
resumed: nothing has to be remembered, restored or kept in step.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(*parts: int | str) -> int:
    """A number of 63 bits that depends on every part and on nothing else.

    >>> derive(0, "order", 1) == derive(0, "order", 1) != derive(0, "order", 2)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order of an epoch: a permutation of ``range(count)`` as int64, f(seed, epoch).

    >>> order(seed=0, epoch=3, count=4).tolist() == order(seed=0, epoch=3, count=4).tolist()
    True
    """
    return np.random.Generator(np.random.PCG64(derive(seed, "order", epoch))).permutation(count)


def for_image(seed: int, epoch: int, image: int, copy: int = 0) -> random.Random:
    """The source of chance for the augmentation of one picture: f(seed, epoch, picture, copy)."""
    return random.Random(derive(seed, "picture", epoch, image, copy))


def seed_generators(device: torch.device, *parts: int | str) -> None:
    """Seed PyTorch's global generators that a network on ``device`` draws from, and no others."""
    seed = derive(*parts)
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def preserve_generators() -> Iterator[None]:
    """Put the global generators of PyTorch, NumPy and Python back as they were, on exit.

    Where CUDA only starts inside, its generators get the seed that `torch.manual_seed` had set.
    """
    own, numbers, state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    started = _cuda_has_started()
    devices = torch.cuda.get_rng_state_all() if started else []
    try:
        yield
    finally:
        random.setstate(own)
        np.random.set_state(numbers)
        torch.set_rng_state(state)
        if started:
            torch.cuda.set_rng_state_all(devices)
        elif _cuda_has_started():
            torch.cuda.manual_seed_all(torch.initial_seed())


def _cuda_has_started() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
