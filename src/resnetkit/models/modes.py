"""Training and eval mode, module by module.

A frozen batch norm, for example, is in eval mode while the network around it trains.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def in_mode(model: nn.Module, training: bool) -> Iterator[nn.Module]:
    """Put every module into training or eval mode, and restore each one's previous mode on exit.

    Args:
        model: the network.
        training: True for training mode, False for eval mode.

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
