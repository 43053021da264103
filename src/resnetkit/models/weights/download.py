"""Download files from ``https://`` addresses into PyTorch's cache, once, and check them.

An interrupted download is resumed where it stopped, by this process or a later one, and retried
with growing pauses. If several processes want the same file, one downloads it and the others wait.
The SHA-256 is written next to the file (in the format of ``sha256sum -c``) and checked on every
use.

Environment:
    ``TORCH_HOME``: the cache is ``$TORCH_HOME/hub/checkpoints`` (``~/.cache/torch`` by default).
    ``RESNETKIT_MIRROR``: an address that serves the published files instead of
    ``https://download.pytorch.org``, under the same paths.
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
from .http import PartialDownload, check_scheme, complete_download

PUBLISHED_HOST = "https://download.pytorch.org"

_OTHER_CACHE = "set TORCH_HOME to a folder you can write to"

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
    """Return the local path of the file at ``url``, downloading it if it is not cached.

    Args:
        url: ``https://``; plain ``http://`` only from this machine or from the mirror.
        folder: where to keep the file; by default PyTorch's cache.
        file_name: by default the last part of the address. If it ends with 8 or more hex digits
            (``resnet18-f37072fd.pth``), they are the first digits of the file's SHA-256; decimal
            digits alone are taken for a date.
        progress: show a bar on standard error.
        check_hash: compare the file's SHA-256 with those digits.
        validate: called with the downloaded file before it is kept, if its name has no digits to
            compare. If it raises, the file is deleted and the error propagates.
        brief: give up at the first failure, or after 4 seconds without data.

    Raises:
        DownloadError: it cannot be fetched, or it is not cached and RESNETKIT_OFFLINE is set.
        WeightsError: two downloads in a row lack the SHA-256 given in the file name.
    """
    address = _resolve_address(url)
    folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / (file_name or _cache_name(url))
    prefix = hash_in_name(path.name) if check_hash else ""
    try:
        with _cache_lock(path) as unwritable:
            if path.is_file() and _is_intact(path, prefix, record=not unwritable):
                return path
            if unwritable:
                raise DownloadError(
                    f"{path} is missing or damaged, and cannot be written ({unwritable}); "
                    f"{_OTHER_CACHE}, or ask the owner to delete it"
                )
            if is_offline():
                raise DownloadError(
                    f"{path} is missing or damaged, and RESNETKIT_OFFLINE is set: fetch {url} "
                    "on another machine and put it there, or unset RESNETKIT_OFFLINE"
                )
            _download(
                address,
                path,
                prefix=prefix,
                progress=progress,
                validate=validate,
                brief=brief,
            )
        return path
    except WeightsError:
        raise
    except OSError as error:  # such as another user's files in a shared cache
        raise DownloadError(f"{path} cannot be used ({error}); {_OTHER_CACHE}") from error


def is_offline() -> bool:
    """Return whether RESNETKIT_OFFLINE forbids the network."""
    return os.environ.get("RESNETKIT_OFFLINE", "0") not in ("", "0")


def _resolve_address(url: str) -> str:
    """Return the address to fetch: at the mirror, if there is one for this host."""
    mirror = os.environ.get("RESNETKIT_MIRROR", "").rstrip("/")
    if mirror and url.startswith(PUBLISHED_HOST + "/"):
        url = mirror + url.removeprefix(PUBLISHED_HOST)
    check_scheme(url)
    return url


def _cache_name(url: str) -> str:
    name = Path(unquote(urlsplit(url).path)).name
    if not name or "\0" in name:
        raise DownloadError(f"{url} names no file; expected an address that ends with a file name")
    if hash_in_name(name):
        return name
    # Without a hash a name is ambiguous: many addresses end with "model.pth".
    return f"{hashlib.sha256(url.encode()).hexdigest()[:12]}_{name}"


def hash_in_name(name: str) -> str:
    """Return the first digits of the SHA-256 that a published file name ends with; "" if none.

    Decimal digits alone are more often a date than a hash. None of our published files ends so.
    """
    match = re.search(r"-(?!\d+\.)([0-9a-f]{8,64})\.[^.]+$", name)
    return match[1] if match else ""


@contextlib.contextmanager
def _cache_lock(path: Path) -> Iterator[str]:
    """Hold the file's lock and yield "", or yield the reason why the cache is read-only.

    In a shared cache, the folder or the lock may belong to another user. Even then, the
    file can be read.
    """
    unwritable = ""
    folder = path.parent
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DownloadError(f"{folder} cannot be created ({error}); {_OTHER_CACHE}") from error
        if os.access(folder, os.W_OK):
            try:
                held.enter_context(locked(path.with_name(f".{path.name}.lock")))
            except OSError as error:
                unwritable = str(error)
        else:
            unwritable = f"{folder} cannot be written to"
        yield unwritable


def _record_path(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _is_intact(path: Path, prefix: str, *, record: bool) -> bool:
    """Return whether a file has its recorded SHA-256, and the SHA-256 digits in its name.

    If none is recorded yet and ``record`` is True, the file's SHA-256 is recorded.
    """
    found = sha256(path)
    recorded = _read_record(path)
    for expected in (recorded, prefix):
        if not found.startswith(expected):
            _log.warning(
                "%s is damaged: its SHA-256 is %s..., expected %s...",
                path,
                found[:16],
                expected[:16],
            )
            return False
    if not recorded and record:
        _write_record(path, found)
    return True


def _read_record(path: Path) -> str:
    record = _record_path(path)
    match = re.match(b"[0-9a-f]{64}", record.read_bytes()) if record.is_file() else None
    return match[0].decode() if match else ""


def _write_record(path: Path, digest: str) -> None:
    write_text(_record_path(path), f"{digest}  {path.name}\n")


def _download(
    url: str,
    path: Path,
    *,
    prefix: str,
    progress: bool,
    validate: Callable[[Path], object] | None,
    brief: bool,
) -> None:
    partial = PartialDownload(path.with_name(f".{path.name}.part"), url)
    for _ in range(2):  # if the file arrives damaged, start over once
        complete_download(partial, path.name, progress=progress, brief=brief)
        digest = sha256(partial.path)
        if digest.startswith(prefix):
            if validate and not prefix:
                try:
                    validate(partial.path)
                except Exception:
                    partial.discard()
                    raise
            publish(partial.path, path)
            _write_record(path, digest)
            partial.discard()
            return
        _log.warning("%s arrived with SHA-256 %s..., expected %s...", url, digest[:8], prefix)
        partial.discard()
    raise WeightsError(
        f"{url} has SHA-256 {digest[:16]}..., but its name says {prefix}...: the server, or a "
        "proxy in between, sent a different file. It was not kept. Try another network, or set "
        "RESNETKIT_MIRROR"
    )
