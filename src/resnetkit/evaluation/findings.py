"""Which pictures are worth a look: the worst errors, the least sure answers, labels in doubt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .evaluate import Evaluation
from .metrics import probabilities


@dataclass(frozen=True)
class Finding:
    """A picture of an evaluation, by its ``index`` there.

    Args:
        suggested: another class: the answer; or the one that its label may have to be.
        probability, truth_probability: of ``suggested``, and of the label, in [0, 1].
        loss: the picture's cross-entropy in nats.
    """

    index: int
    path: str
    truth: str
    suggested: str
    probability: float
    truth_probability: float
    loss: float

    @property
    def correct(self) -> bool:
        """Whether the answer is the label."""
        return self.truth == self.suggested


def worst_errors(found: Evaluation, most: int) -> list[Finding]:
    """The wrong answers with the highest loss, the worst first."""
    losses, answers = _losses(found), found.logits.argmax(1)
    order = [i for i in losses.argsort(descending=True).tolist() if answers[i] != found.labels[i]]
    return _findings(found, order[:most], answers)


def least_sure(found: Evaluation, most: int) -> list[Finding]:
    """The answers with the lowest probability, right or wrong."""
    best = probabilities(found.logits).max(1)
    order = best.values.argsort(stable=True)[:most].tolist()
    return _findings(found, order, best.indices)


def doubtful_labels(found: Evaluation, most: int) -> tuple[list[Finding], int]:
    """The labels that are probably wrong, those furthest from their picture first, and how many
    there are in all.

    The rule is confident learning's (Northcutt et al. 2021, arXiv:1911.00068, section 3.1). A class
    is believed of a picture when its probability is at least the mean probability that this class
    has on the pictures labelled with it. Of the classes that are believed, the most probable one is
    taken; where it is not the label, the label is in doubt.
    """
    shares, labels = probabilities(found.logits).double(), found.labels
    classes = shares.shape[1]
    count = torch.bincount(labels, minlength=classes)
    own = shares.gather(1, labels[:, None])[:, 0]
    threshold = torch.bincount(labels, own, classes) / count  # nan where no picture is labelled so
    believed = torch.where(shares >= threshold, shares, -1.0)
    value, suggested = believed.max(1)
    doubtful = (value >= 0) & (suggested != labels)
    gap = torch.where(doubtful, value - own, -2.0)
    order = gap.argsort(descending=True, stable=True)[: int(doubtful.sum())].tolist()
    return _findings(found, order[:most], suggested), len(order)


@dataclass(frozen=True)
class Disagreement:
    """A picture that several evaluations answer differently.

    Args:
        answers: (class, probability) of each of them.
    """

    index: int
    path: str
    truth: str
    answers: tuple[tuple[str, float], ...]


def disagreements(several: Sequence[Evaluation], most: int) -> tuple[list[Disagreement], int]:
    """The pictures that evaluations of the same part answer differently, first those where the
    probabilities of the truth are furthest apart; and how many there are in all."""
    first = several[0]
    best = [probabilities(found.logits).max(1) for found in several]
    true = [probabilities(found.logits).gather(1, first.labels[:, None])[:, 0] for found in several]
    answers = torch.stack([item.indices for item in best])  # (models, n)
    differ = (answers != answers[0]).any(0)
    spread = torch.stack(true).amax(0) - torch.stack(true).amin(0)
    order = torch.where(differ, spread, -1.0).argsort(descending=True, stable=True)
    count = int(differ.sum())
    return [
        Disagreement(
            index=i,
            path=first.samples.paths[i],
            truth=first.classes[first.samples.labels[i]],
            answers=tuple((first.classes[int(b.indices[i])], float(b.values[i])) for b in best),
        )
        for i in order[: min(count, most)].tolist()
    ], count


def _losses(found: Evaluation) -> Tensor:
    return F.cross_entropy(found.logits.double(), found.labels, reduction="none")


def _findings(found: Evaluation, indices: Sequence[int], suggested: Tensor) -> list[Finding]:
    shares, losses = probabilities(found.logits), _losses(found)
    labels, chosen = found.samples.labels, suggested.tolist()
    return [
        Finding(
            index=i,
            path=found.samples.paths[i],
            truth=found.classes[labels[i]],
            suggested=found.classes[chosen[i]],
            probability=float(shares[i, chosen[i]]),
            truth_probability=float(shares[i, int(labels[i])]),
            loss=float(losses[i]),
        )
        for i in indices
    ]
