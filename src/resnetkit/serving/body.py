"""Extract the images from the body of a request, within the limits."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from .bounds import Bounds
from .refusals import ClientGone, Refusal

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks


class Upload(NamedTuple):
    """One image in a request: the name that the client gave it, and its bytes."""

    name: str
    contents: bytes


class BodyMemory:
    """Counts the bytes of all bodies in memory, and limits their total."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._bytes = 0

    @contextmanager
    def body(self) -> Iterator[Body]:
        """Yield an empty body, whose bytes are counted until the context ends."""
        body = Body(self, self._bounds)
        try:
            yield body
        finally:
            body.contents = b""  # no thread may have taken the contents yet
            self._bytes -= body.size

    def add(self, size: int) -> None:
        """Count more bytes.

        Raises:
            Refusal: 503 if the total exceeds the limit.
        """
        if self._bytes + size > self._bounds.bodies_bytes:
            raise Refusal(
                503, "memory", "The memory for uploads is full. Try again later", retry_after=1
            )
        self._bytes += size


class Body:
    """The body of one request.

    Attributes:
        size: how many bytes have arrived.
        contents: the whole body, once it has been read.
    """

    def __init__(self, memory: BodyMemory, bounds: Bounds) -> None:
        self._memory = memory
        self._bounds = bounds
        self.size = 0
        self.contents = b""

    async def read(self, request: Request) -> None:
        """Read the whole body.

        Raises:
            Refusal: 413 if ``Content-Length``, or what has arrived, exceeds `Bounds.body_bytes`;
                408 if the body arrives too slowly; 503 if there is no memory for it.
            ClientGone: the client closed the connection.
        """
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._bounds.body_bytes:
            raise self._too_large()
        chunks: list[bytes] = []
        try:
            async with asyncio.timeout(self._bounds.body_seconds):
                while True:
                    message = await request.receive()
                    if message["type"] != "http.request":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    if self.size + len(chunk) > self._bounds.body_bytes:
                        raise self._too_large()
                    self._memory.add(len(chunk))
                    self.size += len(chunk)
                    chunks.append(chunk)
                    if not message.get("more_body", False):
                        self.contents = b"".join(chunks)
                        return
        except TimeoutError:
            seconds = f"{self._bounds.body_seconds:g} seconds"
            raise Refusal(408, "slow_body", f"The body did not arrive within {seconds}") from None

    def _too_large(self) -> Refusal:
        most = f"{self._bounds.body_bytes:,} bytes"
        return Refusal(
            413, "body_too_large", f"The body is larger than {most}. Send smaller or fewer images"
        )


def split_images(body: bytes, content_type: str, most: int) -> list[Upload]:
    """Return the images in a body.

    Args:
        body: the bytes of an image, or a multipart form with one part per image.
        content_type: the header ``Content-Type``; unless it is ``multipart/form-data``, the body is
            taken as one image.
        most: the maximum number of images.

    Raises:
        Refusal: 400 if the form is damaged or has no parts, 413 if it has too many parts.
    """
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data":
        return [Upload("<bytes>", body)]
    boundary = options.get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Refusal(400, "bad_form", "A multipart form needs a boundary of 1 to 70 characters")
    # The parser is slow on lines that merely begin like a boundary.
    if body.count(b"\r\n--" + boundary) > most + 1:
        raise _too_many_images(most)
    form = _Form(most)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "bad_form", f"The multipart form is damaged ({error})") from None
    if not form.is_complete:
        raise Refusal(400, "bad_form", "The multipart form ends too early")
    if not form.uploads:
        raise Refusal(400, "bad_form", "The multipart form has no parts; expected images")
    return form.uploads


def _too_many_images(most: int) -> Refusal:
    return Refusal(
        413, "too_many_images", f"A request can have at most {most} images. Send several requests"
    )


class _Form:
    """Collects the parts of a form, whatever their names."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.uploads: list[Upload] = []
        self.is_complete = False
        self._name = bytearray()
        self._value = bytearray()
        self._disposition = b""
        self._contents = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        """Return the parser's callbacks."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_name,
            "on_header_value": self._add_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add_contents,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        if len(self.uploads) == self._most:
            raise _too_many_images(self._most)
        self._disposition = b""
        self._contents = bytearray()

    def _add_name(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _add_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._name.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._name.clear()
        self._value.clear()

    def _add_contents(self, data: bytes, start: int, end: int) -> None:
        self._contents += memoryview(data)[start:end]

    def _end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename", options.get(b"name", b"")).decode("utf-8", "replace")
        self.uploads.append(Upload(name[:255] or "<bytes>", bytes(self._contents)))
        self._contents = bytearray()

    def _complete(self) -> None:
        self.is_complete = True
