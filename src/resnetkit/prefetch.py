"""Prefetch with threads, without hanging if one of them never returns.

A read from a network folder that is gone may block forever.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Thread, get_ident
from typing import Generic, TypeVar

from .errors import DataError
from .progress import say

Item = TypeVar("Item")
Result = TypeVar("Result")

STUCK = 120.0
"""Seconds without a new file or result before a task is retried, and again before it fails."""

PATIENCE = 2.0
"""Seconds that a stopping pool waits for a file that is being read."""

_reading: dict[int, tuple[str, float]] = {}  # thread -> the file it is reading, and since when
_last_read: dict[int, float] = {}  # thread -> when it last finished a file


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Record that this thread is reading the file ``name`` while the context is open."""
    thread = get_ident()
    _reading[thread] = (name, time.monotonic())
    try:
        yield
    finally:
        _reading.pop(thread, None)
        _last_read[thread] = time.monotonic()


def prefetch_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """Map ``function`` over ``items`` in threads, with the results in order.

    At most two results per worker are computed ahead of their use. With 0 workers, each result is
    computed when it is requested. If ``function`` raises an exception, it is raised again in place
    of the result.

    Raises:
        DataError: a task got stuck twice: no new file or result arrived for `STUCK` seconds. The
            message names the files that are being read.
    """
    if workers == 0:
        yield from map(function, items)
        return
    pending: deque[tuple[Future[Result], Item]] = deque()
    pool = Pool(function, workers)
    try:
        for item in items:
            pending.append((pool.submit(item), item))
            if len(pending) > 2 * workers:
                yield pool.result(*pending.popleft())
        while pending:
            yield pool.result(*pending.popleft())
    finally:
        for future, _ in pending:
            future.cancel()
        pool.close()


class Pool(Generic[Item, Result]):
    """Worker threads that compute ``function``.

    Unlike the threads of a `ThreadPoolExecutor`, they are daemons, so Python does not wait for them
    when it exits: one may be blocked on a file that never arrives.
    """

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        self.function = function
        self.tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
        self.threads: list[Thread] = []
        for _ in range(workers):
            self._spawn(self._work)

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = Thread(target=target, args=args, name="worker", daemon=True)
        self.threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            future, item = task
            if future.set_running_or_notify_cancel():
                self._compute(future, item)
            del task, future, item  # keep nothing in memory while waiting

    def _compute(self, future: Future[Result], item: Item) -> None:
        try:
            future.set_result(self.function(item))
        except BaseException as error:  # raised again by `result`
            future.set_exception(error)

    def submit(self, item: Item) -> Future[Result]:
        """Queue an item, and return a future for its result."""
        future: Future[Result] = Future()
        self.tasks.put((future, item))
        return future

    def result(self, future: Future[Result], item: Item) -> Result:
        """Return the result for an item; if the first try gets stuck, start a second one.

        Raises:
            DataError: both tries are stuck.
        """
        if self._wait_for_any(future):
            return future.result()
        say(f"Nothing has arrived for {STUCK:g} seconds{self._slow_files()}; trying once more.")
        retry: Future[Result] = Future()
        self._spawn(self._compute, retry, item)
        if self._wait_for_any(future, retry):
            return (retry if retry.done() else future).result()
        raise DataError(
            f"Nothing has arrived for {2 * STUCK:g} seconds, and trying again did not help"
            f"{self._slow_files()}. Is the disk or network folder available?"
        )

    def _wait_for_any(self, *futures: Future[Result]) -> bool:
        """Wait for one of ``futures``; return False if no file has arrived for `STUCK` seconds.

        A batch of many slow files does not count as stuck.
        """
        start = time.monotonic()
        while not any(future.done() for future in futures):
            last_reads = (_last_read.get(thread.ident or 0, start) for thread in self.threads)
            left = max(start, *last_reads) + STUCK - time.monotonic()
            if left <= 0:
                return False
            wait(futures, left, FIRST_COMPLETED)
        return True

    def _slow_files(self) -> str:
        """Return the files that are taking a long time to read, as part of a sentence."""
        current = filter(None, (_reading.get(thread.ident or 0) for thread in self.threads))
        names = sorted({name for name, since in current if time.monotonic() - since > STUCK / 2})
        return f"; being read: {', '.join(names)}" if names else ""

    def release(self) -> None:
        """Stop the threads after the items that are already queued, without waiting for them."""
        for _ in self.threads:
            self.tasks.put(None)

    def close(self) -> None:
        """Stop the threads and wait for them, except those that are blocked on a file."""
        self.release()
        for thread in self.threads:
            while thread.is_alive():
                _, since = _reading.get(thread.ident or 0, ("", time.monotonic()))
                if time.monotonic() - since > PATIENCE:
                    break
                thread.join(0.05)
