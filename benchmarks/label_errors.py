"""Flip training labels, and compare how well one run and five folds of cleanlab find them.

    python benchmarks/label_errors.py PHOTOS --shares 0 0.1 --kinds uniform --seeds 0 \
        --set image_size=48 --set epochs=8

A share of the training labels is flipped: to any other class (``uniform``), or to the class that a
network trained on the unflipped labels most often confuses with it (``confused``). The validation
split stays as it is. ``ours`` is what one run of ``resnet train`` writes: the score of every label,
and suspects.csv. ``cleanlab`` is confident learning (Northcutt et al. 2021, arXiv:1911.00068) on
out-of-fold probabilities from five more runs with the same recipe, ordered by normalized margin as
in its documentation: pip install cleanlab. ``--only ours`` leaves it out.

If n labels were flipped, recall is the share of them among the n most suspect labels.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from resnetkit import evaluate, train
from resnetkit.data.dataset import Images
from resnetkit.data.folder import read_dataset
from resnetkit.evaluation.evaluate import predict_features
from resnetkit.evaluation.label_errors import score_labels
from resnetkit.evaluation.metrics import confusion_counts, probabilities
from resnetkit.models.weights import modelfile
from resnetkit.runtime import pick
from resnetkit.training.checkpoint import read_newest
from resnetkit.training.settings import parse_settings

FOLDS = 5


class Photos:
    """Paths, labels and splits of a dataset; ``given`` are the labels that training sees."""

    def __init__(self, data: str, seed: int) -> None:
        dataset = read_dataset(data)
        self.classes = dataset.classes
        parts = [dataset.splits[name] for name in ("train", "all", "val") if name in dataset.splits]
        self.root = parts[0].root.absolute()
        self.paths = [path for part in parts for path in part.paths]
        self.labels = np.concatenate([part.labels for part in parts]).astype(np.int64)
        is_val = np.arange(len(self.labels)) >= len(parts[0])
        if len(parts) == 1:
            rng = np.random.default_rng([seed, 0])
            is_val = rng.permutation(len(self.labels)) < round(0.15 * len(self.labels))
        self.train = np.flatnonzero(~is_val)
        self.val = np.flatnonzero(is_val)
        self.given = self.labels.copy()

    def flip(self, share: float, target: np.ndarray | None, seed: int) -> None:
        """Flip a share of the training labels: to any other class, or to ``target[label]``."""
        rng = np.random.default_rng([seed, 1])
        count = round(share * len(self.train))
        chosen = rng.choice(self.train, count, replace=False)
        self.given = self.labels.copy()
        true = self.labels[chosen]
        shift = rng.integers(1, len(self.classes), count)
        self.given[chosen] = (true + shift) % len(self.classes) if target is None else target[true]

    def write(self, file: Path, splits: dict[str, np.ndarray]) -> Path:
        """Write a manifest. Its paths are absolute: nothing is copied."""
        with file.open("w", encoding="utf-8", newline="") as lines:
            rows = csv.writer(lines)
            rows.writerow(["path", "label", "split"])
            for name, indices in splits.items():
                for i in indices.tolist():
                    label = self.classes[self.given[i]]
                    rows.writerow([str(self.root / self.paths[i]), label, name])
        return file

    def index_of(self, paths: list[str]) -> np.ndarray:
        """Return the indices of paths that a manifest of `write` names."""
        index = {str(self.root / path): i for i, path in enumerate(self.paths)}
        return np.array([index[path] for path in paths], np.int64)


def run_ours(photos: Photos, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train once; return the score of each training label, and what the run reported."""
    file = photos.write(folder / "all.csv", {"train": photos.train, "val": photos.val})
    started = time.perf_counter()
    run = train(file, out=folder / "ours", show_plan=False, **settings)
    seconds = time.perf_counter() - started
    split = read_dataset(file).splits["train"]
    with (run.folder / "suspects.csv").open(encoding="utf-8", newline="") as lines:
        suspects = list(csv.DictReader(lines))

    started = time.perf_counter()
    model, header = modelfile.read(run.model)
    images = Images(split, header.preprocessing)
    runtime = pick("cpu", run.recipe.precision)
    features, logits = predict_features(
        model, images, runtime.device, 1, precision=runtime.precision
    )
    state = read_newest(run.folder / "state")
    assert state is not None
    margins = (state.tensors["margins.total"] / state.tensors["margins.count"]).numpy()
    found = score_labels(split.labels, logits.numpy(), features.numpy(), margins)
    return {
        "indices": photos.index_of(list(split.paths)),
        "scores": found.scores,
        "suspects": photos.index_of([row["path"] for row in suspects]),
        "suggested": [photos.classes.index(row["suggested"]) for row in suspects],
        "accuracy": run.metrics["accuracy"],
        "train_seconds": run.train_seconds,
        "seconds": seconds,
    }


def run_cleanlab(photos: Photos, folder: Path, settings: dict[str, Any], seed: int) -> np.ndarray:
    """Train five times; return the order of the training images, most suspect first."""
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise SystemExit("cleanlab is missing: pip install cleanlab, or add --only ours") from error
    folds = np.array_split(np.random.default_rng([seed, 2]).permutation(photos.train), FOLDS)
    out_of_fold = np.zeros((len(photos.labels), len(photos.classes)))
    for number, held_out in enumerate(folds):
        rest = np.setdiff1d(photos.train, held_out)
        splits = {"train": rest, "val": photos.val, "test": held_out}
        file = photos.write(folder / f"fold-{number}.csv", splits)
        run = train(file, out=folder / f"fold-{number}", show_plan=False, **settings)
        found = evaluate(run.model, file, "test")
        out_of_fold[photos.index_of(list(found.samples.paths))] = probabilities(found.logits)
    labels = photos.given[photos.train]
    shares = out_of_fold[photos.train]
    issues = find_label_issues(
        labels, shares, return_indices_ranked_by="normalized_margin", n_jobs=1
    )
    print(f"      cleanlab flags {len(issues)} ({len(issues) / len(labels):.2%})", flush=True)
    quality = get_label_quality_scores(labels, shares, method="normalized_margin")
    # cleanlab's issues in their order, then the rest by quality, so that the order fits any budget.
    rest = [i for i in np.argsort(quality, kind="stable") if i not in set(issues.tolist())]
    return photos.train[np.concatenate([issues, np.array(rest, np.int64)])]


def confusion_targets(photos: Photos, folder: Path, settings: dict[str, Any]) -> np.ndarray:
    """Return the class that a network trained on true labels most often confuses with each."""
    photos.given = photos.labels.copy()
    file = photos.write(folder / "true.csv", {"train": photos.train, "val": photos.val})
    run = train(file, out=folder / "true", show_plan=False, **settings)
    found = evaluate(run.model, file, "val")
    shares = probabilities(found.logits).numpy()  # finer than counts, which are often all zero
    counts = confusion_counts(found.metrics["confusion_matrix"]).astype(float)
    for label in range(len(photos.classes)):
        counts[label] += shares[found.labels.numpy() == label].mean(0)
    np.fill_diagonal(counts, -1)
    return counts.argmax(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.05, 0.1, 0.2])
    parser.add_argument("--kinds", nargs="+", default=["uniform", "confused"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", choices=["ours"])
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments = parser.parse_args()
    for seed in arguments.seeds:
        settings = {"seed": seed, **parse_settings(arguments.set)}
        photos = Photos(arguments.photos, seed)
        with tempfile.TemporaryDirectory() as name:
            targets = None
            if "confused" in arguments.kinds and any(arguments.shares):
                targets = confusion_targets(photos, Path(name), settings)
            for share in arguments.shares:
                for kind in arguments.kinds if share else arguments.kinds[:1]:
                    photos.flip(share, targets if kind == "confused" else None, seed)
                    with tempfile.TemporaryDirectory(dir=name) as folder:
                        compare(photos, Path(folder), settings, seed, arguments.only, kind, share)


def compare(
    photos: Photos,
    folder: Path,
    settings: dict[str, Any],
    seed: int,
    only: str | None,
    kind: str,
    share: float,
) -> None:
    wrong = photos.given != photos.labels
    budget = int(wrong.sum())
    ours = run_ours(photos, folder, settings)
    print(f"{kind} {share:.0%}, seed {seed}: {budget} of {len(photos.train)} labels flipped; "
          f"validation accuracy {ours['accuracy']:.2%}")  # fmt: skip
    overhead = ours["seconds"] - ours["train_seconds"]
    print(f"      {ours['train_seconds']:.0f} s of training, {overhead:.0f} s before and after")
    suspects = ours["suspects"]
    flagged = f"suspects.csv has {len(suspects)} ({len(suspects) / len(photos.train):.2%})"
    if budget and len(suspects):
        hits = wrong[suspects]
        named = np.array(ours["suggested"])[hits] == photos.labels[suspects[hits]]
        flagged += f", {hits.mean():.1%} of them flipped: {hits.sum() / budget:.1%} of all; "
        flagged += f"the true class is suggested for {named.mean():.1%}"
    print(f"      {flagged}", flush=True)
    if not budget:
        return
    orders = {"ours": ours["indices"][np.argsort(-ours["scores"], kind="stable")]}
    if only is None:
        orders["cleanlab"] = run_cleanlab(photos, folder, settings, seed)
    for name, order in orders.items():
        recall = wrong[order[:budget]].mean()
        precision = wrong[order[:50]].mean()
        print(f"      {name:9} recall {recall:.1%}  precision of the first 50 {precision:.1%}",
              flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
