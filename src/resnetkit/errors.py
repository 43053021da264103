"""Errors the user can fix. A message says what is wrong, what was expected, and what to do.

::

    ResnetkitError
    |-- RecipeError       an unknown setting, or an invalid value             (exit code 2)
    |-- DataError         a dataset that cannot be trained or evaluated on
    |   `-- ImageError    a file that is not a readable image
    |-- ModelFileError    a file that is not a model file, is damaged, or is too new
    |   `-- ArtefactError a file that is not an exported model, is damaged, or is too new
    |-- OutputError       a path that results cannot be written to
    |-- WeightsError      weights that are not available or do not fit
    |   |-- UnknownWeightsError  a name that matches no published weights
    |   `-- DownloadError        a file that could not be downloaded
    |-- TrainingError     a run that cannot continue
    |-- MissingPackageError  a package that is not installed
    `-- Interrupted       a run that was stopped by a signal and saved        (exit code 130, 143)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ResnetkitError(Exception):
    """The base class of all errors that the user can fix."""

    exit_code = 1


class RecipeError(ResnetkitError, ValueError):
    """An unknown setting, or an invalid value."""

    exit_code = 2


class DataError(ResnetkitError, ValueError):
    """A dataset that cannot be trained or evaluated on."""


class ImageError(DataError):
    """A file that is not a readable image.

    Args:
        message: what is wrong with the file.
        passing: whether the failure may be temporary. Its cause is then not the file itself but,
            for example, too little memory or a missing library, so another attempt may succeed.
    """

    def __init__(self, message: str = "", passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class ModelFileError(ResnetkitError, ValueError):
    """A file that is not a model file, is damaged, or was written by a newer version."""


class ArtefactError(ModelFileError):
    """A file that is not an exported model, is damaged, or was written by a newer version."""


class OutputError(ResnetkitError, OSError):
    """A path that results cannot be written to."""


class WeightsError(ResnetkitError, ValueError, RuntimeError):
    """Published or third-party weights that are not available or do not fit.

    Also a RuntimeError, because PyTorch raises one for tensors or hashes that do not match.
    """


class UnknownWeightsError(WeightsError, KeyError):
    """A name that matches no published weights; also a KeyError, like a failed enum lookup."""

    __str__ = Exception.__str__  # a KeyError would print the message's repr


class DownloadError(WeightsError, OSError):
    """A file that could not be downloaded, or must not be because RESNETKIT_OFFLINE is set."""


class TrainingError(ResnetkitError, RuntimeError):
    """A run that cannot continue."""


class MissingPackageError(ResnetkitError, ImportError):
    """A package that is not installed; the message says what to install."""


class Interrupted(ResnetkitError):
    """A run that saved its state and stopped because of a signal."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (str(self), self.exit_code)  # pickle would pass only the message


def did_you_mean(word: str, known: Iterable[str], count: int = 1) -> str:
    """Return a question that suggests the known names most similar to a word, or "".

    >>> did_you_mean("epoch", ["epochs", "seed"])
    "Did you mean 'epochs'?"
    """
    nearest = difflib.get_close_matches(word, list(known), n=count, cutoff=0.5)
    return f"Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""


def sentences(*texts: str) -> str:
    """Join the sentences of a message; empty ones are left out.

    >>> sentences("Unknown key 'x'.", did_you_mean("x", ["seed"]), "Known keys: seed")
    "Unknown key 'x'. Known keys: seed"
    """
    return " ".join(filter(None, texts))
