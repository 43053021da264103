"""resnetkit: the ResNet family, and everything that turns a folder of pictures into a classifier.

The flow, and the rooms it passes through::

    files -> batches -> logits -> evidence -> weights -> answers
    data     models     evaluation, report    training   inference

    run = resnetkit.train("flowers")             # a folder of photos, one sub-folder a class
    predictor = resnetkit.load(run.model)        # one file, nothing beside it
    predictor("rose.jpg").class_name
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import ResnetkitError
    from .evaluation.evaluate import evaluate
    from .inference.predictor import Prediction, Predictor, load
    from .training.loop import train
    from .training.run import Run

__version__ = "0.1.0"

_WHERE = {
    "Prediction": ".inference.predictor",
    "Predictor": ".inference.predictor",
    "ResnetkitError": ".errors",
    "Run": ".training.run",
    "evaluate": ".evaluation.evaluate",
    "load": ".inference.predictor",
    "train": ".training.loop",
}

__all__ = [
    "Prediction",
    "Predictor",
    "ResnetkitError",
    "Run",
    "evaluate",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it is asked for: PyTorch alone takes more than a second."""
    from importlib import import_module

    if name in _WHERE:
        return getattr(import_module(_WHERE[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
