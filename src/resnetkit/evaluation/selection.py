"""Select the images to evaluate: a split by its name, or by the digests in the model file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..data import folder
from ..data.files import file_digest
from ..data.folder import Split
from ..data.imagenet import imagenet_classes, imagenet_ids
from ..data.paths import SPLITS, shown
from ..data.remote import in_order
from ..errors import DataError


class Trained(Protocol):
    """The facts that a model file or an exported file records about its training."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names, in the order of the logits."""

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe of the run."""

    @property
    def data(self) -> dict[str, Any]:
        """The dataset, with the digests of its images."""

    @property
    def metrics(self) -> dict[str, Any]:
        """The measured metrics."""


@dataclass(frozen=True)
class SelectedSplit:
    """The images to evaluate, the name of their split, and notes for the user."""

    samples: Split
    split: str
    notes: tuple[str, ...] = ()


def read_dataset_for(header: Trained, data: str | Path) -> folder.Dataset:
    """Read a dataset with the labels of a trained model.

    Classes are matched by name. Folders named after a WordNet id of ImageNet (``n01440764``) are
    matched by the published class name of that id.

    Raises:
        DataError: see `folder.read_dataset`.
    """
    index = {name: i for i, name in enumerate(header.classes)}
    names = dict(zip(imagenet_ids(), imagenet_classes(), strict=True))
    aliases = {key: index[name] for key, name in names.items() if name in index}
    return folder.read_dataset(data, header.classes, aliases)


def select_split(dataset: folder.Dataset, split: str | None, header: Trained) -> SelectedSplit:
    """Select the split to evaluate: by default test, else val, else all.

    In a flat folder, ``train`` and ``val`` are the images that training used for them. The same
    applies to ``val`` if training took it from the ``train`` folder. A note says how many of the
    images were used for training.

    If training pooled the splits ``train`` and ``val`` (see `Recipe.fold`), so does this function.

    Raises:
        DataError: there is no such split, or training set no images aside for validation.
    """
    if header.recipe.get("fold") or header.recipe.get("val_split") == 0:
        dataset = folder.pool_validation(dataset)
    recorded = {
        name: frozenset(samples["digests"])
        for name, samples in header.data.get("parts", {}).items()
        if name in ("train", "val") and samples["digests"]
    }
    split = SPLITS.get(split.lower(), split) if split else None
    if split == "val" and header.recipe.get("val_split") == 0 and "val" not in dataset.splits:
        raise DataError(_explain_no_validation(header))
    flat = dataset.splits.get("all")
    given = dataset.splits.keys()
    val_is_from_train = recorded.get("val") and "train" in given and "val" not in given
    if val_is_from_train and split in ("val", None if "test" not in dataset.splits else "val"):
        return _select_by_digest(dataset.splits["train"], "val", recorded)
    if flat is not None and recorded and split in (None, "all", *recorded):
        return _select_by_digest(flat, split, recorded)
    available = [name for name in ("test", "val", "all", "train") if name in dataset.splits]
    name = split or available[0]
    if name in dataset.splits:
        samples = dataset.splits[name]
        trained_on = recorded.get("train", frozenset())
        digests = _file_digests(samples) if trained_on else []
        return SelectedSplit(samples, name, _training_overlap_notes(digests, trained_on))
    if flat is not None:
        available += sorted(recorded)
    raise DataError(
        f"{shown(dataset.root)} has no split {name!r}; it has {', '.join(available)}. "
        "Choose one with --split"
    )


def _explain_no_validation(header: Trained) -> str:
    """Explain why a model has no validation images, and what is known about its accuracy."""
    count = header.data.get("parts", {}).get("train", {}).get("count", 0)
    text = f"This model was trained on all {count:,} images, so none are left for validation. "
    found = header.metrics.get("cross_validation")
    if found:
        low, high = found["accuracy_interval"]
        text += (
            f"Its accuracy was estimated by {found['folds']}-fold cross-validation: "
            f"{found['accuracy']:.2%} (95% interval {low:.2%} to {high:.2%}); report.html in "
            "the cross-validation folder shows those predictions. "
        )
    return text + "Evaluate it on photos that it was not trained on"


def _file_digests(samples: Split) -> list[str]:
    return [file_digest(samples.path(i)) for i in in_order(samples)]


def _training_overlap_notes(digests: list[str], trained_on: frozenset[str]) -> tuple[str, ...]:
    overlap = sum(digest in trained_on for digest in digests)
    if not overlap:
        return ()
    return (
        f"the model was trained on {overlap} of these {len(digests)} images: expect an optimistic "
        "result",
    )


def _select_by_digest(
    samples: Split, split: str | None, recorded: dict[str, frozenset[str]]
) -> SelectedSplit:
    """Select the images that training used as ``split``, identified by content digest.

    Without a ``split``, select the validation images if at least half of them are present, else
    all images.
    """
    digests = _file_digests(samples)
    wanted = recorded.get(split or "val", frozenset())
    found = [i for i, digest in enumerate(digests) if digest in wanted]
    if split in ("train", "val") and not found:
        raise DataError(
            f"None of the images that training used for {split!r} are in {shown(samples.root)}"
        )
    missing = len(wanted - set(digests))
    others = len(digests) - len(found)
    trained_on = recorded.get("train", frozenset())
    if split != "all" and wanted and (split or missing <= len(wanted) / 2):
        name = split or "val"
        notes = []
        if missing:
            notes.append(
                f"missing: {missing} of the {len(wanted)} images that training used for {name!r}"
            )
        if others and not split:
            noun = "image" if others == 1 else "images"
            notes.append(f"skipped {others} other {noun}; --split all includes them")
        notes += _training_overlap_notes([digests[i] for i in found], trained_on)
        return SelectedSplit(samples.select(found), name, tuple(notes))
    return SelectedSplit(samples, "all", _training_overlap_notes(digests, trained_on))
