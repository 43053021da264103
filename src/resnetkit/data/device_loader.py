"""Batches on the device, copied while the device computes.

On a CUDA GPU the next batch is copied on a separate stream while the GPU works on the current one.
Only the GPU waits for a copy, never the CPU. PyTorch reuses a pinned buffer only after the event
that follows its copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .loader import Batch


def to_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move each batch's images and labels to ``device``, in order; prefetch one batch on CUDA."""
    if device.type == "cuda":
        return _prefetch_to_gpu(batches, device)
    return (_move(batch, device) for batch in batches)


def _move(batch: Batch, device: torch.device) -> Batch:
    return replace(batch, images=batch.images.to(device), labels=batch.labels.to(device))


def _prefetch_to_gpu(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    copy_stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    pending = None
    for batch in batches:
        with torch.cuda.stream(copy_stream):
            copied = replace(
                batch,
                images=_start_copy(batch.images, device),
                labels=_start_copy(batch.labels, device),
                local_indices=_copy_indices(batch, device),
            )
            event = copy_stream.record_event()
        if pending is not None:
            yield _wait_for_copy(*pending, device=device)
        pending = (copied, event)
    if pending is not None:
        yield _wait_for_copy(*pending, device=device)


def _start_copy(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a copy on the device; the copying may still be in progress."""
    if tensor.device.type == "cuda":
        return tensor
    with torch.cuda.device(device):  # pinning would otherwise create a context on the first GPU
        return tensor.pin_memory().to(device, non_blocking=True)


def _copy_indices(batch: Batch, device: torch.device) -> Tensor | slice:
    if isinstance(batch.local_indices, slice):
        return batch.local_indices
    # A tensor, because indexing with a NumPy array makes PyTorch wait.
    return _start_copy(torch.as_tensor(batch.local_indices), device)


def _wait_for_copy(batch: Batch, event: torch.cuda.Event, device: torch.device) -> Batch:
    """Make work queued from now on wait for the copy; return the batch."""
    compute_stream = torch.cuda.current_stream(device)
    compute_stream.wait_event(event)
    for tensor in (batch.images, batch.labels, batch.local_indices):
        if isinstance(tensor, Tensor):
            tensor.record_stream(compute_stream)  # keep the memory until the tensor has been used
    return batch
