"""Find which distribution is installed, and the commands that install what it leaves out.

``resnetkit-runtime`` has the same files as ``resnetkit``, but depends only on what is needed to
predict with exported files (docs/decisions/0007-the-runtime-is-a-second-distribution.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from .errors import MissingPackageError

LEFT_OUT = frozenset(
    ("jinja2", "matplotlib", "pydantic", "safetensors", "sklearn", "torch", "torchvision", "yaml")
)
"""Modules that ``resnetkit`` needs and ``resnetkit-runtime`` does not depend on."""


@contextmanager
def explain_missing(user: str) -> Iterator[None]:
    """Turn a failed import of a module in `LEFT_OUT` into an error that says which command to run.

    Args:
        user: the command that needs the module, such as ``resnet train``.

    Raises:
        MissingPackageError: such a module is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in LEFT_OUT:
            raise
        package = "PyTorch" if module == "torch" or not _is_installed("torch") else module
        message = f"{user} needs {package}: {full_install_command()}"
        raise MissingPackageError(message) from None


def full_install_command() -> str:
    """Return the command that installs everything.

    Both distributions install the same files, so uninstalling one later would break the other.
    """
    command = "pip install resnetkit"
    return f"pip uninstall -y resnetkit-runtime && {command}" if _is_runtime() else command


def install_command(extra: str) -> str:
    """Return the command that installs an optional dependency.

    >>> install_command("heif")
    'pip install "resnetkit[heif]"'
    """
    return f'pip install "{distribution_name()}[{extra}]"'


def distribution_name() -> str:
    """Return ``resnetkit``, or ``resnetkit-runtime`` if only the latter is installed."""
    return "resnetkit-runtime" if _is_runtime() else "resnetkit"


def _is_runtime() -> bool:
    return _is_installed("resnetkit-runtime") and not _is_installed("resnetkit")


def _is_installed(name: str) -> bool:
    from importlib.metadata import distributions

    return any(distributions(name=name))
