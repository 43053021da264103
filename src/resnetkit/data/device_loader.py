"""Batches on the device, so that it never waits for the next one.

On a CUDA GPU the next batch travels while the GPU computes with this one, on a stream for copies
alone. Nobody waits for a copy but the GPU itself, and PyTorch uses a pinned buffer again only after
the event that follows its copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .loader import Batch


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move the images and labels of batches to ``device``, in order; on a CUDA GPU one ahead."""
    if device.type == "cuda":
        return _prefetched(batches, device)
    return (_moved(batch, device) for batch in batches)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return replace(batch, images=batch.images.to(device), labels=batch.labels.to(device))


def _prefetched(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    waiting = None
    for batch in batches:
        with torch.cuda.stream(copies):
            moved = replace(
                batch,
                images=_sent(batch.images, device),
                labels=_sent(batch.labels, device),
                local_indices=_places(batch, device),
            )
            event = copies.record_event()
        if waiting is not None:
            yield _ready(*waiting, device)
        waiting = moved, event
    if waiting is not None:
        yield _ready(*waiting, device)


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, which may still be on its way."""
    if tensor.device.type == "cuda":
        return tensor
    with torch.cuda.device(device):  # so that the first GPU, which may be another's, is left alone
        return tensor.pin_memory().to(device, non_blocking=True)


def _places(batch: Batch, device: torch.device) -> Tensor | slice:
    if isinstance(batch.local_indices, slice):
        return batch.local_indices
    return _sent(torch.as_tensor(batch.local_indices), device)  # PyTorch would wait for an array


def _ready(batch: Batch, event: torch.cuda.Event, device: torch.device) -> Batch:
    """The batch; work that is queued from now on waits for its copy."""
    compute = torch.cuda.current_stream(device)
    compute.wait_event(event)
    for tensor in (batch.images, batch.labels, batch.local_indices):
        if isinstance(tensor, Tensor):
            tensor.record_stream(compute)  # its memory is not given away before it is used
    return batch
