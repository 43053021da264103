"""One file over as many connections as it takes: resumed where it broke, retried with pauses."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from ...errors import DownloadError
from ...storage import discard, write_text

ATTEMPTS = 5  # in a row without a single new byte
PAUSE = 1.0  # seconds before the second attempt; doubles with each
TIMEOUT = 30.0  # seconds without an answer
BRIEF = 4.0  # the same, for a single attempt at what can be done without
CHUNK = 1 << 20

_log = logging.getLogger(__name__)


def check_scheme(url: str) -> None:
    parts, mirror = urlsplit(url), os.environ.get("RESNETKIT_MIRROR", "")
    here = parts.hostname in ("127.0.0.1", "::1", "localhost")
    plain = here or (mirror != "" and parts.netloc == urlsplit(mirror).netloc)
    if parts.scheme == "https" or (parts.scheme == "http" and plain):
        return
    raise DownloadError(
        f"{url} is not fetched, since anybody on the way could change it: expected "
        "an https:// address"
    )


class Split:
    """What has arrived of a file so far, and what tells whether the rest would belong to it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path, self.url = path, url
        self.note = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> str:
        """The ETag or date of the version that the bytes are of; "" where none is known."""
        return str(self._noted().get("validator") or "") if self.size else ""

    def begin(self, headers: Any) -> None:
        total = headers.get("Content-Length")
        note = {"url": self.url, "validator": _version(headers), "total": total}
        write_text(self.note, json.dumps(note))

    def misfit(self, headers: Any) -> str:
        """Why the rest with these ``headers`` does not continue what is here; "" if it does."""
        given, _, total = headers.get("Content-Range", "").partition("/")
        if not given.startswith(f"bytes {self.size}-"):
            return "it is another part than was asked for"
        noted, version = self._noted(), _version(headers)
        before = self.validator()
        comparable = version and version.startswith('"') == before.startswith('"')  # ETags, dates
        if comparable and version != before:
            return "it is of another version of the file"
        if total.isdigit() and noted.get("total") not in (None, total):
            return f"the file has {total} bytes now, it had {noted['total']}"
        return ""

    def _noted(self) -> dict[str, Any]:
        """What was written down at the beginning; {} for nothing, and for a damaged note."""
        if not self.note.is_file():
            return {}
        try:
            note = json.loads(self.note.read_bytes())
        except ValueError as error:
            _log.info("%s is damaged, so the download begins anew: %s", self.note, error)
            return {}
        return note if isinstance(note, dict) and note.get("url") == self.url else {}

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        discard(self.note)


def _version(headers: Any) -> str:
    """What tells one version of a file from the next: a strong ETag, or else a date."""
    etag = headers.get("ETag") or ""
    return str(etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or "")


def fill(part: Split, name: str, progress: bool, brief: bool = False) -> None:
    """Bring ``part`` to its full size, over as many connections as it takes; ``brief`` gives up at
    the first that fails or stays silent for a few seconds."""
    failures, most = 0, part.size
    attempts, timeout = (1, BRIEF) if brief else (ATTEMPTS, TIMEOUT)
    while True:
        try:
            return _receive(part, name, progress, timeout)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if not _may_pass(error):
                raise _failed(part, error, attempts) from error
            failures = 1 if part.size > most else failures + 1
            if failures >= attempts:
                raise _failed(part, error, attempts) from error
            most, pause = max(most, part.size), PAUSE * 2 ** (failures - 1)
            _log.info("%s: %s; trying again in %.0f s", part.url, error, pause)
        time.sleep(pause)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 416, 425, 429) or error.code >= 500
    kinds = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
    return isinstance(error, kinds)


def _failed(part: Split, error: Exception, attempts: int) -> Exception:
    if isinstance(error, urllib.error.HTTPError) and not _may_pass(error):
        part.discard()
        said = f"the server answers {error.code} {error.reason}; check the address"
    elif _may_pass(error):
        said = f"{error}" + (f", {attempts} times in a row" if attempts > 1 else "")
        if part.size:
            said += "; what has arrived is kept, and the next attempt goes on from there"
    else:  # such as a full disk, or an address that is not fetched
        said = str(error)
    return DownloadError(f"{part.url} could not be fetched: {' '.join(said.split())}")


def _receive(part: Split, name: str, progress: bool, timeout: float) -> None:
    request = urllib.request.Request(part.url, headers={"User-Agent": "resnetkit"})
    validator = part.validator()
    if validator:
        request.add_header("Range", f"bytes={part.size}-")
        request.add_header("If-Range", validator)  # the whole file, if it has changed
    else:
        part.discard()
    try:
        response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what we have is no beginning of what is there
            part.discard()
        raise
    with response:
        resumed = response.status == 206
        if resumed and (misfit := part.misfit(response.headers)):
            part.discard()
            raise http.client.HTTPException(f"the answer does not fit what is here: {misfit}")
        if not resumed:
            part.begin(response.headers)
        with part.path.open("ab" if resumed else "wb") as file:
            _copy(response, file, name, progress)


def _copy(response: Any, file: BinaryIO, name: str, progress: bool) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and not length.isdecimal():
        raise http.client.HTTPException(f"the server answers with the Content-Length {length!r}")
    expected = None if length is None else file.tell() + int(length)
    with _bar(name, file.tell(), expected, progress) as advance:
        while block := response.read(CHUNK):
            file.write(block)
            advance(file.tell())
    if expected is not None and file.tell() != expected:
        raise http.client.HTTPException(f"it ended after {file.tell()} of {expected} bytes")


@contextlib.contextmanager
def _bar(
    name: str, done: int, total: int | None, progress: bool
) -> Iterator[Callable[[int], None]]:
    """Yields what is called with the number of bytes so far."""
    if not progress or total is None:
        yield lambda _: None
        return
    from ...progress import bar  # draws with rich, which only shows when there is something to show

    shown = 0
    with bar(f"{name} (MiB)", -(-total // CHUNK)) as advance:

        def show(size: int) -> None:
            nonlocal shown
            while shown < size // CHUNK:
                shown += 1
                advance("")

        show(done)
        yield show


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, url: str
    ) -> Any:
        check_scheme(url)
        return super().redirect_request(req, fp, code, msg, headers, url)
