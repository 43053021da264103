"""A run and its folder: which folder to use, and the records in it."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import storage
from ..data.corrections import Corrections
from ..data.folder import Dataset
from ..data.paths import absolute, object_url, shown
from ..data.tree import is_run
from ..errors import OutputError
from ..progress import say
from ..report import files
from ..report.record import CORRECTIONS, kept_epoch
from ..text import pluralize, printable
from .checkpoint import LOCK, UNFINISHED, Snapshot, read_newest
from .preparation import PreparedData
from .recipe import Recipe, load_recipe

FIRST_FILE = "environment.json"
"""The first file that a run writes. Users do not create a file with this name."""


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        folder: the run folder.
        model: the model file of the kept epoch.
        recipe: the resolved recipe.
        history: one row per epoch, as in ``history.csv``.
        metrics: metrics of the kept model on the validation split, as in ``metrics.json``. If
            ``val_split`` is 0, they are the last row of the history, and ``split`` is None.
        train_seconds: total duration of all epochs in seconds, including validation.
    """

    folder: Path
    model: Path
    recipe: Recipe
    history: tuple[dict[str, Any], ...]
    metrics: dict[str, Any]
    train_seconds: float

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) whose model was kept."""
        return int(kept_epoch(self.history)["epoch"])


class RunFolder:
    """The folder that a run writes to. docs/training.md lists its files.

    Args:
        path: the folder.
        is_named: whether the user named the folder; if so, no number is added to its name.
        is_resumed: whether a run in this folder that has not saved any state may start over.
    """

    def __init__(self, path: Path, is_named: bool = True, is_resumed: bool = False) -> None:
        self.path = path
        self._is_named = is_named
        self._is_resumed = is_resumed

    @property
    def model(self) -> Path:
        """The model file of the kept epoch; see `replaces_kept`."""
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        """The model file of the last epoch."""
        return self.path / "last.safetensors"

    @property
    def suspects(self) -> Path:
        """The file that lists the training labels that look wrong."""
        return self.path / "suspects.csv"

    @classmethod
    def open(
        cls,
        out: str | os.PathLike[str] | None,
        name: str,
        resume: bool,
        data: str | os.PathLike[str] | None = None,
    ) -> tuple[RunFolder, Snapshot | None]:
        """Return the run folder, and the saved state to resume if there is one.

        Args:
            out: the folder. By default, the first free one among ``runs/name``, ``runs/name-2``,
                ...; with ``resume``, the last one that was started on ``data``.
            name: the name under ``runs/``.
            resume: continue the run in the folder if it has a saved state.
            data: the photos, to tell apart runs with the same name.

        Raises:
            OutputError: the folder holds something that cannot be resumed.
            TrainingError: there is a saved state, but it cannot be read.
        """
        default = Path("runs") / name
        storage.refuse_unwritable(default if out is None else Path(out))
        if not resume:
            storage.refuse_used(None if out is None else Path(out))
            return cls(default if out is None else Path(out), is_named=out is not None), None
        existing: list[Path] = []
        if out is None:
            existing = list(itertools.takewhile(Path.exists, _numbered_paths(name)))
            if data is not None:
                others = existing
                existing = _runs_to_resume(others, data)
                if not existing:
                    more = f" ({others[-1]} has other photos; --out resumes it)" if others else ""
                    say(f"Nothing to resume for these photos yet{more}; starting a new run.")
                    free = next(path for path in _numbered_paths(name) if not path.exists())
                    return cls(free, is_named=False), None
        newest = existing[-1] if existing else default
        path = newest if out is None else Path(out)
        saved = read_newest(path / "state") if is_run(path) else None
        if saved is None and cls(path).is_finished():
            raise OutputError(
                f"{path} is a finished run without its state folder, so it cannot be resumed. "
                "Name another folder with --out, or remove this one"
            )
        if saved is None and cls(path)._has_lost_its_state():
            raise OutputError(
                f"{path} has a trained model but no saved state, so it cannot be resumed. Name "
                "another folder with --out, or remove this one"
            )
        if saved is None:
            if is_run(path / "fold-1"):
                raise OutputError(
                    f"{path} is a cross-validation, not a single run. To resume it, type: resnet "
                    f"train --resume {shlex.quote(str(path))}"
                )
            if not is_run(path) and not _has_only_first_files(path):
                storage.refuse_used(path)
            say(f"Nothing to resume in {path} yet; starting a new run.")
        return cls(path, is_resumed=True), saved

    def _has_lost_its_state(self) -> bool:
        """Return whether this run must have saved a state that is now missing.

        Every run has saved a state by the time it has recorded 3 epochs or 10 minutes of training.
        """
        file = self.path / "timings.csv"
        if not is_run(self.path) or not file.is_file():
            return False
        try:
            with file.open(encoding="utf-8") as lines:
                seconds = [float(row["train_seconds"]) for row in csv.DictReader(lines)]
        except (ValueError, KeyError, csv.Error):  # damaged, but it shows that there were results
            return True
        return len(seconds) >= 3 or sum(seconds) >= 600

    def recorded_recipe(self) -> Recipe | None:
        """Return the recipe that this folder's run was started with; None if there is no run."""
        return load_recipe(self.path / "recipe.yaml") if is_run(self.path) else None

    def recorded_corrections(self) -> Path | None:
        """Return the corrections that the run in this folder was started with, if any."""
        file = self.path / CORRECTIONS
        return file if is_run(self.path) and file.is_file() else None

    def claim(self) -> None:
        """Create the folder that the user named, or the first free one.

        The free one is the first of ``runs/name``, ``runs/name-2``, ... that does not exist.

        Raises:
            OutputError: the folder cannot be created.
        """
        try:
            if self._is_named:
                # Check again, because another run may have claimed the folder. A resumed run that
                # has not saved any state starts over.
                has_no_state = is_run(self.path) or _has_only_first_files(self.path)
                if not (self._is_resumed and has_no_state):
                    storage.refuse_used(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
                return
            for path in _numbered_paths(self.path.name):
                try:
                    path.mkdir(parents=True)  # fails if another run claimed it first
                except FileExistsError:
                    continue
                self.path = path
                return
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"Cannot write to {error.filename}: {error.strerror}") from error

    def is_finished(self) -> bool:
        """Return whether every file has been written; ``metrics.json`` is the last one."""
        return (self.path / "metrics.json").exists()

    def result(self, recipe: Recipe, history: Sequence[dict[str, Any]]) -> Run:
        """Return the finished run in this folder."""
        metrics = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        with (self.path / "timings.csv").open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        seconds = sum(float(row["train_seconds"]) + float(row["val_seconds"]) for row in rows)
        return Run(
            folder=self.path,
            model=self.model,
            recipe=recipe,
            history=tuple(history),
            metrics=metrics,
            train_seconds=seconds,
        )

    def extend_hint(self, data: str | os.PathLike[str], recipe: Recipe, saved: Snapshot) -> str:
        """Return why this finished run cannot continue, and the command that trains it for longer.

        The hint is empty for a fold, which must be trained as long as the other folds.

        Args:
            data: the photos.
            recipe: its epochs or steps are the wanted total; the command asks for the difference.
            saved: the last state of the run.
        """
        before = load_recipe(self.path / "recipe.yaml")
        if before.fold is not None:
            return ""
        epoch = saved.values["epoch"]
        reason = "The learning rate schedule of that run has ended."
        if before.epochs is not None and epoch < before.epochs:
            reason = f"That run stopped improving after {epoch} of {before.epochs} epochs."
        key = "steps" if recipe.steps is not None else "epochs"
        more = (getattr(recipe, key) or 0) - saved.values[key.removesuffix("s")]
        length = f"--epochs {more}" if key == "epochs" else f"--set steps={more}"
        words = [
            f"resnet train {shlex.quote(shown(data))}",
            f"--recipe {shlex.quote(str(self.path / 'recipe.yaml'))}",
            f"--weights {shlex.quote(str(self.last))}",
        ]
        if (self.path / CORRECTIONS).is_file():
            words.append(f"--corrections {shlex.quote(str(self.path / CORRECTIONS))}")
        # Reset the fields that describe the weights that this run started from.
        if before.weights_prefix is not None:
            words.append("--set weights_prefix=null")
        if before.weights_head is not None:
            words.append("--set weights_head=null")
        if before.shallow_share:
            words.append("--set shallow_share=0")
        if more > 0:
            words.append(length)
        return (
            f"{reason} To continue from its last weights, with a new schedule:\n  {' '.join(words)}"
        )

    def describe_new_split(self, prepared: PreparedData) -> str:
        """Describe how the new split differs from the recorded one, and how to keep the old one.

        Returns:
            The text; empty if no split was made, if the images changed, or if nothing differs.
        """
        split_file = self.path / "split.csv"
        if not prepared.made_split or not split_file.is_file():
            return ""
        before = {row["path"]: row["split"] for row in self.read_split()}
        now = {
            path: name for name, split in prepared.dataset.splits.items() for path in split.paths
        }
        moved = sorted(path for path in now if before.get(path) != now[path])
        if before.keys() != now.keys() or not moved:
            return ""
        verb = "is" if len(moved) == 1 else "are"
        example = f"{printable(moved[0])} (was {before[moved[0]]}, is {now[moved[0]]})"
        return (
            f"{pluralize(len(moved), 'image')} {verb} in the other split, such as {example}. The "
            "images are the same, but this version splits them differently. To resume with the "
            "split that the run started with:"
            f"\n  resnet train {shlex.quote(str(split_file))} "
            f"--recipe {shlex.quote(str(self.path / 'recipe.yaml'))} "
            f"--out {shlex.quote(str(self.path))} --resume"
        )

    def note_on_other_run(self, data: str | os.PathLike[str]) -> str:
        """Return a note if this folder is numbered because ``runs/name`` has other photos."""
        first = self.path.with_name(re.sub(r"-\d+$", "", self.path.name))
        if first == self.path or not is_run(first) or recorded_data(first) == absolute(data):
            return ""
        return f" ({first} belongs to other photos: {recorded_data(first)})"

    def write_text(self, name: str, text: str) -> None:
        """Write a text file, atomically."""
        storage.write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file, atomically."""
        storage.write_json(self.path / name, value)

    def write_rows(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write a CSV file, atomically. The keys of the first row become the header."""
        files.write_rows(self.path / name, list(rows[0]), (row.values() for row in rows))

    def write_split(self, dataset: Dataset, groups: Mapping[str, str]) -> None:
        """Write ``split.csv``: path, label and split of every image. It is a valid manifest.

        Args:
            dataset: the images.
            groups: the group of each path, written as a fourth column; empty without folds.
        """
        rows = [
            {"path": path, "label": dataset.classes[label], "split": name}
            | ({"group": groups.get(path, "")} if groups else {})
            for name, split in dataset.splits.items()
            for path, label in zip(split.paths, split.labels, strict=True)
        ]
        self.write_rows("split.csv", rows)

    def read_split(self) -> list[dict[str, str]]:
        """Return the rows of ``split.csv``."""
        file = self.path / "split.csv"
        with file.open(encoding="utf-8", errors="surrogateescape", newline="") as lines:
            rows = list(csv.DictReader(lines))
        return [{key: storage.csv_text(value) for key, value in row.items()} for row in rows]

    def write_corrections(self, corrections: Corrections, classes: Sequence[str]) -> None:
        """Write ``corrections.csv``, which `read_corrections` reads back unchanged."""
        relabeled = sorted(corrections.relabeled.items())
        rows = [(path, "relabel", classes[label]) for path, label in relabeled]
        rows += [(path, "drop", "") for path in sorted(corrections.dropped)]
        files.write_rows(self.path / CORRECTIONS, ["path", "verdict", "new_label"], rows)


def _numbered_paths(name: str) -> Iterator[Path]:
    """Yield ``runs/name``, ``runs/name-2``, ``runs/name-3``, ..."""
    yield Path("runs") / name
    for number in itertools.count(2):
        yield Path("runs") / f"{name}-{number}"


def _runs_to_resume(runs: Sequence[Path], data: str | os.PathLike[str]) -> list[Path]:
    """Return the runs that may be resumed on these photos.

    These are the runs that were started on ``data``. If there are none, they are the runs whose
    photos no longer exist, because the photos may have been moved. If there are none of those
    either, they are the folders that do not hold a run yet.
    """
    same_data = [run for run in runs if is_run(run) and recorded_data(run) == absolute(data)]
    no_run = [run for run in runs if not is_run(run)]
    data_gone = [run for run in runs if is_run(run) and not _exists(recorded_data(run))]
    return same_data or data_gone or no_run


def _exists(data: str) -> bool:
    return object_url(data) is not None or os.path.exists(data)


def _has_only_first_files(path: Path) -> bool:
    """Return whether a run wrote its first files here but was killed before writing its recipe."""
    if not path.is_dir():
        return False
    names = {item.name for item in path.iterdir() if item.name[0] != "."}
    state = path / "state"
    if state.is_dir() and all(
        item.name == LOCK or UNFINISHED.fullmatch(item.name) for item in state.iterdir()
    ):
        names = (names - {state.name}) or {FIRST_FILE}
    return FIRST_FILE in names and names <= {FIRST_FILE, "classes.json", "split.csv", CORRECTIONS}


def recorded_data(path: str | os.PathLike[str]) -> str:
    """Return the data path that the run in a folder was started with."""
    environment = json.loads((Path(path) / FIRST_FILE).read_text(encoding="utf-8"))
    return str(environment["data"])


def recorded_arguments(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    recipe: str | Path | None,
    resume: bool,
) -> tuple[Path, str | Path, str] | None:
    """Return the folder, recipe and data for resuming a run; None if there is no run to resume.

    Args:
        path: the run folder, or photos.
        out: the folder that the user named, if any.
        recipe: the recipe that the user named, which takes precedence. If it differs from the
            recorded one, restoring the state lists the differences.
        resume: whether to resume a run; if not, ``path`` names photos.

    Raises:
        OutputError: ``out`` is a different folder.
    """
    if not (resume and is_run(path)):
        return None
    if out is not None and Path(out).absolute() != Path(path).absolute():
        raise OutputError(
            f"{path} is a run, which is resumed in place, not in {out}. Remove --out, or name the "
            "photos instead of the run"
        )
    return Path(path), recipe or Path(path) / "recipe.yaml", recorded_data(path)
