"""Every error that is a person's to mend. A message says what came, what was expected, what to do.

::

    ResnetkitError
    |-- RecipeError       a setting that is unknown, or has a value it cannot have   (exit code 2)
    |-- DataError         a folder of pictures that cannot be trained or measured on
    |   `-- PictureError  one file that is no readable picture
    |-- ModelFileError    a file that is no model file, is damaged, or is too new
    |-- OutputError       a place that results cannot be written to
    |-- WeightsError      published or foreign weights that cannot be had or do not fit
    |   |-- UnknownWeightsError  a name that no published weights have
    |   `-- DownloadError        a file that could not be fetched
    |-- TrainingError     a run that cannot go on
    `-- Interrupted       a run that was asked to stop, and has saved       (exit code 130, 143)
"""

from __future__ import annotations


class ResnetkitError(Exception):
    """The root of the tree: catch this to catch them all."""

    exit_code = 1


class RecipeError(ResnetkitError, ValueError):
    """A setting that is unknown, or has a value it cannot have."""

    exit_code = 2


class DataError(ResnetkitError, ValueError):
    """A folder of pictures that cannot be trained or measured on."""


class ImageError(DataError):
    """One file that is no readable picture.

    Args:
        passing: the file's bytes are not to blame (memory was short, a library is missing), so
            that another try may succeed.
    """

    def __init__(self, message: str = "", passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class ModelFileError(ResnetkitError, ValueError):
    """A file that is no model file, is damaged, or was written by a newer version."""


class OutputError(ResnetkitError, OSError):
    """A place that results cannot be written to."""


class WeightsError(ResnetkitError, ValueError, RuntimeError):
    """Published or foreign weights that cannot be had or do not fit.

    It is a RuntimeError too, because PyTorch raises that where tensors or hashes do not fit.
    """


class UnknownWeightsError(WeightsError, KeyError):
    """A name that no published weights have; a KeyError, as a look-up in an enum raises."""

    __str__ = Exception.__str__  # a KeyError would print the message's repr


class DownloadError(WeightsError, OSError):
    """A file that could not be fetched, or may not be: RESNETKIT_OFFLINE is set."""


class TrainingError(ResnetkitError, RuntimeError):
    """A run that cannot go on."""


class Interrupted(ResnetkitError):
    """A run that was asked to stop by a signal, and has saved its state."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[type[Interrupted], tuple[str, int]]:
        return type(self), (str(self), self.exit_code)  # pickle would pass the message alone
