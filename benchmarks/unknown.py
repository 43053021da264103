"""Leave out each class in turn, and compare measures that tell its photos from known ones.

    python benchmarks/unknown.py train PHOTOS FOLDER
    python benchmarks/unknown.py compare FOLDER
    python benchmarks/unknown.py coverage FOLDER
    python benchmarks/unknown.py seconds MODEL PHOTO

PHOTOS holds ``<class>/`` or ``<split>/<class>/``. ``train`` shuffles each class and splits it into
60% for training, 15% for validation and 25% for testing. It trains a network on all classes, and
one for each left-out class (recipe ``finetune``, the starter weights, 64 px, 8 epochs), and stores
logits and features in FOLDER. Run it again to continue after a stop.

``compare`` fits every candidate on training and validation images, and prints the area under the
ROC curve of test photos (known) against all photos of the left-out class (unknown), and the shares
called unknown at 5% false alarms. ``coverage`` splits the held-out photos of the network with all
classes 100 times into one half for calibration and one for testing. It compares coverage and false
alarms with their theoretical distributions, and compares the sizes of conformal sets. ``seconds``
measures the time of a prediction with and without both requests.
"""

from __future__ import annotations

import csv
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from scipy.special import log_softmax, logsumexp, softmax
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from resnetkit import load, train
from resnetkit.evaluation import conformal, strangeness
from resnetkit.evaluation.strangeness import FeatureModel, balanced_indices, share_less_strange
from resnetkit.randomness import derive

SETTINGS = {"weights": "Starter_Weights.TINY_IMAGENET", "image_size": 64, "epochs": 8}
SHARES = {"train": 0.6, "val": 0.15, "test": 0.25}


def list_photos(photos: Path) -> dict[str, list[Path]]:
    """Return the photos of each class, from all splits."""
    folders = [path for path in photos.iterdir() if path.is_dir()]
    if not any(path.suffix for path in folders[0].iterdir()):  # splits
        folders = [path for folder in folders for path in folder.iterdir()]
    found: dict[str, list[Path]] = {}
    for folder in sorted(folders):
        found.setdefault(folder.name, []).extend(sorted(folder.iterdir()))
    return dict(sorted(found.items()))


def split_class(paths: list[Path], name: str) -> dict[str, list[Path]]:
    order = np.random.default_rng(derive("unknown", name)).permutation(len(paths))
    first = round(SHARES["train"] * len(paths))
    second = first + round(SHARES["val"] * len(paths))
    parts = np.split(order, [first, second])
    return {split: [paths[i] for i in part] for split, part in zip(SHARES, parts, strict=True)}


def train_without(photos: Path, left_out: str, folder: Path) -> None:
    """Train without a class; store logits, features and labels of all photos by split."""
    classes = list_photos(photos)
    splits = {name: split_class(paths, name) for name, paths in classes.items()}
    known = [name for name in classes if name != left_out]
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / f"{left_out or 'none'}.csv"
    with manifest.open("w", newline="") as lines:
        rows = csv.writer(lines)
        rows.writerow(["path", "label", "split"])
        for name in known:
            for split in ("train", "val"):
                rows.writerows([path.absolute(), name, split] for path in splits[name][split])
    run_folder = folder / f"run-{left_out or 'none'}"
    run = train(
        manifest,
        "finetune",
        out=run_folder,
        resume=run_folder.exists(),
        show_plan=False,
        **SETTINGS,
    )
    predictor = load(run.model)
    stored: dict[str, np.ndarray] = {}
    head = predictor.model.fc
    for split in (*SHARES, "unknown"):
        if split == "unknown":
            paths = classes.get(left_out, [])
            labels = [-1] * len(paths)
        else:
            paths = [path for name in known for path in splits[name][split]]
            labels = [known.index(name) for name in known for _ in splits[name][split]]
        answers = predictor.stream(paths, features=True)
        rows_ = [answer.features for answer in answers if answer.features is not None]
        features = np.array(rows_ or np.empty((0, head.in_features)), np.float32)
        with torch.inference_mode():
            logits = head(torch.from_numpy(features)).numpy()
        stored |= {f"{split}_features": features, f"{split}_logits": logits}
        stored[f"{split}_labels"] = np.array(labels)
    stored["weight"] = head.weight.detach().numpy()
    stored["bias"] = head.bias.detach().numpy()
    accuracy = (stored["test_logits"].argmax(1) == stored["test_labels"]).mean()
    print(f"without {left_out or 'nothing'}: test accuracy {accuracy:.3f}", flush=True)
    np.savez(folder / f"{left_out or 'none'}.npz", **stored)


def mahalanobis(features: np.ndarray, means: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Return the squared distances to each mean, ``(n, means)``."""
    offsets = features[:, None] - means
    return np.einsum("nkc,cd,nkd->nk", offsets, precision, offsets)


def fit(features: np.ndarray, logits: np.ndarray, labels: np.ndarray, count: int) -> FeatureModel:
    shipped = strangeness.DIRECTIONS
    strangeness.DIRECTIONS = count
    model = FeatureModel.fit(features, logits, labels)
    strangeness.DIRECTIONS = shipped
    return model


class Candidates:
    """All measures that were tried, fitted to the training images of a network."""

    def __init__(self, stored: dict[str, np.ndarray]) -> None:
        labels = stored["train_labels"]
        chosen = balanced_indices(labels, labels.max() + 1, seed=0)
        self.labels = labels[chosen]
        self.train = stored["train_features"][chosen].astype(float)
        self.logits = stored["train_logits"][chosen].astype(float)
        self.weight = stored["weight"].astype(float)
        self.bias = stored["bias"].astype(float)
        self.means = np.stack([self.train[self.labels == k].mean(0) for k in np.unique(labels)])
        residuals = self.train - self.means[self.labels]
        self.precision = np.linalg.inv(LedoitWolf(assume_centered=True).fit(residuals).covariance_)
        self.overall = np.linalg.inv(LedoitWolf().fit(self.train).covariance_)
        self.models = {n: fit(self.train, self.logits, self.labels, n) for n in (0, 8, 16, 32, 64)}
        origin = -np.linalg.pinv(self.weight) @ self.bias  # ViM, arXiv:2203.10807
        moved = self.train - origin
        vectors = np.linalg.eigh(moved.T @ moved)[1]
        self.residual = (origin, vectors[:, : -self.train.shape[1] // 2])
        lengths = self._residual_length(self.train)
        self.alpha = self.logits.max(1).mean() / lengths.mean()

    def _residual_length(self, features: np.ndarray) -> np.ndarray:
        origin, vectors = self.residual
        return np.linalg.norm((features - origin) @ vectors, axis=1)

    def scores(self, features: np.ndarray, logits: np.ndarray) -> dict[str, np.ndarray]:
        """Return the strangeness of images by each measure, ``(n,)``: higher is stranger."""
        features, logits = features.astype(float), logits.astype(float)
        shares = softmax(logits, axis=1)
        distances = mahalanobis(features, self.means, self.precision).min(1)
        background = mahalanobis(features, self.train.mean(0)[None], self.overall)[:, 0]
        near = np.sort(unit(features) @ unit(self.train).T, axis=1)
        found = {
            "largest probability (MSP)": -shares.max(1),
            "largest logit": -logits.max(1),
            "energy": -logsumexp(logits, axis=1),
            "entropy": stats.entropy(shares, axis=1),
            "Mahalanobis, full covariance": distances,
            "relative Mahalanobis": distances - background,
            "nearest neighbor, cosine": -near[:, -1],
            "5 nearest neighbors, cosine": -near[:, -5:].mean(1),
            "nearest class mean, cosine": -(unit(features) @ unit(self.means).T).max(1),
            "ViM": self.alpha * self._residual_length(features) - logsumexp(logits, axis=1),
        }
        for count, model in self.models.items():
            both = model.strangeness(features, logits)
            found[f"distance, {count} directions"] = model.distances(features)
            found[f"distance, {count} directions, and energy"] = both
        return found


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


SHIPPED = "distance, 32 directions, and energy"

MIXED = (
    ("energy", "relative Mahalanobis"),
    ("energy", "distance, 32 directions"),
    ("distance, 32 directions", "5 nearest neighbors, cosine"),
)


def runs(folder: Path) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    for file in sorted(folder.glob("*.npz")):
        if file.stem != "none":
            yield file.stem, dict(np.load(file))


def compare(folder: Path) -> None:
    rows: dict[str, list[tuple[float, float, float]]] = {}
    left_out = []
    accuracies = []
    for name, stored in runs(folder):
        left_out.append(name)
        accuracies.append((stored["test_logits"].argmax(1) == stored["test_labels"]).mean())
        candidates = Candidates(stored)
        found = {
            split: candidates.scores(stored[f"{split}_features"], stored[f"{split}_logits"])
            for split in ("val", "test", "unknown")
        }
        for pair in MIXED:
            for split in ("test", "unknown", "val"):
                ranks = [np.searchsorted(np.sort(found["val"][n]), found[split][n]) for n in pair]
                found[split]["mean rank of " + " and ".join(pair)] = np.mean(ranks, axis=0)
        for measure in found["val"]:
            val, test, unknown = (found[s][measure] for s in ("val", "test", "unknown"))
            truth = np.repeat([0, 1], [len(test), len(unknown)])
            area = roc_auc_score(truth, np.concatenate([test, unknown]))
            limit = np.sort(val)[math.ceil((len(val) + 1) * 0.95) - 1]
            row = (area, (test > limit).mean(), (unknown > limit).mean())
            rows.setdefault(measure, []).append(row)
    print(f"left out in turn: {', '.join(left_out)}")
    print(f"test accuracy on known classes: {min(accuracies):.1%} to {max(accuracies):.1%}")
    base = np.mean([row[0] for row in rows["largest probability (MSP)"]])
    print("| measure | mean AUROC | above MSP | lowest | known called unknown | unknown found |")
    print("|---|---|---|---|---|---|")
    for measure, found_rows in sorted(rows.items(), key=lambda row: -np.mean(row[1], axis=0)[0]):
        area, alarms, hits = np.mean(found_rows, axis=0)
        lowest = min(row[0] for row in found_rows)
        print(
            f"| {measure} | {area:.3f} | {area - base:+.3f} | {lowest:.3f} | {alarms:.1%} | "
            f"{hits:.1%} |"
        )
    shipped = [f"{row[0]:.3f}" for row in rows[SHIPPED]]
    plain = [f"{row[0]:.3f}" for row in rows["largest probability (MSP)"]]
    print(f"{SHIPPED}, by class:", ", ".join(shipped))
    print("MSP, by class:", ", ".join(plain))


def adaptive_scores(logits: np.ndarray, penalty: float = 0.0) -> np.ndarray:
    """Return the scores of APS (arXiv:2006.02544), or of RAPS with a penalty (arXiv:2009.14193)."""
    shares = softmax(logits, axis=1)
    order = np.argsort(-shares, axis=1)
    sums = np.take_along_axis(shares, order, 1).cumsum(1)
    sums += penalty * np.arange(shares.shape[1])
    scores = np.empty_like(sums)
    np.put_along_axis(scores, order, sums, 1)
    return scores


def coverage(folder: Path) -> None:
    stored = dict(np.load(folder / "none.npz"))
    logits = np.concatenate([stored["val_logits"], stored["test_logits"]]).astype(float)
    features = np.concatenate([stored["val_features"], stored["test_features"]])
    labels = np.concatenate([stored["val_labels"], stored["test_labels"]])
    count, half = len(labels), len(labels) // 2
    print(f"{count} photos, {(logits.argmax(1) == labels).mean():.1%} correct; halves of {half}")
    parts = ("train_features", "train_logits", "train_labels")
    model = FeatureModel.fit(*(stored[part] for part in parts))
    strange = model.strangeness(features, logits)
    methods = {
        "LAC": -log_softmax(logits, axis=1),
        "LAC, never empty (shipped)": -log_softmax(logits, axis=1),
        "APS": adaptive_scores(logits),
        "RAPS, penalty 0.1": adaptive_scores(logits, 0.1),
    }
    splits = [np.random.default_rng(seed).permutation(count) for seed in range(100)]
    print("| coverage | method | mean | of 100 splits in the 99% interval | size | empty | one |")
    print("|---|---|---|---|---|---|---|")
    for wanted in (0.9, 0.95, 0.99):
        for name, scores in methods.items():
            rows = []
            for order in splits:
                first, second = order[:half], order[half:]
                kept = conformal.summarize_scores(scores[first, labels[first]], 2000)
                limit = conformal.score_limit(kept, half, wanted)
                sets = scores[second] <= limit
                if "shipped" in name:
                    sets = conformal.prediction_sets(logits[second], limit)
                covered = sets[np.arange(len(second)), labels[second]].sum()
                sizes = sets.sum(1)
                rows.append((covered, sizes.mean(), (sizes == 0).mean(), (sizes == 1).mean()))
            covered, size, empty, one = np.mean(rows, axis=0)
            inside = within([row[0] for row in rows], half, count - half, wanted)
            print(
                f"| {wanted:.0%} | {name} | {covered / (count - half):.2%} | {inside} | "
                f"{size:.2f} | {empty:.1%} | {one:.1%} |"
            )
    for wanted in (0.01, 0.05, 0.1):
        calm = []
        for order in splits:
            kept = conformal.summarize_scores(strange[order[:half]], 2000)
            shares = [share_less_strange(kept, half, s) for s in strange[order[half:]].tolist()]
            calm.append(sum(share < 1 - wanted - 1e-9 for share in shares))
        inside = within(calm, half, count - half, 1 - wanted)
        alarms = 1 - np.mean(calm) / (count - half)
        print(
            f"false alarms requested {wanted:.0%}: {alarms:.2%}, {inside} of 100 in the 99% "
            "interval"
        )


def within(covered: list[int], calibrated: int, tested: int, wanted: float) -> int:
    """Return how many splits lie in the central 99% of the beta-binomial distribution."""
    rank = math.ceil((calibrated + 1) * wanted - 1e-9)
    exact = stats.betabinom(tested, rank, calibrated + 1 - rank)
    low, high = exact.ppf([0.005, 0.995])
    return sum(low <= value <= high for value in covered)


def seconds(model: Path, photo: Path) -> None:
    """Time predictions of one photo and of 32, with and without both requests, in turn.

    It measures CPU time, because other programs may be running.
    """
    torch.set_num_threads(1)
    predictor = load(model)
    pixels = photo.read_bytes()
    asked = {"coverage": 0.95, "false_alarms": 0.05}
    for count in (1, 32):
        times: dict[bool, list[float]] = {False: [], True: []}
        for number in range(200 if count == 1 else 40):
            with_both = bool(number % 2)
            started = time.process_time()
            predictor([pixels] * count, **(asked if with_both else {}))
            times[with_both].append(1000 * (time.process_time() - started) / count)
        plain, both = (float(np.median(times[key][5:])) for key in (False, True))
        print(f"{count} at a time: {plain:.2f} ms per photo, with both {both:.2f} ms")


def main() -> None:
    command, *arguments = sys.argv[1:]
    if command == "train":
        photos, folder = map(Path, arguments)
        for left_out in ("", *list_photos(photos)):
            if not (folder / f"{left_out or 'none'}.npz").exists():
                train_without(photos, left_out, folder)
    elif command == "compare":
        compare(Path(arguments[0]))
    elif command == "coverage":
        coverage(Path(arguments[0]))
    elif command == "seconds":
        seconds(*map(Path, arguments))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
