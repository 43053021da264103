"""Cross-validation: every image is predicted by a network that was not trained on it."""

from __future__ import annotations

import os
import shlex
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import runtime as machine
from .. import storage
from ..data.folder import Dataset, Split, pool_validation, read_dataset
from ..data.paths import Paths
from ..data.tree import is_run
from ..errors import ImageError, Interrupted, OutputError, RecipeError
from ..evaluation.evaluate import Evaluation, evaluate, evaluate_split
from ..evaluation.intervals import effective_count, grouped_interval
from ..evaluation.metrics import compute_metrics, confusion_counts
from ..models.weights import modelfile
from ..progress import bar, say
from ..report import files, html, plots
from .distributed import launch_command
from .initial_weights import network_name
from .loop import train
from .recipe import load_recipe
from .run import Run, RunFolder, recorded_data

FINAL = "final"
"""Name of the run folder of the final network."""


@dataclass(frozen=True)
class CrossValidation:
    """The result of a cross-validation.

    Args:
        folder: holds a run folder for each fold and for the final network, and the results.
        runs: one run per fold.
        final: the run of the final network, which was trained on all images.
        evaluation: the out-of-fold predictions of all images, sorted by path.
        folds: the fold of each image in ``evaluation``, from 1.
        summary: the content of ``folds.json``.
    """

    folder: Path
    runs: tuple[Run, ...]
    final: Run
    evaluation: Evaluation
    folds: tuple[int, ...]
    summary: dict[str, Any]


@machine.connected()  # connects torchrun's ranks
@machine.restored_threads()  # restores the caller's number of threads
def train_folds(
    data: str | os.PathLike[str],
    recipe: str | Path | None = None,
    *,
    folds: int | None = None,
    out: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    tensorboard: bool = False,
    **settings: Any,
) -> CrossValidation:
    """Cross-validate a recipe, then train the final network on all images.

    Each image belongs to one fold. The folds are stratified, keep exact and near duplicates
    together, and are f(seed, contents); see `data.folds.assign_folds`. For each fold, a network is
    trained on the other folds and predicts the images in this one; its run folder is ``fold-1``,
    ``fold-2``, ... All runs use the settings that were filled in for the first. The training and
    validation splits are pooled; a test split is left out, and the final network is evaluated on
    it.

    The final network, in ``final``, is trained on all images with the same recipe and number of
    epochs. No images are left to select its best epoch, so it keeps the last one. The folds are
    therefore judged by their last epoch too: their accuracy is that of the procedure that produces
    the final network, and no image is used both to select an epoch and to measure accuracy. The
    final network has seen ``K / (K - 1)`` times as many images as the network of each fold, so it
    is usually a little better.

    The accuracy is computed over all out-of-fold predictions together. Its interval is Wilson's,
    with copies counted as in `evaluation.intervals.grouped_interval`. It says how much the accuracy
    may vary with the choice of images. The standard deviation between folds is not a substitute:
    the folds share most of their training images, so their accuracies are not independent and give
    no unbiased estimate of the variance (Bengio and Grandvalet 2004, JMLR 5:1089). Wilson's
    interval does not cover how much the network varies with its training images, so it is a little
    too narrow for small datasets (Bates, Hastie and Tibshirani 2023,
    doi:10.1080/01621459.2023.2197686).

    Args:
        data: as in `train`. With ``resume``, it can also be the folder of a cross-validation.
        recipe: as in `train`.
        folds: number of folds, at least 2; by default 5, or the recorded number if resumed.
        out: the folder; by default ``runs/<data>-<model>-folds``. ``folds.json`` is written last.
        device: as in `train`.
        workers: as in `train`.
        resume: continue with the fold in which training stopped; finished folds do not change.
        tensorboard: as in `train`.
        settings: as in `train`; ``fold``, ``val_split`` and ``patience`` are not allowed.

    Raises:
        RecipeError: a setting cannot be combined with folds, or there are fewer than two folds.
        DataError: a class has fewer images than there are folds, not counting copies.

    It also raises the same errors as `train`.
    """
    if resume and is_cross_validation(data):
        first = RunFolder(Path(data) / "fold-1")
        _check_same_folder(data, out)
        out = data
        data = recorded_data(first.path)
        recipe = recipe or first.path / "recipe.yaml"
        recorded = first.recorded_recipe()
        assert recorded is not None
        assert recorded.fold is not None
        folds = recorded.fold[1] if folds is None else folds
    folds = 5 if folds is None else folds
    _check_settings(folds, recipe, settings)
    dataset = read_dataset(data)
    name = f"{dataset.name}-{network_name(recipe, settings)}-folds"
    path = Path("runs") / name if out is None else Path(out)
    runtime = machine.pick(device)
    if not resume:
        runtime.on_main(storage.refuse_used, path)
    say(describe_folds(dataset, folds))

    def train_one(number: int, folder: str, **changes: Any) -> Run:
        title = "final network, trained on all images" if number > folds else f"fold {number}"
        say(f"\n{title}\n")
        return train(
            data,
            recipe,
            out=path / folder,
            device=device,
            workers=workers,
            resume=resume,
            tensorboard=tensorboard,
            show_plan=number in (1, folds + 1),
            **{**settings, **changes},
        )

    runs: list[Run] = []
    try:
        for number in range(1, folds + 1):
            runs.append(train_one(number, f"fold-{number}", fold=(number, folds)))
            runtime.on_main(storage.make_output, path)  # not earlier: `train` may refuse to start
            # Reuse the recipe that the first run filled in: all folds need the same settings.
            recipe = runs[0].folder / "recipe.yaml"
            steps = runs[0].recipe.steps
            settings = {} if steps is None else {"steps": steps}  # they determine the epochs
        final = train_one(folds + 1, FINAL, fold=None, val_split=0)
    except Interrupted as error:
        command = f"{launch_command(runtime)} train --resume {shlex.quote(str(path))}"
        raise Interrupted(
            f"Stopped; everything is saved. To resume: {command}", error.exit_code
        ) from error
    return runtime.on_main(
        _finish, path, data, dataset, runs, final, device=device, workers=workers
    )


def is_cross_validation(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is the folder of a cross-validation, finished or not."""
    first = Path(path) / "fold-1"
    if not is_run(first):
        return False
    return load_recipe(first / "recipe.yaml").fold is not None


def describe_folds(dataset: Dataset, folds: int) -> str:
    """Describe how the images of each split are used, in one line.

    Args:
        dataset: the images.
        folds: the number of folds.
    """
    counts = {name: len(split) for name, split in dataset.splits.items()}
    test = counts.pop("test", 0)
    text = f"{sum(counts.values()):,} images in {folds} folds"
    if {"train", "val"} <= counts.keys():
        text += f" ({counts['train']:,} from train and {counts['val']:,} from val, pooled)"
    if test:
        text += f"; the {test:,} images in test are kept for the final network"
    return text


def pool_folds(
    dataset: Dataset, runs: Sequence[Run], *, device: str = "auto", workers: int | None = None
) -> tuple[Evaluation, tuple[int, ...], tuple[str, ...]]:
    """Evaluate the last epoch of each fold on the fold's own images.

    Args:
        dataset: all images.
        runs: one run per fold.
        device: as in `train`.
        workers: as in `train`.

    Returns:
        The predictions of all images, sorted by path; the fold of each image; its group.
    """
    pooled = pool_validation(dataset)
    root = pooled.splits["all" if "all" in pooled.splits else "train"].root
    rows: list[tuple[str, int, int, str]] = []  # path, label, fold, group
    logits = []
    views: dict[str, Any] = {}
    with bar("evaluating the folds", len(runs)) as advance:
        for number, run in enumerate(runs, 1):
            held_out = [row for row in RunFolder(run.folder).read_split() if row["split"] == "val"]
            paths = Paths(row["path"] for row in held_out)
            labels = [dataset.classes.index(row["label"]) for row in held_out]
            samples = Split(root, paths, np.array(labels, np.int32))
            last = RunFolder(run.folder).last
            found = evaluate_split(last, samples, "val", device=device, workers=workers)
            rows += [
                (row["path"], label, number, row["group"])
                for row, label in zip(held_out, labels, strict=True)
            ]
            logits.append(found.logits)
            views = found.metrics["views"]
            advance("")
    order = sorted(range(len(rows)), key=rows.__getitem__)
    samples = Split(
        root, Paths(rows[i][0] for i in order), np.array([rows[i][1] for i in order], np.int32)
    )
    evaluation = Evaluation(
        samples, "out-of-fold", dataset.classes, torch.cat(logits)[order], metrics={}
    )
    groups = tuple(rows[i][3] for i in order)
    metrics = compute_metrics(evaluation.logits, evaluation.labels, dataset.classes)
    correct = metrics["pictures"] - metrics["errors"]
    metrics["accuracy_interval"] = list(grouped_interval(correct, groups))
    metrics = {"split": "out-of-fold", "views": views, **metrics}
    return replace(evaluation, metrics=metrics), tuple(rows[i][2] for i in order), groups


def _finish(
    path: Path,
    data: str | os.PathLike[str],
    dataset: Dataset,
    runs: Sequence[Run],
    final: Run,
    *,
    device: str,
    workers: int | None,
) -> CrossValidation:
    """Evaluate the folds and the final network, and write the results.

    Everything is computed from the files of the runs, so that a resumed cross-validation writes the
    same bytes.
    """
    recipe = runs[0].recipe
    assert recipe.threads is not None
    torch.set_num_threads(recipe.threads)
    evaluation, folds, groups = pool_folds(dataset, runs, device=device, workers=workers)
    summary = summarize(evaluation, folds, groups, runs)
    evaluation = replace(
        evaluation, metrics={**evaluation.metrics, "cross_validation": summary["per_fold"]}
    )

    # The final network's own metrics say how its accuracy was estimated.
    estimate = {
        key: summary[key]
        for key in (
            "folds",
            "pictures",
            "accuracy",
            "accuracy_interval",
            "interval",
            "independent_images",
        )
    }
    final_folder = RunFolder(final.folder)
    for file in (final_folder.model, final_folder.last):
        modelfile.add_metrics(file, {"cross_validation": estimate})
    metrics = {**final.metrics, "cross_validation": estimate}
    final_folder.write_json("metrics.json", metrics)
    files.write_predictions(evaluation, path / "predictions.csv", {"fold": folds})
    plots.save_confusion_matrix(
        confusion_counts(evaluation.metrics["confusion_matrix"]),
        evaluation.classes,
        path / "confusion_matrix.png",
        f"out-of-fold: {summary['accuracy']:.2%} of {summary['pictures']} images correct",
    )
    answered_by = [RunFolder(runs[fold - 1].folder).last for fold in folds]
    html.write_page(path / "report.html", evaluation, final.model, device, answered_by=answered_by)
    # Last, because no earlier step has read the test images: some may turn out to be unreadable.
    if "test" in dataset.splits:
        try:
            tested = evaluate(final.model, Path(data), "test", device=device, workers=workers)
            keys = ("pictures", "accuracy", "accuracy_interval", "errors", "loss")
            summary["test"] = {key: tested.metrics[key] for key in keys}
        except ImageError as error:
            if recipe.on_error != "skip":
                raise
            say(f"Warning: the test split was not evaluated: {error}")
    storage.write_json(path / "folds.json", summary)
    return CrossValidation(
        folder=path,
        runs=tuple(runs),
        final=replace(final, metrics=metrics),
        evaluation=evaluation,
        folds=folds,
        summary=summary,
    )


def summarize(
    evaluation: Evaluation, folds: Sequence[int], groups: Sequence[str], runs: Sequence[Run]
) -> dict[str, Any]:
    """Return the content of ``folds.json``.

    Args:
        evaluation: the out-of-fold predictions of all images.
        folds: the fold of each image, from 1.
        groups: the group of each image.
        runs: the run of each fold.
    """
    metrics = evaluation.metrics
    correct = (evaluation.logits.argmax(1) == evaluation.labels).numpy()
    fold_of = np.array(folds)
    per_fold = []
    for number, run in enumerate(runs, 1):
        own = correct[fold_of == number]
        row = {
            "fold": number,
            "pictures": len(own),
            "errors": int((~own).sum()),
            "accuracy": float(own.mean()),
            # The result if the epoch had been selected on the same images:
            "best_epoch": run.best_epoch,
            "best_epoch_accuracy": run.metrics["accuracy"],
        }
        per_fold.append(row)
    return {
        "folds": len(runs),
        "seed": runs[0].recipe.seed,
        "epochs": len(runs[0].history),
        "pictures": metrics["pictures"],
        "groups": len(set(groups)),
        "errors": metrics["errors"],
        "accuracy": metrics["accuracy"],
        "accuracy_interval": metrics["accuracy_interval"],
        "interval": "Wilson, 95%",
        "independent_images": effective_count(groups),
        "mean_accuracy": statistics.mean(row["accuracy"] for row in per_fold),
        "per_fold": per_fold,
        "classes": list(evaluation.classes),
        "confusion_matrix": metrics["confusion_matrix"],
    }


def _check_settings(folds: int, recipe: str | Path | None, settings: dict[str, Any]) -> None:
    """Check that no setting conflicts with the folds.

    Raises:
        RecipeError: a setting conflicts, or there are fewer than two folds.
    """
    if folds < 2:
        raise RecipeError(f"--folds must be at least 2; got {folds}")
    for key in ("fold", "val_split"):
        if key in settings:
            raise RecipeError(f"--folds creates the splits itself. Remove {key}")
    if load_recipe(recipe or "finetune").with_settings(settings).patience is not None:
        raise RecipeError(
            "--folds cannot be combined with patience. The final network has no validation images, "
            "so it cannot stop early; the folds, which estimate its accuracy, must not either. Set "
            "patience to null, and set the length with --epochs"
        )


def _check_same_folder(path: str | os.PathLike[str], out: str | os.PathLike[str] | None) -> None:
    if out is not None and Path(out).absolute() != Path(path).absolute():
        raise OutputError(
            f"{path} is a cross-validation, which is resumed in place, not in {out}. Remove --out"
        )
