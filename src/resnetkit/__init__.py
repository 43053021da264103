"""The ResNet family, and the tools that turn a folder of photos into a classifier you can trust.

The flow of data, and the packages that it passes through::

    files -> batches -> logits -> evidence -> weights -> answers -> other programs
    data     models     evaluation, report    training   inference  export

    run = resnetkit.train("flowers")             # one sub-folder of photos per class
    predictor = resnetkit.load(run.model)        # one file: weights, classes, preprocessing
    predictor("rose.jpg").class_name
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import ResnetkitError
    from .evaluation.evaluate import evaluate
    from .export.predictor import ExportedPredictor
    from .inference.prediction import Prediction
    from .inference.predictor import Predictor, load
    from .inference.similar import ImageIndex
    from .training.folds import CrossValidation, train_folds
    from .training.loop import train
    from .training.run import Run

__version__ = "0.1.0"

_MODULES = {
    "CrossValidation": ".training.folds",
    "ExportedPredictor": ".export.predictor",
    "ImageIndex": ".inference.similar",
    "Prediction": ".inference.prediction",
    "Predictor": ".inference.predictor",
    "ResnetkitError": ".errors",
    "Run": ".training.run",
    "evaluate": ".evaluation.evaluate",
    "load": ".inference.predictor",
    "train": ".training.loop",
    "train_folds": ".training.folds",
}

__all__ = [
    "CrossValidation",
    "ExportedPredictor",
    "ImageIndex",
    "Prediction",
    "Predictor",
    "ResnetkitError",
    "Run",
    "evaluate",
    "load",
    "train",
    "train_folds",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use: importing PyTorch takes more than a second."""
    from importlib import import_module

    if name in _MODULES:
        from .distribution import explain_missing

        with explain_missing(f"resnetkit.{name}"):
            return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
