"""The margin of each training image, averaged over the run: small if its label is wrong.

The margin of an image is the logit of its label minus the greatest other logit. Similar images pull
against a wrong label, so the margin stays small until the network memorizes the image. The mean
over the epochs is the area under the margin (Pleiss et al. 2020, arXiv:2001.10528, section 3.1).
The training step computes these logits anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def label_margins(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logit of each label minus the greatest other logit.

    Args:
        logits: ``(n, classes)``, with at least two classes.
        labels: ``(n,)`` int64.

    Returns:
        ``(n,)`` float32 on the device of the logits. Nothing here waits for the device.
    """
    logits = logits.detach().float()
    own = labels[:, None]
    others = logits.scatter(1, own, -torch.inf)
    return logits.gather(1, own)[:, 0] - others.amax(1)


class Margins:
    """Sum and count of the margins of each training image so far.

    Attributes:
        total: ``(n,)`` float64, the sum.
        count: ``(n,)`` int32, how many times each image was shown.
    """

    def __init__(self, images: int) -> None:
        self.total = np.zeros(images)
        self.count = np.zeros(images, np.int32)

    def add(self, indices: np.ndarray, margins: Sequence[float]) -> None:
        """Add the margins of a batch, which may contain an image several times.

        Args:
            indices: ``(N,)``, indices into the training split.
            margins: N numbers.
        """
        np.add.at(self.total, indices, margins)
        np.add.at(self.count, indices, 1)

    def mean(self) -> np.ndarray:
        """Return the mean margin of each image, ``(n,)`` float64; nan if it was never shown."""
        shown = self.count > 0
        mean: np.ndarray = np.divide(
            self.total, self.count, np.full(len(shown), np.nan), where=shown
        )
        return mean

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save. They share memory with the margins."""
        return {
            "margins.total": torch.from_numpy(self.total),
            "margins.count": torch.from_numpy(self.count),
        }
