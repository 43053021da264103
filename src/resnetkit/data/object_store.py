"""Objects in a store -> bytes: ``s3://bucket/key`` and ``gs://bucket/key``. Uses obstore.

Credentials come from the variables that obstore reads, such as ``AWS_ACCESS_KEY_ID``. No message
contains them: the library and the store may repeat them, so errors show only the status and the
error code of a response.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ..distribution import install_command
from ..errors import DataError, MissingPackageError
from ..prefetch import prefetch_map

Result = TypeVar("Result")

READERS = 32
"""Number of concurrent requests. A store answers each in 20 to 100 ms, however many there are."""

RETRIES = 6
"""Maximum number of retries for a request that fails temporarily, within `PATIENCE` seconds."""

PATIENCE = 60.0
"""Seconds after the first attempt during which a request is retried."""

ROUNDS = 4
"""Maximum number of attempts if a response arrives incomplete or the network fails."""

_PART = 8 * 2**20  # bytes of a large object per request
_TIMEOUT = "30s"  # for one request
_STATUS = re.compile(r"status(?: code)?: (\d{3})")
_REDIRECT = re.compile(r"[Rr]edirect without LOCATION")
_BAD_KEY = re.compile(r"path: (?:Error parsing )?Path \"(.*?)\"(?= contained|: Encountered)", re.S)
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
# The EC2 instance metadata service, which gives an instance the credentials of its IAM role.
_METADATA = "http://169.254.169.254"
_OTHER_CREDENTIALS = (
    *("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    *("AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_SKIP_SIGNATURE"),
)


class ObjectNotFound(DataError):
    """An object that is not in its bucket."""


class ChangedObject(DataError):
    """An object that is truncated or has the wrong digest."""


def read(
    url: str,
    start: int = 0,
    size: int | None = None,
    *,
    limit: int | None = None,
    check: Callable[[bytes], None] = lambda contents: None,
) -> bytes:
    """Return the bytes of an object, or of a range in it.

    Args:
        url: the object.
        start: where the range begins.
        size: number of bytes in the range; by default, the whole object is read.
        limit: maximum size of an object that is read whole, in bytes.
        check: raises a `DataError` for unexpected bytes.

    Raises:
        ObjectNotFound: there is no such object.
        DataError: the object cannot be read, or arrived incomplete in all `ROUNDS` attempts.
    """
    bucket, key = split_url(url)

    def read_once(store: Any) -> bytes:
        if size is not None:
            contents = bytes(store.get_range(key, start=start, length=size))
            expected = size
        else:
            result = store.get(key)
            expected = int(result.meta["size"])
            if limit is not None and expected > limit:
                raise DataError(f"{url} has {expected:,} bytes; the limit is {limit:,}")
            contents = bytes(result.bytes())
        if len(contents) != expected:
            raise ChangedObject(
                f"{url}: got {len(contents):,} bytes, starting at byte {start:,}; expected "
                f"{expected:,}. It is incomplete or was changed: copy it again"
            )
        try:
            check(contents)
        except DataError as error:
            raise ChangedObject(str(error)) from None
        return contents

    return _repeat(url, bucket, read_once)


def read_large(url: str, size: int) -> Iterator[bytes]:
    """Yield an object of ``size`` bytes in parts, reading ahead.

    Raises the same errors as `read`.
    """

    def read_part(start: int) -> bytes:
        return read(url, start, min(_PART, size - start))

    return prefetch_map(read_part, range(0, size, _PART), workers=4)


def list_objects(url: str) -> list[tuple[str, int]]:
    """Return (key relative to the prefix, size) for each object under a prefix, at any depth.

    Raises:
        DataError: the bucket does not exist or cannot be listed.
    """
    return [(key, int(meta["size"])) for key, meta in _list(url)]


def list_versions(url: str) -> dict[str, tuple[str, int]]:
    """Return the version (see `find_version`) and the size of each object under a prefix, by URL.

    Raises:
        DataError: the bucket does not exist or cannot be listed.
    """
    root = "/".join(part for part in split_url(url) if part)
    return {f"{root}/{key}": _version(meta) for key, meta in _list(url)}


def find_version(url: str) -> tuple[str, int]:
    """Return the version and the size of an object.

    The version is the entity tag, which changes with the contents, or, if the store has none, the
    size and modification time.

    Raises:
        ObjectNotFound: there is no such object.
        DataError: the store does not answer, or refuses the request.
    """
    bucket, key = split_url(url)
    return _version(_repeat(url, bucket, lambda store: store.head(key)))


def _version(meta: Any) -> tuple[str, int]:
    size = int(meta["size"])
    tag = meta.get("e_tag")
    return tag.strip('"') if tag else f"{size}-{meta['last_modified'].timestamp()}", size


def _list(url: str) -> list[tuple[str, Any]]:
    bucket, prefix = split_url(url)

    def list_once(store: Any) -> list[tuple[str, Any]]:
        return _below(prefix, [meta for chunk in store.list(prefix) for meta in chunk])

    return _repeat(url, bucket, list_once)


def list_folder(url: str) -> dict[str, int]:
    """Return {name: size} for the objects directly under a prefix.

    Raises:
        DataError: the bucket does not exist or cannot be listed.
    """
    bucket, prefix = split_url(url)

    def list_once(store: Any) -> list[tuple[str, Any]]:
        return _below(prefix, store.list_with_delimiter(prefix)["objects"])

    return {name: int(meta["size"]) for name, meta in _repeat(url, bucket, list_once)}


def upload(file: Path, url: str) -> None:
    """Write a file as an object; a large file is sent in parts.

    Raises:
        DataError: the object cannot be written.
    """
    bucket, key = split_url(url)
    _repeat(url, bucket, lambda store: store.put(key, file, chunk_size=_PART))


def _below(prefix: str, found: Iterable[Any]) -> list[tuple[str, Any]]:
    """Return the objects with their keys relative to ``prefix``, without folder markers.

    Web consoles create a folder as an empty object ``folder/``; obstore drops the trailing slash.
    """
    start = len(prefix) + 1 if prefix else 0
    below = [(meta["path"][start:], meta) for meta in found]
    folders = {""}
    for key, _ in below:
        while (key := key.rpartition("/")[0]) not in folders:
            folders.add(key)
    return [(key, meta) for key, meta in below if meta["size"] or key not in folders]


def split_url(url: str) -> tuple[str, str]:
    """Split a URL into the bucket, such as ``s3://bucket``, and the key.

    Raises:
        DataError: the URL names no bucket, or contains credentials, which the message omits.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise DataError(
            f"The {scheme}:// URL contains credentials, which commands and logs would show. "
            f"Expected {scheme}://BUCKET/PREFIX. Pass the credentials as environment variables: "
            f"{_variables(scheme)}"
        )
    if not bucket:
        raise DataError(f"{url} names no bucket. Expected {scheme}://BUCKET/PREFIX")
    return f"{scheme}://{bucket}", key.strip("/")


def _variables(scheme: str) -> str:
    if scheme == "gs":
        return "GOOGLE_APPLICATION_CREDENTIALS=FILE"
    return "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..."


def _repeat(url: str, bucket: str, request: Callable[[Any], Result]) -> Result:
    """Return the result of ``request``; repeat it if its response was incomplete.

    The library retries requests that the store answers with an error, but does not always retry a
    request whose response breaks off.
    """
    store = _open(bucket)
    begin = time.monotonic()
    for round in range(1, ROUNDS + 1):
        if round > 1:
            time.sleep(0.1 * 2 ** (round - 1))
        try:
            return request(store)
        except DataError as error:
            is_over = round == ROUNDS or time.monotonic() - begin > PATIENCE
            if is_over or not isinstance(error, ChangedObject):
                raise
            continue
        except Exception as error:  # the library's errors have no common base class
            if not isinstance(error, OSError | ValueError) and not _is_store_error(error):
                raise
            key = _BAD_KEY.search(str(error))
            status = _STATUS.search(_REDIRECT.sub("status: 301", str(error)))
            code = _CODE.search(str(error))
            is_missing = isinstance(error, FileNotFoundError)
        if key is not None:  # another attempt would get the same answer
            raise DataError(
                f"{url}: the key {key[1]!r} cannot be read. Expected one without control "
                "characters, and without an empty part, '.' or '..' between its slashes. Rename "
                "the object, or name another prefix"
            )
        seconds = time.monotonic() - begin
        if status is not None or round == ROUNDS or seconds > PATIENCE:
            # Raised outside the except block, so that the library's error is not attached.
            raise _to_error(
                url,
                bucket,
                status=status and status[1],
                code=code and code[1],
                is_missing=is_missing,
                seconds=seconds,
            )
    raise AssertionError("the last round returns or raises")


def _is_store_error(error: Exception) -> bool:
    return type(error).__module__.startswith("obstore")


def _to_error(
    url: str,
    bucket: str,
    *,
    status: str | None,
    code: str | None,
    is_missing: bool,
    seconds: float,
) -> DataError:
    """Return the error for a failed request; it leaves out the text of the store's response."""
    scheme = bucket[:2]
    said = f"the store at {_endpoint(scheme)} answered {status}{f' ({code})' if code else ''}"
    if code == "NoSuchBucket" or (status == "404" and not is_missing):
        return DataError(
            f"{url}: there is no bucket {bucket} at {_endpoint(scheme)}. Check its name, and "
            "AWS_ENDPOINT_URL if the store is not Amazon S3"
        )
    if is_missing:
        return ObjectNotFound(f"{url}: there is no such object in {bucket}. Check its name")
    if status in ("400", "401", "403"):
        own = scheme == "gs" or bool(os.environ.get("AWS_ACCESS_KEY_ID"))
        said = said if own else f"AWS_ACCESS_KEY_ID is not set; the IAM role was refused: {status}"
        return DataError(
            f"{url}: {said}. Expected credentials that can access {bucket}. Check "
            f"{_variables(scheme)}" + (" and AWS_REGION" if scheme == "s3" else "")
        )
    if status in ("301", "307"):
        return DataError(f"{url}: {said}: the bucket is in another region. Set AWS_REGION")
    if status is not None and status < "500" and status not in ("408", "429"):
        return DataError(f"{url}: {said}. Check the names of the bucket and the object")
    said = said if status else f"the store at {_endpoint(scheme)} did not answer"
    return DataError(
        f"{url}: {said}, even after {seconds:.1f} s of retries. Check the network, "
        "AWS_ENDPOINT_URL and the state of the store, then run the command again"
    )


def _endpoint(scheme: str) -> str:
    """Return the store's host, without any user name and password from its URL."""
    if scheme == "gs":
        return "Google"
    given = next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")
    return urlsplit(given).netloc.rpartition("@")[2] or "Amazon"


@lru_cache(maxsize=16)
def _open(bucket: str) -> Any:
    """Return the library's store object for a bucket.

    Raises:
        DataError: there are no credentials, or the environment variables are not valid.
        MissingPackageError: obstore is not installed.
    """
    scheme = bucket[:2]
    try:
        from obstore.store import from_url
    except ImportError:
        raise MissingPackageError(
            f"{bucket}: reading from object stores needs obstore: {install_command('s3')}"
        ) from None
    if scheme == "s3":
        _check_credentials(bucket)
    options: dict[str, Any] = {
        "client_options": {
            "timeout": _TIMEOUT,
            "connect_timeout": "5s",
            "allow_http": any(os.environ.get(n, "").startswith("http://") for n in _ENDPOINTS),
        },
        "retry_config": {
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=PATIENCE),
            "backoff": {
                "init_backoff": timedelta(seconds=0.1),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        },
    }
    try:
        return from_url(bucket, **options)
    except Exception as error:  # not shown: it may contain a key
        reason = type(error).__name__
    raise DataError(
        f"{bucket}: the environment variables do not describe a store ({reason}). Check "
        f"{_variables(scheme)}" + (" and AWS_ENDPOINT_URL" if scheme == "s3" else "")
    )


def _check_credentials(bucket: str) -> None:
    """Check that there are credentials: without any, obstore can search for a minute.

    Raises:
        DataError: there are no credentials, or only one of the two keys is set.
    """
    given = {n for n in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY") if os.environ.get(n)}
    if len(given) == 2 or (not given and any(map(os.environ.get, _OTHER_CREDENTIALS))):
        return
    if not given:
        metadata = urlsplit(os.environ.get("AWS_METADATA_ENDPOINT") or _METADATA)
        with suppress(OSError):
            address = (metadata.hostname or "", metadata.port or 80)
            socket.create_connection(address, timeout=1).close()
            return
    came = f"only {given.pop()}" if given else "neither AWS_ACCESS_KEY_ID nor an IAM role"
    raise DataError(
        f"{bucket}: no credentials: found {came}. Expected AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY in the environment (AWS_SKIP_SIGNATURE=true for a public bucket). "
        'The files in ~/.aws are not read; run: eval "$(aws configure export-credentials '
        '--format env)"'
    )
