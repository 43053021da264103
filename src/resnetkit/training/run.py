"""The folder of a run: claimed once, filled while it goes, complete at the end."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import storage
from ..data.folder import Dataset
from ..errors import OutputError
from ..evaluation.evaluate import evaluate_split
from ..evaluation.metrics import confusion_counts
from ..models.weights import modelfile
from ..models.weights.modelfile import Header
from ..progress import printable, say
from ..report import files, html, plots, record
from ..runtime import environment
from .checkpoint import Snapshot, read
from .inputs import draw_inputs
from .preparation import Prepared
from .recipe import Recipe, load
from .session import Session
from .start import to_share

FIRST = "environment.json"  # what a run writes first; no person makes a file of this name


@dataclass(frozen=True)
class Run:
    """What training leaves: its folder, the best model's file, the resolved recipe, a row for each
    epoch, the metrics of the best model on the validation part, and the seconds of all epochs."""

    folder: Path
    model: Path
    recipe: Recipe
    history: tuple[dict[str, Any], ...]
    metrics: dict[str, Any]
    train_seconds: float

    @property
    def best_epoch(self) -> int:
        """The epoch (from 1) whose model was kept."""
        best = max(self.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
        return int(best["epoch"])


class RunFolder:
    """Where a run writes. What each file holds is listed in the README."""

    def __init__(self, path: Path, named: bool = True, resumed: bool = False) -> None:
        self.path, self._named, self._resumed = path, named, resumed

    @property
    def model(self) -> Path:
        """The model of the best epoch."""
        return self.path / "model.safetensors"

    @property
    def last(self) -> Path:
        """The model of the last epoch."""
        return self.path / "last.safetensors"

    @classmethod
    def open(
        cls,
        out: str | os.PathLike[str] | None,
        name: str,
        resume: bool,
        data: str | os.PathLike[str] | None = None,
    ) -> tuple[RunFolder, Snapshot | None]:
        """The folder to write to, and the state to go on from, if there is one.

        Args:
            out: the folder; by default ``runs/name``, ``runs/name-2``, ...: the first free one, or
                with ``resume`` the last that was begun with ``data``.

        Raises:
            OutputError: the folder holds something that is not to be resumed.
            TrainingError: there is a saved state, and it cannot be read.
        """
        storage.refuse_unwritable(Path("runs") / name if out is None else Path(out))
        taken = list(itertools.takewhile(Path.exists, _numbered(name))) if out is None else []
        if not resume:
            storage.refuse_used(None if out is None else Path(out))
            return cls(Path("runs") / name if out is None else Path(out), out is not None), None
        if out is None and data is not None:
            others, taken = taken, _begun_with(taken, data)
            if not taken:
                more = f" ({others[-1]} has others; --out resumes it anyway)" if others else ""
                say(f"There is nothing to resume of these photos yet{more}; beginning.")
                free = next(path for path in _numbered(name) if not path.exists())
                return cls(free, named=False), None
        path = Path(out) if out is not None else taken[-1] if taken else Path("runs") / name
        saved = read(path / "state") if is_run(path) else None
        if saved is None and cls(path).is_finished():
            raise OutputError(
                f"{path} is a finished run, and its folder state is gone: nothing to go on from. "
                "Name another folder with --out, or remove this one"
            )
        if saved is None:
            if not is_run(path) and not _stopped_at_once(path):
                storage.refuse_used(path)
            say(f"There is nothing to resume in {path} yet; beginning.")
        return cls(path, resumed=True), saved

    def recorded_recipe(self) -> Recipe | None:
        """What the run in this folder was begun with; None where there is none yet."""
        return load(self.path / "recipe.yaml") if is_run(self.path) else None

    def claim(self) -> None:
        """Make the folder; of ``runs/name``, ``runs/name-2``, ... the first that is free.

        Raises:
            OutputError: it cannot be made.
        """
        try:
            if self._named:
                # Looked at again: another run may have been quicker. One to be resumed that saved
                # nothing yet is begun anew.
                unsaved = is_run(self.path) or _stopped_at_once(self.path)
                if not (self._resumed and unsaved):
                    storage.refuse_used(self.path)
                self.path.mkdir(parents=True, exist_ok=True)
                return
            for path in _numbered(self.path.name):
                try:
                    path.mkdir(parents=True)  # fails where another run was first
                except FileExistsError:
                    continue
                self.path = path
                return
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(f"cannot write to {error.filename}: {error.strerror}") from error

    def is_finished(self) -> bool:
        """Whether everything is written; ``metrics.json`` comes last."""
        return (self.path / "metrics.json").exists()

    def result(self, recipe: Recipe, history: Sequence[dict[str, Any]]) -> Run:
        """What a finished run hands back."""
        metrics = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        with (self.path / "timings.csv").open(encoding="utf-8") as lines:
            rows = list(csv.DictReader(lines))
        seconds = sum(float(row["train_seconds"]) + float(row["val_seconds"]) for row in rows)
        return Run(self.path, self.model, recipe, tuple(history), metrics, seconds)

    def longer(self, data: str | os.PathLike[str], recipe: Recipe) -> str:
        """What to type for the epochs or steps of ``recipe`` that this run, which is finished, did
        not have."""
        before = load(self.path / "recipe.yaml")
        key = "steps" if recipe.steps is not None else "epochs"
        more = (getattr(recipe, key) or 0) - (getattr(before, key) or 0)
        length = f"--epochs {more}" if key == "epochs" else f"--set steps={more}"
        files = [shlex.quote(str(self.path / "recipe.yaml")), shlex.quote(str(self.last))]
        return (
            f"resnet train {shlex.quote(str(data))} --recipe {files[0]} --weights {files[1]} "
            f"{length if more > 0 else ''}"
        ).rstrip()

    def moved(self, prepared: Prepared) -> str:
        """In words, how the split that is made now differs from that of this run, although the
        images are the same, and what to type to go on with the run's own; empty if that is not
        so."""
        file = self.path / "split.csv"
        if not prepared.made_split or not file.is_file():
            return ""
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines))
        before = {storage.csv_text(row["path"]): row["split"] for row in rows}
        now = {path: name for name, split in prepared.data.splits.items() for path in split.paths}
        other = sorted(path for path in now if before.get(path) != now[path])
        if before.keys() != now.keys() or not other:
            return ""
        images = "1 image is" if len(other) == 1 else f"{len(other):,} images are"
        example = f"{printable(other[0])} (was {before[other[0]]}, is {now[other[0]]})"
        name, recipe = (shlex.quote(str(self.path / name)) for name in (file.name, "recipe.yaml"))
        return (
            f"{images} on the other side of it, such as {example}. The same images are there: this "
            "version divides them in another way. To go on with the split that the run began with:"
            f"\n  resnet train {name} --recipe {recipe} "
            f"--out {shlex.quote(str(self.path))} --resume"
        )

    def whose_is_first(self, data: str | os.PathLike[str]) -> str:
        """In words, that the first folder of this name belongs to other photos."""
        first = self.path.with_name(re.sub(r"-\d+$", "", self.path.name))
        if first == self.path or not is_run(first) or recorded_data(first) == _absolute(data):
            return ""
        return f" ({first} belongs to other photos: {recorded_data(first)})"

    def write_text(self, name: str, text: str) -> None:
        storage.write_text(self.path / name, text)

    def write_json(self, name: str, value: Any) -> None:
        storage.write_json(self.path / name, value)

    def write_rows(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """A CSV file of ``rows``, whole at any time."""
        files.write_rows(self.path / name, list(rows[0]), (row.values() for row in rows))

    def write_split(self, data: Dataset) -> None:
        """``split.csv``: path, label and split of every picture; a manifest that can be read."""
        rows = [
            {"path": path, "label": data.classes[label], "split": name}
            for name, split in data.splits.items()
            for path, label in zip(split.paths, split.labels, strict=True)
        ]
        self.write_rows("split.csv", rows)


def _numbered(name: str) -> Iterator[Path]:
    """runs/name, runs/name-2, runs/name-3, ..."""
    yield Path("runs") / name
    for number in itertools.count(2):
        yield Path("runs") / f"{name}-{number}"


def _absolute(data: str | os.PathLike[str]) -> str:
    return str(Path(data).absolute())


def _begun_with(runs: Sequence[Path], data: str | os.PathLike[str]) -> list[Path]:
    """Which of some runs to resume with ``data``: those that were begun with it; else those whose
    photos lie there no longer, as these may be theirs, moved."""
    fitting = [run for run in runs if is_run(run) and recorded_data(run) == _absolute(data)]
    unsaved = [run for run in runs if not is_run(run)]
    moved = [run for run in runs if is_run(run) and not os.path.exists(recorded_data(run))]
    return fitting or moved or unsaved


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether this is the folder of a run, finished or not."""
    return record.is_run_folder(Path(path))


def _stopped_at_once(path: Path) -> bool:
    """Whether a run wrote its first file there, and was killed before the second."""
    return path.is_dir() and [p.name for p in path.iterdir() if p.name[0] != "."] == [FIRST]


def recorded_data(path: str | os.PathLike[str]) -> str:
    """The data that the run in this folder was begun with."""
    environment = json.loads((Path(path) / FIRST).read_text(encoding="utf-8"))
    return str(environment["data"])


def begun_with(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None,
    recipe: str | Path | None,
) -> tuple[Path, str | Path, str]:
    """Folder, recipe and data of the run in ``path``, which is to be resumed. Where a ``recipe`` is
    given, it stays: what differs from the run's own is listed when the state is read.

    Raises:
        OutputError: another folder was asked for.
    """
    if out is not None and Path(out).absolute() != Path(path).absolute():
        raise OutputError(
            f"{path} is a run, and is resumed where it lies, not in {out}. Leave out --out, or "
            "name the photos in place of the run"
        )
    return Path(path), recipe or Path(path) / "recipe.yaml", recorded_data(path)


def write_beginning(run: RunFolder, session: Session, data: str | os.PathLike[str]) -> RunFolder:
    """Claim the folder, and write what is known before the first step: recipe, classes, split,
    environment, and the inputs as the network sees them.

    Returns:
        The folder that was claimed; its number may differ if another run was quicker.

    Raises:
        OutputError: it cannot be made.
    """
    prepared = session.prepared
    run.claim()
    machine = environment(session.runtime.device)
    run.write_json(FIRST, {"data": str(Path(data).absolute()), **machine})
    run.write_text("recipe.yaml", session.recipe.to_yaml())
    run.write_json("classes.json", list(prepared.data.classes))
    if prepared.made_split:
        run.write_split(prepared.data)
    draw_inputs(run.path, prepared, session.recipe)
    return run


def write_epoch(run: RunFolder, session: Session, row: dict[str, Any], is_best: bool) -> None:
    """Write the history of the run so far, and the model if this epoch is the best.

    Args:
        row: the epoch's row of the history.
    """
    state = session.state
    if is_best:
        modelfile.write(run.model, state.evaluated.state_dict(), make_header(session, row))
    run.write_rows("history.csv", state.history)
    run.write_rows("timings.csv", state.timings)


def make_header(session: Session, row: dict[str, Any]) -> Header:
    """Return the header of the model file after the epoch of one row of the history."""
    recipe = session.recipe
    prepared = session.prepared
    assert recipe.model is not None
    return Header(
        architecture=recipe.model,
        options=session.model_options,
        classes=prepared.data.classes,
        preprocessing=recipe.preprocessing(),
        metrics={key: row[key] for key in ("epoch", "val_accuracy", "val_loss")},
        recipe=to_share(recipe),
        data={
            "name": prepared.data.name,
            "parts": {
                name: {"count": len(digests), "digests": sorted(digests)}
                for name, digests in prepared.digests.items()
            },
        },
    )


def epoch_line(row: dict[str, Any], timing: dict[str, Any], epochs: int) -> str:
    return (
        f"epoch {row['epoch']:>{len(str(epochs))}}/{epochs}  {row['image_size']:>3} px  "
        f"loss {row['train_loss']:.3f}  val loss {row['val_loss']:.3f}  "
        f"val accuracy {row['val_accuracy']:7.2%}  "
        f"{timing['images_per_second']:5.0f} img/s  "
        f"{timing['train_seconds'] + timing['val_seconds']:5.1f} s"
    )


def finish(run: RunFolder, session: Session, device: str) -> Run:
    """Write the last model, and the evidence on the best one, measured from its file: figures,
    report and metrics."""
    state = session.state
    recipe = session.recipe
    header = make_header(session, state.history[-1])
    modelfile.write(run.last, state.evaluated.state_dict(), header)
    split = session.prepared.val.split
    found = evaluate_split(run.model, split, "val", device=device, workers=session.workers)
    title = f"{run.path.name}: {recipe.model}, recipe {recipe.name}"
    plots.save_curves(state.history, run.path / "curves.png", title)
    plots.save_confusion_matrix(
        confusion_counts(found.metrics["confusion_matrix"]),
        found.classes,
        run.path / "confusion_matrix.png",
        f"val: {found.metrics['accuracy']:.2%} of {found.metrics['pictures']} pictures right",
    )
    html.write_page(run.path / "report.html", found, run.model, device)
    run.write_json("metrics.json", found.metrics)  # last: its presence says "finished"
    return run.result(recipe, state.history)
