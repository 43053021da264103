"""Model x data -> predictions and metrics: always the eager network in fp32. Prints nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import runtime
from ..data import folder
from ..data.cache import Pictures, file_digest
from ..data.folder import Part
from ..data.loader import Loader
from ..data.paths import SPLITS
from ..data.transforms import normalize
from ..errors import DataError
from ..models import modelfile
from . import metrics

BATCH_SIZE = 64
"""Pictures in a batch of evaluation, in training and after it, so that both give the same bits."""


def _silent(text: str) -> None:
    pass


@dataclass(frozen=True)
class Evaluation:
    """``part`` is what was evaluated, ``logits`` ``(n, classes)`` float32 belong to it, row by
    row; ``metrics`` is what ``metrics.json`` holds; ``notes`` are for the reader."""

    part: Part
    split: str
    classes: tuple[str, ...]
    logits: Tensor
    metrics: dict[str, Any]
    notes: tuple[str, ...] = ()


def predict_logits(
    model: nn.Module,
    pictures: Pictures,
    device: torch.device,
    workers: int,
    advance: Callable[[str], None] = _silent,
) -> Tensor:
    """Run a network in eval mode, fp32, over pictures; ``(n, classes)`` float32 on the CPU.

    ``advance`` is called after each batch. The network is left in the mode that it came in.

    Raises:
        PictureError: a picture cannot be read.
    """
    training = model.training
    model.eval()
    rows = []
    with torch.inference_mode():
        for batch in Loader(pictures, BATCH_SIZE, workers).evaluation():
            images = normalize(batch.images.to(device), pictures.preprocessing)
            rows.append(model(images).float().cpu())
            advance("")
    model.train(training)
    return torch.cat(rows).clone()


def evaluate(
    model_file: str | Path,
    data: str | Path,
    split: str | None = None,
    *,
    device: str = "auto",
    workers: int | None = None,
    progress: Callable[[int], Callable[[str], None]] = lambda total: _silent,
) -> Evaluation:
    """Measure a model file on a data set.

    Args:
        data: a folder or manifest, as for training; classes are matched by name.
        split: ``train``, ``val``, ``test`` or ``all``; by default test, else val, else all. Of a
            flat folder, ``train`` and ``val`` are the pictures that training took for them,
            found again by their contents.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        workers: threads that read pictures; by default one a core.
        progress: given the number of batches, gives what to call after each.

    Raises:
        ModelFileError: the file is no model file.
        DataError: there is no such split, or it has a class that the network does not know.
        PictureError: a picture cannot be read.
    """
    header = modelfile.read_header(model_file)
    listing = folder.read(data, classes=header.classes)
    part, name, notes = _choose(listing, split, header)
    advance = progress(-(-len(part) // BATCH_SIZE))
    found = evaluate_part(model_file, part, name, device=device, workers=workers, advance=advance)
    return replace(found, notes=listing.notes + notes)


def evaluate_part(
    model_file: str | Path,
    part: Part,
    split: str,
    *,
    device: str = "auto",
    workers: int | None = None,
    advance: Callable[[str], None] = _silent,
) -> Evaluation:
    """Measure a model file on the pictures of ``part``, whose labels are the network's."""
    network, header = modelfile.read(model_file)
    chosen = runtime.pick(device, "fp32").device
    workers = runtime.default_workers() if workers is None else workers
    network = network.to(chosen, memory_format=torch.channels_last)  # type: ignore[call-overload]
    pictures = Pictures(part, header.preprocessing)
    logits = predict_logits(network, pictures, chosen, workers, advance)
    measured = {"split": split, **metrics.compute(logits, pictures.labels(), header.classes)}
    return Evaluation(part, split, header.classes, logits, measured)


def _choose(
    listing: folder.DataSet, split: str | None, header: modelfile.Header
) -> tuple[Part, str, tuple[str, ...]]:
    """The part to evaluate, its name, and remarks."""
    recorded = {
        name: frozenset(part["digests"])
        for name, part in header.data.get("parts", {}).items()
        if name in ("train", "val") and part["digests"]
    }
    split = SPLITS.get(split, split) if split else None
    flat = listing.parts.get("all")
    if flat is not None and recorded and split in (None, "train", "val", "all"):
        return _choose_from_flat(flat, split, recorded)
    there = [name for name in ("test", "val", "all", "train") if name in listing.parts]
    chosen = split or there[0]
    if chosen in listing.parts:
        return listing.parts[chosen], chosen, ()
    if flat is not None:
        there += sorted(recorded)
    raise DataError(
        f"{listing.root} has no split {chosen!r}; it has {', '.join(there)}. "
        "Choose one with --split"
    )


def _choose_from_flat(
    flat: Part, split: str | None, recorded: dict[str, frozenset[str]]
) -> tuple[Part, str, tuple[str, ...]]:
    """The pictures that training took for ``split``, found again by their contents; by default
    those of validation where most of them are here, else all."""
    here = [file_digest(flat.path(i)) for i in range(len(flat))]
    wanted = recorded.get(split or "val", frozenset())
    found = [i for i, digest in enumerate(here) if digest in wanted]
    if split in ("train", "val") and not found:
        raise DataError(f"None of the pictures that training took for {split!r} is here")
    missing, others = len(wanted - set(here)), len(here) - len(found)
    if split != "all" and wanted and (split or missing <= len(wanted) / 2):
        name, notes = split or "val", []
        if missing:
            notes.append(
                f"{missing} of the {len(wanted)} pictures that training took for {name!r} are "
                "not here"
            )
        if others and not split:
            notes.append(f"{others} other pictures were left out; --split all takes them too")
        return flat.select(found), name, tuple(notes)
    seen = sum(digest in recorded.get("train", ()) for digest in here)
    warning = f"{seen} of these {len(here)} pictures were trained on: expect too good a result"
    return flat, "all", (warning,) if seen else ()


def confusions(evaluation: Evaluation) -> Sequence[tuple[str, str, int]]:
    """(truth, prediction, count) of the wrong answers, the most frequent first."""
    matrix = evaluation.metrics["confusion_matrix"]
    wrong = [
        (evaluation.classes[i], evaluation.classes[j], count)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(wrong, key=lambda item: -item[2])
