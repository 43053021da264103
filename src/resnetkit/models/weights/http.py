"""Download one file over HTTP; resume and retry on new connections as needed."""

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

ATTEMPTS = 5  # consecutive attempts without a new byte before giving up
PAUSE = 1.0  # seconds before the second attempt; doubles with each one after that
TIMEOUT = 30.0  # seconds to wait for data
BRIEF_TIMEOUT = 4.0  # the same, for the single attempt of a brief download
CHUNK = 1 << 20  # bytes

_log = logging.getLogger(__name__)


def check_scheme(url: str) -> None:
    """Raise unless ``url`` is https, or plain http from this machine or from the mirror.

    Raises:
        DownloadError: ``url`` is any other address.
    """
    parts = urlsplit(url)
    mirror = os.environ.get("RESNETKIT_MIRROR", "")
    is_local = parts.hostname in ("127.0.0.1", "::1", "localhost")
    is_mirror = mirror != "" and parts.netloc == urlsplit(mirror).netloc
    if parts.scheme == "https" or (parts.scheme == "http" and (is_local or is_mirror)):
        return
    raise DownloadError(
        f"{url} was not fetched, because anyone on the network could change it: expected an "
        "https:// address"
    )


class PartialDownload:
    """The part of a file that has arrived, and a note to check that the rest belongs to it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path
        self.url = url
        self.note_path = path.with_name(path.name + ".json")

    @property
    def size(self) -> int:
        """The number of bytes that have arrived."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def validator(self) -> str:
        """Return the ETag or date of the version that the bytes belong to; "" if unknown."""
        return str(self._read_note().get("validator") or "") if self.size else ""

    def begin(self, headers: Any) -> None:
        """Write the note for a response that starts from the first byte."""
        total = headers.get("Content-Length")
        note = {"url": self.url, "validator": _version(headers), "total": total}
        write_text(self.note_path, json.dumps(note))

    def mismatch(self, headers: Any) -> str:
        """Return why a response with these headers does not continue the file; "" if it does."""
        sent, _, total = headers.get("Content-Range", "").partition("/")
        if not sent.startswith(f"bytes {self.size}-"):
            return "it is a different range from the one requested"
        note = self._read_note()
        version = _version(headers)
        before = self.validator()
        # An ETag can only be compared with an ETag, and a date with a date.
        comparable = version and version.startswith('"') == before.startswith('"')
        if comparable and version != before:
            return "it is from a different version of the file"
        if total.isdigit() and note.get("total") not in (None, total):
            return f"the file now has {total} bytes instead of {note['total']}"
        return ""

    def _read_note(self) -> dict[str, Any]:
        """Return the note; {} if it is missing, damaged or for another address."""
        if not self.note_path.is_file():
            return {}
        try:
            note = json.loads(self.note_path.read_bytes())
        except ValueError as error:
            _log.info("%s is damaged; starting the download again: %s", self.note_path, error)
            return {}
        return note if isinstance(note, dict) and note.get("url") == self.url else {}

    def discard(self) -> None:
        """Delete the bytes and the note."""
        self.path.unlink(missing_ok=True)
        discard(self.note_path)


def _version(headers: Any) -> str:
    """Return the identifier of a file's version: a strong ETag, or else a date."""
    etag = headers.get("ETag") or ""
    return str(etag if etag and not etag.startswith("W/") else headers.get("Last-Modified") or "")


def complete_download(
    partial: PartialDownload, name: str, *, progress: bool, brief: bool = False
) -> None:
    """Fetch the rest of ``partial``.

    Args:
        partial: the file so far.
        name: its name in the progress bar.
        progress: show a bar on standard error.
        brief: give up at the first failure, or after 4 seconds without data.

    Raises:
        DownloadError: the server refused, or every attempt failed.
    """
    failures = 0
    most = partial.size
    attempts = 1 if brief else ATTEMPTS
    timeout = BRIEF_TIMEOUT if brief else TIMEOUT
    while True:
        try:
            return _receive(partial, name, progress=progress, timeout=timeout)
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if not _is_transient(error):
                raise _make_error(partial, error, attempts=attempts) from error
            failures = 1 if partial.size > most else failures + 1
            if failures >= attempts:
                raise _make_error(partial, error, attempts=attempts) from error
            most = max(most, partial.size)
            pause = PAUSE * 2 ** (failures - 1)
            _log.info("%s: %s; trying again in %.0f s", partial.url, error, pause)
        time.sleep(pause)


def _is_transient(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code in (408, 416, 425, 429) or error.code >= 500
    kinds = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
    return isinstance(error, kinds)


def _make_error(partial: PartialDownload, error: Exception, *, attempts: int) -> DownloadError:
    """Return the error to raise; delete a download that cannot be resumed."""
    if isinstance(error, urllib.error.HTTPError) and not _is_transient(error):
        partial.discard()
        reason = f"the server answered {error.code} {error.reason}; check the address"
    elif _is_transient(error):
        reason = f"{error}" + (f", {attempts} times in a row" if attempts > 1 else "")
        if partial.size:
            reason += "; the bytes received are kept, and the next attempt resumes from there"
    else:  # such as a full disk, or a redirect to plain http
        reason = str(error)
    return DownloadError(f"{partial.url} could not be fetched: {' '.join(reason.split())}")


def _receive(partial: PartialDownload, name: str, *, progress: bool, timeout: float) -> None:
    """Request the missing bytes once, and append them."""
    request = urllib.request.Request(partial.url, headers={"User-Agent": "resnetkit"})
    validator = partial.validator()
    if validator:
        request.add_header("Range", f"bytes={partial.size}-")
        request.add_header("If-Range", validator)  # send the whole file if it has changed
    else:
        partial.discard()
    try:
        response = urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # we have more bytes than the file on the server
            partial.discard()
        raise
    with response:
        resumed = response.status == 206
        if resumed and (mismatch := partial.mismatch(response.headers)):
            partial.discard()
            raise http.client.HTTPException(
                f"the response does not continue the partial file: {mismatch}"
            )
        if not resumed:
            partial.begin(response.headers)
        with partial.path.open("ab" if resumed else "wb") as file:
            _copy(response, file, name=name, progress=progress)


def _copy(response: Any, file: BinaryIO, *, name: str, progress: bool) -> None:
    length = response.headers.get("Content-Length")
    if length is not None and not length.isdecimal():
        raise http.client.HTTPException(f"the server sent Content-Length {length!r}")
    expected = None if length is None else file.tell() + int(length)
    with _progress_bar(name, file.tell(), total=expected, progress=progress) as advance:
        while block := response.read(CHUNK):
            file.write(block)
            advance(file.tell())
    if expected is not None and file.tell() != expected:
        raise http.client.HTTPException(
            f"the response ended after {file.tell()} of {expected} bytes"
        )


@contextlib.contextmanager
def _progress_bar(
    name: str, done: int, *, total: int | None, progress: bool
) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of bytes received so far."""
    if not progress or total is None:
        yield lambda _: None
        return
    from ...progress import bar  # imports rich, so only when there is something to show

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
