"""The disk tier of the cache: files of working pixels, named after a hash of what they depend on.

::

    ~/.cache/resnetkit/pixels/<hash of the key>.pixels    complete, or absent
                                               .partial   being written
                                               .lock      empty; held by the writer
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
from .pixels import Pixels, open_pixels, write_pixels

SHARE = 0.9
"""Largest share of the free disk space that one file may take."""

UNUSED_DAYS = 30
"""Files that no run has used for this many days are removed when a new one is written."""

_CACHE_FILE = re.compile(r"[0-9a-f]{32}\.(pixels|partial)")


def cache_folder() -> Path:
    """Return the folder for cache files.

    This is ``pixels`` in ``$RESNETKIT_CACHE`` if that is set, and otherwise ``resnetkit/pixels`` in
    the platform's cache folder. Its contents may be deleted whenever no run is using them.
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


def load_or_create(
    key: str,
    count: int,
    *,
    expected: int,
    decode_all: Callable[[], Iterable[np.ndarray | str | None]],
    channels: int = 3,
) -> tuple[Pixels, dict[int, str]]:
    """Return the pixels of ``count`` images from the file for ``key``; write it first if needed.

    One process writes; others that need the same file wait for it and then read it.

    Args:
        key: everything the pixels depend on.
        count: number of images.
        expected: estimated size of the pixels, in bytes.
        decode_all: yields one item per image, in order: its pixels; an error message, if its bytes
            are invalid; or None, if reading it failed for a temporary reason. None is not recorded.
            Called only if the file does not exist or is damaged.
        channels: channels of every image.

    Returns:
        The memory-mapped pixels, and the error messages by index. Images for which ``decode_all``
        yielded None are in neither.

    Raises:
        OSError: there is no usable file and none can be written; a partial file is removed.
    """
    name = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
    file = cache_folder() / f"{name}.pixels"
    with locked(file.with_suffix(".lock")):
        loaded = None
        if file.exists():
            loaded = open_pixels(file, count, channels)
            if loaded is None:
                say(f"{file} is damaged; recreating it")
            else:
                say(f"Using the cached pixels in {file}")
        if loaded is None:
            _make_room(file.parent, expected)
            _write(file, decode_all())
            loaded = open_pixels(file, count, channels)
        if loaded is None:
            raise OutputError(f"{file} was just written but reads back damaged. Check the disk")
        os.utime(file)  # mark as used today
    return loaded


def _write(file: Path, images: Iterable[np.ndarray | str | None]) -> None:
    partial = file.with_suffix(".partial")  # overwritten if a killed run left one
    try:
        with partial.open("wb") as target:
            write_pixels(target, images)
        publish(partial, file)
    finally:
        discard(partial)


def _make_room(folder: Path, expected: int) -> None:
    """Remove files that have not been used for a long time, and refuse to fill the disk.

    Raises:
        OutputError: there is too little space for ``expected`` bytes.
    """
    oldest = time.time() - UNUSED_DAYS * 86400
    for file in folder.iterdir():
        if not _CACHE_FILE.fullmatch(file.name):
            continue
        with contextlib.suppress(FileNotFoundError):  # another run removed it first
            if file.stat().st_mtime < oldest:
                discard(file)
    free = shutil.disk_usage(folder).free
    if expected > free * SHARE:
        raise OutputError(
            f"{expected / 1e9:,.1f} GB are needed, but {folder} has {free / 1e9:,.1f} GB free. "
            "Free some space, or set another folder: RESNETKIT_CACHE=/path"
        )
