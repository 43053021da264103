"""Write log lines as JSON to standard output, in a thread so that a slow reader blocks nothing.

The lines identify requests by id, and never contain a token, or an image's content or name.
"""

from __future__ import annotations

import contextlib
import json
import logging
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Any, TextIO

MOST_LINES = 10_000
"""Maximum number of lines that may wait to be written; any more are dropped and counted."""


class JsonLog:
    """Writes log lines, including those that `JsonHandler` makes from libraries' log records.

    Args:
        stream: where the lines go.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._lines: queue.Queue[str | None] = queue.Queue(MOST_LINES)
        self._lost = 0
        self._thread = threading.Thread(target=self._write, name="log", daemon=True)
        self._thread.start()

    def event(self, event: str, level: str = "info", **fields: Any) -> None:
        """Log an event; fields that are None are left out."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"time": now, "level": level, "event": event, **fields}
        if self._lost:
            content["lost_lines"] = self._lost
        line = json.dumps({k: v for k, v in content.items() if v is not None}, default=str)
        try:
            self._lines.put_nowait(line + "\n")
            self._lost = 0
        except queue.Full:
            self._lost += 1

    def close(self, timeout: float = 1.0) -> None:
        """Write the lines that are still queued, as time permits."""
        with contextlib.suppress(queue.Full):
            self._lines.put(None, timeout=timeout)
        self._thread.join(timeout)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # no reader, or the disk is full
                self._stream.write(line)
                self._stream.flush()


class JsonHandler(logging.Handler):
    """Passes log records from libraries to a `JsonLog`."""

    def __init__(self, log: JsonLog) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record, with the type of its exception."""
        error = record.exc_info[0] if record.exc_info else None
        self._log.event(
            "library",
            record.levelname.lower(),
            logger=record.name,
            message=record.getMessage().strip(),
            error=error.__name__ if error else None,
        )
