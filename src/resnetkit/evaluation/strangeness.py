"""Strangeness: how far an image is from the training images, and how little it fits any class.

It is a distance minus the log-sum-exp of the logits, which is large if the last layer sees a known
class (the energy score of Liu et al., arXiv:2010.03759). An image of an unknown class may look like
a known class to the last layer, but its features often differ in another direction. Or its features
may be near those of a known class, but no logit is large. Combining the two terms, with a factor
that makes them comparable, follows ViM (Wang et al., arXiv:2203.10807, section 4).

The distance is measured from the image's features to the nearest class mean. Directions in which
images of one class differ most have little weight. Up to a factor, this is the Mahalanobis distance
for the within-class covariance (Lee et al., arXiv:1807.03888), if that covariance has a few main
directions and the same variance in all others, as in probabilistic PCA (Tipping and Bishop 1999,
doi:10.1111/1467-9868.00196). It takes little space compared with a full covariance matrix.
benchmarks/unknown_cpu_2026-11-29.md compares this measure with others.

The strangeness of an image is meaningful only in comparison with that of validation images: see
`share_less_strange` (Bates et al., Testing for Outliers with Conformal p-values, arXiv:2104.08279).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..calibration import Calibration
from ..randomness import derive
from .conformal import class_scores, kept_rank

DIRECTIONS = 32
"""Number of directions modeled; fewer if there are fewer than 128 features or few images."""

SMALLEST_SHARE = 1e-6
"""Smallest share of the squared distance along a direction that is counted."""

IMAGES = 2000
"""Number of training images used, unless `IMAGES_PER_CLASS` requires more."""

IMAGES_PER_CLASS = 10
"""Number of images used per class if there are many classes and enough images."""


@dataclass(frozen=True)
class FeatureModel:
    """The distribution of the training images' features.

    Args:
        means: ``(classes, C)`` float32, the mean of each class.
        directions: ``(r, C)`` float32: the main directions within classes. The squared length of
            each, in [0, 1), is the share of squared distance along it that is left out.
        scale: the factor that turns distances into units of logits.
    """

    means: np.ndarray
    directions: np.ndarray
    scale: float

    @classmethod
    def fit(cls, features: np.ndarray, logits: np.ndarray, labels: np.ndarray) -> FeatureModel:
        """Fit the model to training images.

        Args:
            features: ``(n, C)``, the inputs of the last layer.
            logits: ``(n, classes)``.
            labels: ``(n,)`` int64; each class has at least one image.
        """
        import torch

        classes = logits.shape[1]
        inputs = torch.from_numpy(features).double()
        targets = torch.from_numpy(labels)
        count = torch.bincount(targets, minlength=classes)
        sums = torch.zeros(classes, features.shape[1], dtype=torch.float64)
        means = sums.index_add_(0, targets, inputs) / count[:, None]
        residuals = inputs - means[targets]
        covariance = residuals.T @ residuals / len(residuals)
        variances, vectors = torch.linalg.eigh(covariance)  # ascending
        variances = variances.flip(0).clamp(min=0)
        vectors = vectors.flip(1)
        # Most directions must remain, to estimate their common variance. With few features or few
        # images, some variances are 0, because a ReLU never fires or there are too few images to
        # vary in every direction.
        rank = min(DIRECTIONS, features.shape[1] // 4, (len(features) - classes) // 4)
        noise = torch.maximum(variances[rank:].mean(), SMALLEST_SHARE * variances[0])
        # Along a direction with variance v, only noise / v of the squared distance is counted.
        left_out = torch.where(variances > noise, 1 - noise / variances, 0.0)[:rank]
        directions = (vectors[:, :rank] * left_out.sqrt()).T
        model = cls(means.float().numpy(), directions.float().numpy(), 1.0)
        # Choose the scale so that, on average over the training images, the scaled distance equals
        # the largest logit. The mean logit is subtracted first, because adding a constant to all
        # logits changes nothing.
        greatest = float((logits.max(1) - logits.mean(1, dtype=np.float64)).mean())
        # Each of the m images in a class pulls the mean toward itself. From the mean of the others,
        # it would be m / (m - 1) times as far away. The only image of a class has no such distance.
        others = count[targets] - 1
        has_others = others > 0
        farther = (count[targets] / others.clamp(min=1))[has_others]
        distances = model.distances(features)[has_others.numpy()] * farther.numpy()
        distance = float(distances.mean()) if len(distances) else 0.0
        return replace(model, scale=greatest / distance if distance > 0 else 0.0)

    @classmethod
    def from_calibration(cls, calibration: Calibration) -> FeatureModel:
        """Return the model that a model file stores."""
        return cls(
            calibration.means.array(), calibration.directions.array(), calibration.distance_scale
        )

    def strangeness(self, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
        """Return how strange images are, ``(n,)`` float64; see `share_less_strange`.

        Args:
            features: ``(n, C)``.
            logits: ``(n, classes)``.
        """
        # The greatest logit and its conformal score add up to log(sum(exp(logits))).
        energy = logits.max(1) + class_scores(logits).min(1)
        strangeness: np.ndarray = self.scale * self.distances(features) - energy
        return strangeness

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Return the distances from features ``(n, C)`` to the nearest mean, ``(n,)`` float64."""
        features = features.astype(np.float64)
        means = self.means.astype(np.float64)
        directions = self.directions.astype(np.float64).T
        squares = _squared_distances(features, means)
        squares -= _squared_distances(features @ directions, means @ directions)
        distances: np.ndarray = np.sqrt(squares.min(1).clip(min=0))
        return distances


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the squared distances from ``(n, d)`` to ``(m, d)`` points, as ``(n, m)``.

    Matrix products need no memory for the n * m * d differences. In float64, little precision is
    lost to cancellation.
    """
    squares: np.ndarray = np.square(a).sum(1)[:, None] - 2 * (a @ b.T) + np.square(b).sum(1)
    return squares


def share_less_strange(scores: Sequence[float], count: int, strangeness: float) -> float:
    """Return how strange an image is compared with validation images, in [0, 1).

    With N validation images of which m are less strange, it is m / (N + 1): one minus the conformal
    p-value. For a new image of a known class, it is at least 1 - a with probability at most a.

    Args:
        scores: the strangeness of the validation images, from `conformal.summarize_scores`.
        count: the number of validation images.
        strangeness: the image's strangeness, from `FeatureModel.strangeness`.
    """
    below = bisect_left(scores, strangeness)
    return kept_rank(below, count, kept=len(scores)) / (count + 1)


def fit_count(classes: int) -> int:
    """Return the maximum number of training images that a `FeatureModel` is fitted to."""
    return max(IMAGES, IMAGES_PER_CLASS * classes)


def balanced_indices(labels: np.ndarray, classes: int, seed: int) -> np.ndarray:
    """Return the indices of training images to fit a `FeatureModel` to, ascending.

    The classes share `fit_count` images as evenly as their sizes allow. The choice is f(seed).

    Args:
        labels: ``(n,)``, the labels of the training images.
        classes: the number of classes.
        seed: the seed of the run.
    """
    rng = np.random.Generator(np.random.PCG64(derive(seed, "strangeness")))
    shuffled = rng.permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    counts = np.bincount(labels, minlength=classes)
    # The number of each image within its class. Take all images with number 0 first, then 1, ...
    turn = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.sort(by_class[np.argsort(turn, kind="stable")[: fit_count(classes)]])
