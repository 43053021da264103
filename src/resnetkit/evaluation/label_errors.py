"""Training labels that are probably wrong, from the margins of a run and the nearest neighbors.

A wrong label shows in two ways. During training, images with correct labels pull the network away
from the wrong label, so the margin of the image (the logit of its label minus the greatest other
logit) is negative for a long time. The mean margin over the epochs is the area under the margin
(Pleiss et al. 2020, arXiv:2001.10528). After training, the images that the network finds most
similar have other labels. benchmarks/label_errors.py measures how well the two signs find
flipped labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .neighbors import nearest_neighbors

NEIGHBORS = 10
"""Number of neighbors whose labels are compared with an image's label."""

SHOWN = 3
"""Number of neighbors stored with each suspect."""

THRESHOLD = 2.3
"""A label with a higher score is a suspect. The threshold was chosen to flag fewer than 1% of the
labels in a clothing dataset in which no labels were flipped."""

MOST_CANDIDATES = 20_000
"""Maximum number of images whose neighbors are searched for: those with the smallest margins."""


@dataclass(frozen=True)
class Suspect:
    """A label that is probably wrong.

    Args:
        index: index of the image in the training split.
        label: its label.
        suggested: the class that may be the correct one.
        score: how suspect the label is, above `THRESHOLD`; see `score_labels`.
        neighbors: the most similar training images, up to `SHOWN` of them, nearest first.
    """

    index: int
    label: int
    suggested: int
    score: float
    neighbors: tuple[int, ...]


@dataclass(frozen=True)
class LabelScores:
    """How suspect each label is.

    Args:
        labels: ``(n,)`` int64.
        scores: ``(n,)`` float64, higher for labels that are more likely to be wrong.
        candidates: ``(m,)`` int64, the images whose neighbors were searched for.
        neighbors: ``(m, K)`` int64, the nearest neighbors of the candidates.
        suggested: ``(m,)`` int64, for each candidate the class that may be the correct one.
    """

    labels: np.ndarray
    scores: np.ndarray
    candidates: np.ndarray
    neighbors: np.ndarray
    suggested: np.ndarray

    def suspects(self) -> list[Suspect]:
        """Return the labels with a score above `THRESHOLD`, the highest score first."""
        scores = self.scores[self.candidates]
        order = np.argsort(-scores, kind="stable")
        return [
            Suspect(
                index=int(self.candidates[row]),
                label=int(self.labels[self.candidates[row]]),
                suggested=int(self.suggested[row]),
                score=float(scores[row]),
                neighbors=tuple(self.neighbors[row, :SHOWN].tolist()),
            )
            for row in order[: np.count_nonzero(scores > THRESHOLD)]
        ]


def score_labels(
    labels: np.ndarray,
    logits: np.ndarray,
    features: np.ndarray,
    margins: np.ndarray | None = None,
) -> LabelScores:
    """Score each training label by its margin and by the labels of similar images.

    The score is ``-margin / s - agreement``. The first term is the mean margin in units of the
    standard deviation ``s`` of all margins, so it does not depend on how large a recipe makes the
    logits. The agreement, in [-1, 1], is the share of the nearest neighbors that have the label
    minus the share of the most frequent other class. So if all neighbors of an image have the same
    other label, the image is a suspect if its margin is more than 1.3 standard deviations below
    zero. The less the neighbors agree, the lower the margin must be.

    Args:
        labels: ``(n,)`` integers.
        logits: ``(n, classes)``, of the trained network for the training images.
        features: ``(n, C)``, the input of its last layer.
        margins: ``(n,)``, the mean margin of each image in training, nan if it was never shown.
            None if the run mixed its images. Missing margins are replaced by those of the trained
            network, which find fewer wrong labels, because the network may have memorized them.
    """
    labels = np.asarray(labels, np.int64)
    margins = np.full(len(labels), np.nan) if margins is None else margins.copy()
    missing = np.flatnonzero(np.isnan(margins))
    own = logits[missing, labels[missing]]
    margins[missing] = own - _without_label(logits[missing], labels[missing]).max(1)
    deviation = margins.std() or 1.0

    candidates = np.sort(np.argsort(margins, kind="stable")[:MOST_CANDIDATES])
    neighbors, _ = nearest_neighbors(
        features, features[candidates], NEIGHBORS, exclude_self=candidates
    )
    votes = _votes(labels[neighbors], logits.shape[1])
    agreement = np.ones(len(labels))
    agreement[candidates] = _agreement(votes, labels, candidates)
    likelihoods = np.exp(logits[candidates] - logits[candidates].max(1, keepdims=True))
    for_class = likelihoods / likelihoods.sum(1, keepdims=True) + votes
    return LabelScores(
        labels=labels,
        scores=-margins / deviation - agreement,
        candidates=candidates,
        neighbors=neighbors,
        suggested=_without_label(for_class, labels[candidates]).argmax(1),
    )


def _without_label(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``(n, classes)`` values, with minus infinity for the label of each row."""
    others = values.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return others


def _votes(neighbor_labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the share of each class among the neighbors, ``(m, classes)``."""
    count, width = neighbor_labels.shape
    votes = np.zeros((count, classes))
    np.add.at(votes, (np.repeat(np.arange(count), width), neighbor_labels.ravel()), 1 / width)
    return votes


def _agreement(votes: np.ndarray, labels: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Return how much the neighbors of each candidate agree with its label, ``(m,)`` in [-1, 1].

    A class with few images cannot supply all neighbors, so its share is relative to the number that
    it can supply. An image that is alone in its class has an agreement of 0.
    """
    own = labels[candidates]
    others_in_class = np.bincount(labels)[own] - 1
    possible = np.minimum(others_in_class / min(NEIGHBORS, len(labels) - 1), 1.0)
    share = votes[np.arange(len(own)), own] / np.where(possible > 0, possible, 1.0)
    against = _without_label(votes, own).max(1)
    agreement: np.ndarray = np.where(possible > 0, share - against, 0.0)
    return agreement
