"""Images worth a look: the worst errors, the least certain answers, and doubtful labels."""

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
    """An image from an evaluation that is worth a look.

    Args:
        index: its row in the evaluation.
        path: its path in the dataset.
        truth: its label.
        suggested: the model's answer, or the class that may be the correct label.
        probability: the probability of ``suggested``, in [0, 1].
        truth_probability: the probability of ``truth``, in [0, 1].
        loss: its cross-entropy in nats.
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
        """Whether ``suggested`` is the label."""
        return self.truth == self.suggested


def worst_errors(evaluation: Evaluation, limit: int) -> list[Finding]:
    """Return up to ``limit`` wrong answers, highest loss first."""
    losses = _losses(evaluation)
    answers = evaluation.logits.argmax(1)
    labels = evaluation.labels
    order = [i for i in losses.argsort(descending=True).tolist() if answers[i] != labels[i]]
    return _findings(evaluation, order[:limit], answers)


def least_sure(evaluation: Evaluation, limit: int) -> list[Finding]:
    """Return up to ``limit`` answers, correct or wrong, lowest probability first."""
    highest = probabilities(evaluation.logits).amax(1)
    order = highest.argsort(stable=True)[:limit].tolist()
    return _findings(evaluation, order, evaluation.logits.argmax(1))


def doubtful_labels(evaluation: Evaluation, limit: int) -> tuple[list[Finding], int]:
    """Return up to ``limit`` labels that are probably wrong, and how many there are in all.

    The rule is confident learning (Northcutt et al. 2021, arXiv:1911.00068, section 3.1). A class
    is plausible for an image if its probability is at least the mean probability of this class
    over the images labeled with it. If the most probable plausible class is not the label, the
    label is doubtful. Labels with the largest gap between the probabilities of the two classes
    come first.
    """
    shares = probabilities(evaluation.logits).double()
    labels = evaluation.labels
    classes = shares.shape[1]
    count = torch.bincount(labels, minlength=classes)
    own = shares.gather(1, labels[:, None])[:, 0]
    threshold = torch.bincount(labels, own, classes) / count  # nan for a class without images
    plausible = torch.where(shares >= threshold, shares, -1.0)
    value, suggested = plausible.max(1)
    doubtful = (value >= 0) & (suggested != labels)
    gap = torch.where(doubtful, value - own, -2.0)
    order = gap.argsort(descending=True, stable=True)[: int(doubtful.sum())].tolist()
    return _findings(evaluation, order[:limit], suggested), len(order)


@dataclass(frozen=True)
class Disagreement:
    """An image on which several evaluations disagree.

    Args:
        index: its row in the evaluations.
        path: its path in the dataset.
        truth: its label.
        answers: (class, probability) from each evaluation.
    """

    index: int
    path: str
    truth: str
    answers: tuple[tuple[str, float], ...]


def disagreements(evaluations: Sequence[Evaluation], limit: int) -> tuple[list[Disagreement], int]:
    """Return up to ``limit`` images with different answers, and how many there are in all.

    The evaluations must cover the same images. Images on which the probabilities of the true class
    differ most come first.
    """
    first = evaluations[0]
    shares = [probabilities(evaluation.logits) for evaluation in evaluations]
    true = torch.stack([each.gather(1, first.labels[:, None])[:, 0] for each in shares])
    answers = torch.stack([item.logits.argmax(1) for item in evaluations])  # (models, n)
    differ = (answers != answers[0]).any(0)
    spread = true.amax(0) - true.amin(0)
    order = torch.where(differ, spread, -1.0).argsort(descending=True, stable=True)
    count = int(differ.sum())
    return [
        Disagreement(
            index=i,
            path=first.samples.paths[i],
            truth=first.classes[first.samples.labels[i]],
            answers=tuple(
                (first.classes[int(answer)], float(each[i, answer]))
                for answer, each in zip(answers[:, i], shares, strict=True)
            ),
        )
        for i in order[: min(count, limit)].tolist()
    ], count


def _losses(evaluation: Evaluation) -> Tensor:
    return F.cross_entropy(evaluation.logits.double(), evaluation.labels, reduction="none")


def _findings(evaluation: Evaluation, indices: Sequence[int], suggested: Tensor) -> list[Finding]:
    shares = probabilities(evaluation.logits)
    losses = _losses(evaluation)
    labels = evaluation.samples.labels
    suggestions = suggested.tolist()
    return [
        Finding(
            index=i,
            path=evaluation.samples.paths[i],
            truth=evaluation.classes[labels[i]],
            suggested=evaluation.classes[suggestions[i]],
            probability=float(shares[i, suggestions[i]]),
            truth_probability=float(shares[i, int(labels[i])]),
            loss=float(losses[i]),
        )
        for i in indices
    ]
