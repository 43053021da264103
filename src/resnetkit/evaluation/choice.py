"""Which pictures are evaluated: a split by its name, or found again by what its files hold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..data import folder
from ..data.files import file_digest
from ..data.folder import Split
from ..data.paths import SPLITS
from ..errors import DataError
from ..models.weights import imagenet_classes, imagenet_ids
from ..models.weights.modelfile import Header


@dataclass(frozen=True)
class Choice:
    """``part`` is to be evaluated, ``split`` its name; ``notes`` are for the reader."""

    samples: Split
    split: str
    notes: tuple[str, ...] = ()


def read_for(header: Header, data: str | Path) -> folder.Dataset:
    """A data set as a trained network sees it: classes are matched by name; folders that are called
    by the WordNet ids of ImageNet (``n01440764``), by the published names of these.

    Raises:
        DataError: as `folder.read`.
    """
    index = {name: i for i, name in enumerate(header.classes)}
    names = dict(zip(imagenet_ids(), imagenet_classes(), strict=True))
    aliases = {key: index[name] for key, name in names.items() if name in index}
    return folder.read_dataset(data, header.classes, aliases)


def choose(dataset: folder.Dataset, split: str | None, header: Header) -> Choice:
    """The part to evaluate: by default test, else val, else all. Of a flat folder, ``train`` and
    ``val`` are the pictures that training took for them.

    A note says where the network was trained on pictures of the part.

    Raises:
        DataError: there is no such split.
    """
    recorded = {
        name: frozenset(samples["digests"])
        for name, samples in header.data.get("parts", {}).items()
        if name in ("train", "val") and samples["digests"]
    }
    split = SPLITS.get(split.lower(), split) if split else None
    flat = dataset.splits.get("all")
    made_of_train = recorded.get("val") and not {"val", "all"} & dataset.splits.keys()
    if made_of_train and split in ("val", None if "test" not in dataset.splits else "val"):
        return _choose_from_flat(dataset.splits["train"], "val", recorded)
    if flat is not None and recorded and split in (None, "train", "val", "all"):
        return _choose_from_flat(flat, split, recorded)
    there = [name for name in ("test", "val", "all", "train") if name in dataset.splits]
    chosen = split or there[0]
    if chosen in dataset.splits:
        samples, trained_on = dataset.splits[chosen], recorded.get("train", frozenset())
        return Choice(samples, chosen, _seen(_digests(samples) if trained_on else [], trained_on))
    if flat is not None:
        there += sorted(recorded)
    raise DataError(
        f"{dataset.root} has no split {chosen!r}; it has {', '.join(there)}. "
        "Choose one with --split"
    )


def _digests(samples: Split) -> list[str]:
    return [file_digest(samples.path(i)) for i in range(len(samples))]


def _seen(here: list[str], trained_on: frozenset[str]) -> tuple[str, ...]:
    seen = sum(digest in trained_on for digest in here)
    if not seen:
        return ()
    return (f"{seen} of these {len(here)} pictures were trained on: expect too good a result",)


def _choose_from_flat(
    flat: Split, split: str | None, recorded: dict[str, frozenset[str]]
) -> Choice:
    """The pictures that training took for ``split``, found again by their contents; by default
    those of validation where most of them are here, else all."""
    here = _digests(flat)
    wanted = recorded.get(split or "val", frozenset())
    found = [i for i, digest in enumerate(here) if digest in wanted]
    if split in ("train", "val") and not found:
        raise DataError(f"None of the pictures that training took for {split!r} is here")
    missing, others = len(wanted - set(here)), len(here) - len(found)
    trained_on = recorded.get("train", frozenset())
    if split != "all" and wanted and (split or missing <= len(wanted) / 2):
        name, notes = split or "val", []
        if missing:
            notes.append(
                f"{missing} of the {len(wanted)} pictures that training took for {name!r} are "
                "not here"
            )
        if others and not split:
            notes.append(f"{others} other pictures were left out; --split all takes them too")
        notes += _seen([here[i] for i in found], trained_on)
        return Choice(flat.select(found), name, tuple(notes))
    return Choice(flat, "all", _seen(here, trained_on))
