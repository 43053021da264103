"""The disk tier: files of working pixels, each found again by what it was made from.

::

    ~/.cache/resnetkit/pixels/<hash of what it was made from>.pixels    whole, or not there
                                                             .partial   being written
                                                             .lock      empty; held by who writes
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from ..errors import OutputError
from ..progress import say
from ..storage import discard, locked, publish
from . import pixels
from .pixels import Pixels

SHARE = 0.9
"""The most of the free disk that a file takes."""

UNUSED_DAYS = 30
"""Files that no run has taken pixels from for so long are removed when another one is written."""

_OURS = re.compile(r"[0-9a-f]{32}\.(pixels|partial)")


def cache_folder() -> Path:
    """``$RESNETKIT_CACHE``, else ``resnetkit`` where the platform keeps caches; in it ``pixels``.

    What lies there can be removed at any time when no run is using it.
    """
    own = os.environ.get("RESNETKIT_CACHE")
    if own:
        return Path(own).expanduser() / "pixels"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", "~\\AppData\\Local"))
    elif sys.platform == "darwin":
        base = Path("~/Library/Caches")
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return base.expanduser() / "resnetkit" / "pixels"


def find_or_write(
    made_from: str,
    count: int,
    expected: int,
    images: Callable[[], Iterable[np.ndarray | str | None]],
    channels: int = 3,
) -> tuple[Pixels, dict[int, str]]:
    """The pixels of ``count`` pictures, from a file that was made from the same, or a new one.

    One process writes; others that want the same file wait for it, and then read it.

    Args:
        made_from: everything that the pixels depend on.
        expected: about how many bytes they are.
        pictures: gives the pixels of each in order, or says what is wrong with its bytes, or gives
            None where it could not be read for another reason, which is not remembered; called
            only where the file is not there.
        channels: of every picture.

    Returns:
        The pixels, mapped into memory; and by index, what is wrong with those that are not there.
        Pictures that gave None are in neither.

    Raises:
        OSError: there is no file and none can be written; what was begun is removed.
    """
    name = hashlib.blake2b(made_from.encode(), digest_size=16).hexdigest()
    file = cache_folder() / f"{name}.pixels"
    with locked(file.with_suffix(".lock")):
        found = None
        if file.exists():
            found = pixels.open_file(file, count, channels)
            say(f"{file} is damaged; made again" if found is None else f"Taken from {file}")
        if found is None:
            _make_room(file.parent, expected)
            _write(file, images())
            found = pixels.open_file(file, count, channels)
        if found is None:
            raise OutputError(f"{file} cannot be read back as it was written; is the disk failing?")
        os.utime(file)  # used today
    return found


def _write(file: Path, images: Iterable[np.ndarray | str | None]) -> None:
    partial = file.with_suffix(".partial")  # what a killed run left is written over
    try:
        with partial.open("wb") as target:
            pixels.write(target, images)
        publish(partial, file)
    finally:
        discard(partial)


def _make_room(folder: Path, expected: int) -> None:
    """Remove what was not used for long, and refuse to fill the disk.

    Raises:
        OutputError: there is too little room for ``expected`` bytes.
    """
    oldest = time.time() - UNUSED_DAYS * 86400
    for file in filter(lambda file: _OURS.fullmatch(file.name), folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):  # another run was quicker
            if file.stat().st_mtime < oldest:
                discard(file)
    free = shutil.disk_usage(folder).free
    if expected > free * SHARE:
        raise OutputError(
            f"they need {expected / 1e9:,.1f} GB, and {folder} has {free / 1e9:,.1f} GB free. "
            "Make room there, or name another folder: RESNETKIT_CACHE=/path"
        )
