"""The rows of ``history.csv`` for TensorBoard."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

from ..errors import RecipeError


def writer_class() -> Any:
    """Return the TensorBoard class that writes event files.

    Raises:
        RecipeError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RecipeError(
            'TensorBoard is not installed: pip install "resnetkit[tensorboard]"'
        ) from error
    return SummaryWriter


class TensorBoardLogger:
    """Writes the history as TensorBoard event files.

    Args:
        folder: where the files go; if None, nothing is written.

    Raises:
        RecipeError: tensorboard is not installed.
    """

    def __init__(self, folder: Path | None) -> None:
        self._writer: Any = None if folder is None else writer_class()(str(folder))

    def __enter__(self) -> TensorBoardLogger:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, row: dict[str, Any]) -> None:
        """Write a row of the history; its ``epoch`` is TensorBoard's step."""
        if self._writer is None:
            return
        for name, value in row.items():
            split, _, metric = name.partition("_")
            tag = f"{metric}/{split}" if split in ("train", "val") else name
            self._writer.add_scalar(tag, value, row["epoch"])
        self._writer.flush()
