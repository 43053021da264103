"""Deadlines where uvicorn would wait forever: for headers, and for clients to read answers.

The application limits the time for bodies; see body.py.

See docs/decisions/0008-the-server-is-one-process.md for the choice of uvicorn.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .bounds import Bounds
from .metrics import Metrics

READ_BYTES = 16 * 2**10
"""Maximum bytes per read. Two more reads may follow after a body is found to be too large."""

LINGER_BYTES = 32 * 2**10
LINGER_SECONDS = 2.0
"""How many bytes are still read and discarded, and for how long, after a request with a large body
is refused. Closing a connection with unread bytes resets it, and the client may lose the answer."""

BODY_LINGER_SECONDS = 10.0
"""How long the rest of a body within the size limit is still read: most clients send the whole
photo before they read the answer."""

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)

LAST_SECONDS = 1.0
"""How long connections without a request may still send one once the server is stopping."""

TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\n"
    b"connection: close\r\n\r\n"
)


class DeadlineProtocol(H11Protocol):
    """A connection whose peer has limited time to send a request and to read the answer."""

    bounds: Bounds
    metrics: Metrics
    refuse_early: Callable[[bytes], bytes | None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._received = 0
        self._is_stopping = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header timer."""
        transport.set_write_buffer_limits(0)  # call pause_writing as soon as the peer stops reading
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]
        self._closing = _ClosingTransport(self, transport)
        super().connection_made(self._closing)
        if len(self.connections) > self.bounds.connections:
            self.metrics.count_refusal("too_many_connections")
            transport.write(TOO_MANY)
            transport.close()
            return
        self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        """Handle data, unless the answer is complete and the connection is closing."""
        if self._closing.discard(len(data)):
            return
        if self._is_idle():
            self._received = 0
            refusal = type(self).refuse_early(data)
            if refusal is not None:
                self._stop_header_timer()
                length = LENGTH.search(data)
                self._closing.finish(refusal, None if length is None else int(length[1]))
                return
        self._received += len(data)
        try:
            super().data_received(data)
        except h11.ProtocolError:  # malformed data while an answer is being sent
            self.metrics.count_refusal("bad_http")
            self._closing.abort()
            return
        if self.conn.their_state is h11.IDLE:
            self._start_header_timer()
        else:  # the application waits for the body, with its own time limit
            self._stop_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._stop_header_timer()
        self._closing.forget()
        self._stop_write_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse input that is not HTTP."""
        cycle = self.cycle
        if cycle is None or cycle.response_started:
            self.metrics.count_refusal("bad_http")
        if cycle is not None and not cycle.response_complete:
            cycle.scope["state"]["is_damaged"] = True  # the application counts and logs it
            cycle.disconnected = True  # the body is malformed: no other answer is possible
            cycle.message_event.set()
            if cycle.response_started:
                self._closing.abort()
                return
        super().send_400_response(msg)

    def shutdown(self) -> None:
        """Close the connection after the answer to its request.

        A new connection, or one that has sent part of a request, has `LAST_SECONDS` to send the
        rest, and is still answered. Answers then ask clients to close the connection.
        """
        self._is_stopping = True
        self._closing.hurry()
        is_new = self.cycle is None
        if (is_new or self.conn.trailing_data[0]) and not self._closing.is_closing():
            self.loop.call_later(LAST_SECONDS, self._shut_down_idle)
        else:
            self._shut_down_idle()

    def _shut_down_idle(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # already closing
            self._closing.abort()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection."""
        try:
            super().timeout_keep_alive_handler()
        except h11.LocalProtocolError:
            self._closing.abort()

    def pause_writing(self) -> None:
        """Start the timer for the peer to read what was written."""
        super().pause_writing()
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(
                self.bounds.write_seconds, self.cut, "slow_reader"
            )

    def resume_writing(self) -> None:
        """Stop the timer that `pause_writing` started."""
        self._stop_write_timer()
        super().resume_writing()

    def cut(self, reason: str) -> None:
        """Count a refusal, and end the connection at once."""
        self.metrics.count_refusal(reason)
        self._closing.abort()

    def _is_idle(self) -> bool:
        """Return whether the next byte begins a request."""
        return (
            self.conn.their_state is h11.IDLE
            and self.conn.our_state is h11.IDLE
            and not self.conn.trailing_data[0]
        )

    def is_peer_sending(self) -> bool:
        """Return whether part of the request may still arrive."""
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def body_length(self) -> int | None:
        """Return the ``Content-Length`` of the last request, if any."""
        lengths = [int(value) for name, value in self.headers or () if name == b"content-length"]
        return lengths[0] if lengths else None

    def patience(self, length: int | None) -> tuple[int, float]:
        """Return how many more bytes of a body to discard, and for how many seconds.

        Args:
            length: the length of the whole body, if known.
        """
        is_too_long = length is not None and length > self.bounds.body_bytes
        if is_too_long or self.conn.their_state is h11.ERROR:  # only a valid body has an end
            return LINGER_BYTES, LAST_SECONDS if self._is_stopping else LINGER_SECONDS
        size = LINGER_BYTES + max(0, self.bounds.body_bytes - self._received)
        if self._is_stopping:
            return size, LAST_SECONDS
        return size, max(LINGER_SECONDS, min(BODY_LINGER_SECONDS, self.bounds.body_seconds))

    def _start_header_timer(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(
                self.bounds.header_seconds, self.cut, "slow_headers"
            )

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None


class _ClosingTransport(asyncio.Transport):
    """A transport that closes in two steps if the peer is still sending.

    It first closes our side and discards incoming bytes, within the limits that
    `DeadlineProtocol.patience` returns; then it closes the connection.
    """

    def __init__(self, protocol: DeadlineProtocol, transport: asyncio.Transport) -> None:
        super().__init__()
        self._protocol = protocol
        self._transport = transport
        self._left: int | None = None
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Close once the peer has our answer."""
        if self._left is not None:
            return
        if not self._protocol.is_peer_sending() or self._transport.is_closing():
            self._transport.close()
            return
        self._transport.resume_reading()
        self._linger(self._protocol.body_length())

    def finish(self, answer: bytes, length: int | None) -> None:
        """Write the whole answer to a request whose body is not read, and close."""
        self._transport.write(answer)
        self._linger(length)

    def _linger(self, length: int | None) -> None:
        self._left, seconds = self._protocol.patience(length)
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._timer = self._protocol.loop.call_later(seconds, self.abort)

    def hurry(self) -> None:
        """Close within `LAST_SECONDS` if all that is left is to discard the rest of a body."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = self._protocol.loop.call_later(LAST_SECONDS, self.abort)

    def discard(self, size: int) -> bool:
        """Return whether to discard incoming bytes; close at once if they exceed the limit."""
        if self._left is None:
            return False
        self._left -= size
        if self._left < 0:
            self.abort()
        return True

    def forget(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def abort(self) -> None:
        """Close at once, and discard what has not been sent yet."""
        self._transport.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closing."""
        return self._left is not None or self._transport.is_closing()

    def write(self, data: Any) -> None:
        """Write to the connection."""
        if not self.is_closing():
            self._transport.write(data)

    def pause_reading(self) -> None:
        """Stop reading."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return information about the connection."""
        return self._transport.get_extra_info(name, default)


def protocol_class(
    bounds: Bounds,
    metrics: Metrics,
    refuse_early: Callable[[bytes], bytes | None] = lambda request: None,
) -> type[DeadlineProtocol]:
    """Return a protocol class with the limits built in, as uvicorn expects a class.

    Args:
        bounds: the limits.
        metrics: the server's metrics.
        refuse_early: given the first bytes of a request, returns the whole response if the request
            will be refused regardless of the rest, else None.
    """

    class Protocol(DeadlineProtocol):
        pass

    Protocol.bounds = bounds
    Protocol.metrics = metrics
    Protocol.refuse_early = staticmethod(refuse_early)
    return Protocol
