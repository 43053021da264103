"""Files from an ``https://`` address, into PyTorch's own cache: whole, checked, fetched once.

A download that breaks is resumed where it stopped, by this process or by a later one, and retried
with growing pauses. Processes that want the same file wait for one of them. The full SHA-256 is
written beside the file (as ``sha256sum -c`` reads it) and checked again whenever it is used.

Environment:
    ``TORCH_HOME``: the cache is ``$TORCH_HOME/hub/checkpoints`` (``~/.cache/torch`` by default).
    ``RESNETKIT_MIRROR``: an address that has the published files in place of
    ``https://download.pytorch.org``, under the same path.
    ``RESNETKIT_OFFLINE=1``: never use the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import torch

from ...errors import DownloadError, WeightsError
from ...storage import locked, publish, sha256, write_text
from .http import Split, check_scheme, fill

PUBLISHED_HOST = "https://download.pytorch.org"

_log = logging.getLogger(__name__)


def fetch(
    url: str,
    folder: Path | None = None,
    file_name: str | None = None,
    *,
    progress: bool = True,
    check_hash: bool = True,
    validate: Callable[[Path], object] | None = None,
    brief: bool = False,
) -> Path:
    """The local path of the file at ``url``, downloaded if it is not there yet.

    Args:
        url: ``https://``; plain ``http://`` only from this machine or from the mirror.
        folder: where to keep it; by default PyTorch's cache.
        file_name: by default the last part of the address. Where that ends with 8 or more hex
            digits (``resnet18-f37072fd.pth``), they are the beginning of the file's SHA-256.
        progress: show a bar on standard error.
        check_hash: hold the file to those digits.
        validate: called with what has arrived before it gets its name, where no hash tells whether
            it is whole; what it raises goes on, and the file is not kept.

    Raises:
        DownloadError: it cannot be fetched, or RESNETKIT_OFFLINE is set and it is not there.
        WeightsError: what arrives has another hash than its name says, again and again.
    """
    address = _address(url)
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / (file_name or _name(url))
    prefix = hash_in_name(path.name) if check_hash else ""
    try:
        return _fetch_once(url, address, path, prefix, progress, validate, brief)
    except WeightsError:
        raise
    except OSError as error:  # such as files of another user in a shared cache
        raise DownloadError(f"{path} cannot be used ({error}); {_OTHER_CACHE}") from error


def _fetch_once(
    url: str,
    address: str,
    path: Path,
    prefix: str,
    progress: bool,
    validate: Callable[[Path], object] | None,
    brief: bool,
) -> Path:
    with _one_at_a_time(path) as unwritable:
        if path.is_file() and _is_intact(path, prefix, record=not unwritable):
            return path
        if unwritable:
            raise DownloadError(
                f"{path} is missing or damaged, and cannot be written ({unwritable}); "
                f"{_OTHER_CACHE}, or ask its owner to delete it"
            )
        if is_offline():
            raise DownloadError(
                f"{path} is missing or damaged, and RESNETKIT_OFFLINE is set: fetch {url} "
                "on another machine and put it there, or unset RESNETKIT_OFFLINE"
            )
        _download(address, path, prefix, progress, validate, brief)
    return path


def is_offline() -> bool:
    """Whether RESNETKIT_OFFLINE forbids the network."""
    return os.environ.get("RESNETKIT_OFFLINE", "0") not in ("", "0")


def _address(url: str) -> str:
    mirror = os.environ.get("RESNETKIT_MIRROR", "").rstrip("/")
    if mirror and url.startswith(PUBLISHED_HOST + "/"):
        url = mirror + url.removeprefix(PUBLISHED_HOST)
    check_scheme(url)
    return url


def _name(url: str) -> str:
    name = Path(unquote(urlsplit(url).path)).name
    if not name:
        raise DownloadError(f"{url} names no file; expected an address that ends with a file name")
    if hash_in_name(name):
        return name
    # Only a name with a hash means one file; many addresses end with "model.pth".
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}_{name}"


def hash_in_name(name: str) -> str:
    """The beginning of the SHA-256 that a published name ends with; "" if there is none."""
    found = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
    return found[1] if found else ""


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[str]:
    """Holds the file's lock. In a cache that others have filled the folder or the lock may be
    theirs: then it gives the reason why ``path`` may be read but not written, instead of ""."""
    unwritable, folder = "", path.parent
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(f"{folder} cannot be made ({error}); {_OTHER_CACHE}") from error
        if os.access(folder, os.W_OK):
            try:
                held.enter_context(locked(path.with_name(f".{path.name}.lock")))
            except OSError as error:
                unwritable = str(error)
        else:
            unwritable = f"{folder} cannot be written to"
        yield unwritable


_OTHER_CACHE = "set TORCH_HOME to a folder that can"


def _record_of(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _is_intact(path: Path, prefix: str, record: bool) -> bool:
    """True for a file with the recorded hash; what is not recorded yet is checked, and recorded if
    ``record``."""
    found, recorded = sha256(path), _recorded(path)
    for expected in (recorded, prefix):
        if not found.startswith(expected):
            said = f"{found[:16]}..., expected {expected[:16]}..."
            _log.warning("%s is damaged: its SHA-256 is %s", path, said)
            return False
    if not recorded and record:
        _write_record(path, found)
    return True


def _recorded(path: Path) -> str:
    record = _record_of(path)
    found = re.match(b"[0-9a-f]{64}", record.read_bytes()) if record.is_file() else None
    return found[0].decode() if found else ""


def _write_record(path: Path, digest: str) -> None:
    write_text(_record_of(path), f"{digest}  {path.name}\n")


def _download(
    url: str,
    path: Path,
    prefix: str,
    progress: bool,
    validate: Callable[[Path], object] | None = None,
    brief: bool = False,
) -> None:
    part = Split(path.with_name(f".{path.name}.part"), url)
    for _ in range(2):  # a second time from the first byte, if it arrives damaged
        fill(part, path.name, progress, brief)
        digest = sha256(part.path)
        if digest.startswith(prefix):
            if validate and not prefix:
                try:
                    validate(part.path)
                except Exception:
                    part.discard()
                    raise
            publish(part.path, path)
            _write_record(path, digest)
            part.discard()
            return
        _log.warning("%s arrived with the SHA-256 %s..., not %s...", url, digest[:8], prefix)
        part.discard()
    raise WeightsError(
        f"{url} has the SHA-256 {digest[:16]}..., but its name promises {prefix}...: the host (or "
        "something on the way) serves another file. Nothing was kept; try another network or set "
        "RESNETKIT_MIRROR"
    )
