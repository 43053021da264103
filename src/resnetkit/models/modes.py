"""Training and eval mode, which belong to each module: a frozen batch norm stays in eval mode while
the network around it trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[nn.Module]:
    """Put every module of ``model`` into training or eval mode, and on exit each back into its own.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with in_mode(net, training=False):
    ...     net[0].training
    False
    >>> net[0].training, net[1].training
    (True, False)
    """
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield model
    finally:
        for module, mode in before:
            module.training = mode
