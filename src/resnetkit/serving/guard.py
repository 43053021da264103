"""Check host name, origin and token; add security headers; log each request."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import re
import secrets
import time
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import RecipeError
from .logs import JsonLog
from .metrics import PATHS, Metrics
from .refusals import Refusal

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The page may load only its own files and the images that the user chose."""

HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

OPEN_PATHS = ("/", "/docs", "/openapi.json", "/live", "/ready")
"""Paths that need no token, because they reveal nothing about the model. The page's files need none
either."""

PAGE_FILES = "/page/"

PROBED = ("/live", "/ready", "/metrics")
"""Paths that monitoring polls every few seconds; successful requests to them are not logged."""

PREDICTS = re.compile(rb"POST /predict[ ?]")
DEADLINE = re.compile(r"[1-9][0-9]{0,4}")
REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Guard:
    """Wraps the application: checks each request, sets headers, and logs and counts the answer.

    Args:
        app: the application.
        hosts: the names in ``Host`` that are accepted besides IP addresses and ``localhost``.
            Without this check, a web page could reach the server through a host name that
            resolves to this machine (DNS rebinding).
        token: the token that ``Authorization: Bearer`` must carry, if any.
        metrics: the server's metrics.
        log: the log, which gets a line per request.
        is_stopping: returns whether the server has been asked to stop.
        refusal_before_reading: see `Service.refusal_before_reading`.

    Raises:
        RecipeError: a host name is not valid.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str],
        token: str | None,
        metrics: Metrics,
        log: JsonLog,
        is_stopping: Callable[[], bool],
        refusal_before_reading: Callable[[float | None], Refusal | None],
    ) -> None:
        self._app = app
        self._is_stopping = is_stopping
        self._refusal_before_reading = refusal_before_reading
        self._hosts = {*map(_own_name, hosts), "localhost"}
        self._token = None if token is None else _digest(token.encode())
        self._metrics = metrics
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            return
        exchange = _Exchange(scope, receive, send, self._is_stopping)
        try:
            self._check(scope["path"], exchange.headers)
            await self._app(scope, exchange.receive, exchange.send)
        except Refusal as refusal:
            await exchange.refuse(refusal)
        except Exception as error:  # the application has sent an error response if it could
            self._log.event("error", "error", request=exchange.id, error=repr(error)[:500])
        finally:
            self._record(scope, exchange)

    def refuse_early(self, request: bytes) -> bytes | None:
        """Return the response to a prediction request that a busy server refuses, else None.

        Under overload, most requests are refused, and each refusal takes time away from the engine.
        Refusing here skips the parser and the application.

        Args:
            request: the first bytes of a request.
        """
        start = time.monotonic()
        head, end, _ = request.partition(b"\r\n\r\n")
        if not end or PREDICTS.match(head) is None:
            return None
        headers = _parse_headers(head)
        given = headers.get("x-deadline-ms")
        if given is not None and DEADLINE.fullmatch(given) is None:
            return None  # the application will say what is wrong
        refusal = self._refusal_before_reading(None if given is None else int(given) / 1000)
        if refusal is None:
            return None
        try:
            self._check("/predict", headers)
        except Refusal:
            return None
        request_id = _request_id(headers)
        content = refusal_content(refusal, request_id)
        answered = {
            **HEADERS,
            **refusal_headers(refusal),
            "cache-control": "no-store",
            "connection": "close",
            "content-length": str(len(content)),
            "content-type": "application/json",
            "x-request-id": request_id,
        }
        seconds = time.monotonic() - start
        self._metrics.observe("request", seconds)
        self._metrics.count_request("/predict", refusal.status)
        self._metrics.count_refusal(refusal.reason)
        self._log.event(
            "request",
            request=request_id,
            method="POST",
            path="/predict",
            status=refusal.status,
            seconds=round(seconds, 4),
            reason=refusal.reason,
        )
        lines = [f"{name}: {value}" for name, value in answered.items()]
        first = f"HTTP/1.1 {refusal.status} {HTTPStatus(refusal.status).phrase}"
        return "\r\n".join([first, *lines, "", ""]).encode() + content

    def _record(self, scope: Scope, exchange: _Exchange) -> None:
        seconds = time.monotonic() - exchange.start
        path = scope["path"] if scope["path"] in PATHS else "other"
        self._metrics.observe("request", seconds)
        self._metrics.count_request(path, exchange.status)
        if exchange.reason is not None:
            self._metrics.count_refusal(exchange.reason)
        if exchange.status == 200 and path in PROBED:
            return
        self._log.event(
            "request",
            request=exchange.id,
            method=scope["method"],
            path=path,
            status=exchange.status,
            seconds=round(seconds, 4),
            images=scope["state"].get("images"),
            reason=exchange.reason,
        )

    def _check(self, path: str, headers: dict[str, str]) -> None:
        if "content-length" in headers and "transfer-encoding" in headers:
            message = "Send Content-Length or Transfer-Encoding, not both"
            raise Refusal(400, "bad_http", message)  # a proxy may rely on the other one
        host = headers.get("host", "")
        name = _host_name(host)
        if name is None or not (name in self._hosts or _is_address(name)):
            raise Refusal(
                421,
                "unknown_host",
                "The server does not answer to this host name. Use its IP address, or start it "
                "with --allow-host NAME",
            )
        origin = headers.get("origin")
        ours = (f"http://{host.lower()}", f"https://{host.lower()}")
        if origin is not None and origin.lower() not in ours:
            raise Refusal(403, "other_origin", "Web pages from other sites may not use this server")
        if self._token is None or path in OPEN_PATHS or path.startswith(PAGE_FILES):
            return
        kind, _, given = headers.get("authorization", "").partition(" ")
        given_digest = _digest(given.strip().encode("utf-8", "surrogateescape"))
        # Digests have the same length, and comparing them takes the same time wherever they differ.
        if not hmac.compare_digest(given_digest, self._token) or kind.lower() != "bearer":
            raise Refusal(401, "no_token", "Send the header: Authorization: Bearer TOKEN")


class _Exchange:
    """One request and its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, is_stopping: Callable[[], bool]
    ) -> None:
        self.scope = scope
        self.start = time.monotonic()
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        self.id = _request_id(self.headers)
        self.status = 500
        self.reason: str | None = None
        self._receive = receive
        self._send = send
        self._is_stopping = is_stopping
        lengths = self.headers.get("content-length", "0")
        self._unread = lengths != "0" or "transfer-encoding" in self.headers
        scope.setdefault("state", {})["id"] = self.id

    async def receive(self) -> Message:
        """Receive a part of the body, and note whether it was the last."""
        message = await self._receive()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._unread = False
        return message

    async def send(self, message: Message) -> None:
        """Send part of the answer, with our headers added."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.reason = self.scope["state"].get("reason", self.reason)
            headers = {name.lower(): value for name, value in message.get("headers", [])}
            for name, value in {**HEADERS, "x-request-id": self.id}.items():
                headers.setdefault(name.encode(), value.encode())
            headers.setdefault(b"cache-control", b"no-store")
            # The unread part of a body would be read as the next request. When the server stops,
            # clients should move to another server.
            if self._unread or self._is_stopping():
                headers[b"connection"] = b"close"
            message["headers"] = list(headers.items())
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Send a refusal."""
        self.reason = refusal.reason
        content = refusal_content(refusal, self.id)
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(content)),
        ]
        headers += [(k.encode(), v.encode()) for k, v in refusal_headers(refusal).items()]
        await self.send(
            {"type": "http.response.start", "status": refusal.status, "headers": headers}
        )
        await self.send({"type": "http.response.body", "body": content})


def refusal_content(refusal: Refusal, request_id: str) -> bytes:
    """Return the JSON body of a refusal."""
    content = {"error": refusal.message, "reason": refusal.reason, "request": request_id}
    return json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace")


def refusal_headers(refusal: Refusal) -> dict[str, str]:
    """Return the extra headers for a refusal."""
    if refusal.status == 401:
        return {"www-authenticate": "Bearer"}
    if refusal.retry_after is None:
        return {}
    return {"retry-after": str(max(1, round(refusal.retry_after + 0.5)))}


def _parse_headers(head: bytes) -> dict[str, str]:
    lines = (line.decode("latin-1").partition(":") for line in head.split(b"\r\n")[1:])
    return {name.lower(): value.strip() for name, _, value in lines}


def _request_id(headers: dict[str, str]) -> str:
    given = headers.get("x-request-id", "")
    return given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)


def _digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def _host_name(host: str) -> str | None:
    """Return the name in a ``Host`` header without its port; None if it is malformed.

    >>> _host_name("localhost:8000"), _host_name("[::1]:80"), _host_name("a b")
    ('localhost', '::1', None)
    """
    found: Any = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([a-z0-9_.-]+))(?::\d{1,5})?", host.lower())
    return (found[1] or found[2].rstrip(".")) if found else None


def _own_name(host: str) -> str:
    """Normalize one of this server's names for comparison with the header ``Host``.

    >>> _own_name("Photos.Example.:8443"), _own_name("::1")
    ('photos.example', '::1')
    """
    name = host if _is_address(host) else _host_name(host)
    if name is None:
        raise RecipeError(
            f"{host!r} is not a host name. Write it as in a URL, without http:// or a "
            "path: photos.example"
        )
    return name


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
