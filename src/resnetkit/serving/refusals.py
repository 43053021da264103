"""Why a request is not answered with a prediction."""

from __future__ import annotations

DEADLINE_PASSED = "The deadline passed before the answer was computed"


class Refusal(Exception):
    """An answer other than 200.

    Args:
        status: the HTTP status.
        reason: one word for programs and metrics, such as ``queue_full``.
        message: what is wrong, what was expected, and what to do.
        retry_after: seconds after which another attempt may succeed; None if none will.
    """

    def __init__(
        self, status: int, reason: str, message: str, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class ClientGone(Exception):
    """The client closed the connection before it got its answer."""
