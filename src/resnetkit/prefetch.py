"""Work that threads do before it is asked for; and a way out where one of them never comes back,
as from a file on a network folder that is gone."""

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
"""Seconds without a file or a result after which a piece of work is tried once more, and then given
up."""

PATIENCE = 2.0
"""Seconds after which a file is not waited for any more where work is broken off."""

_reading: dict[int, tuple[str, float]] = {}  # what each thread reads, and since when
_arrived: dict[int, float] = {}  # when a file last came to each thread


@contextmanager
def reading(name: str) -> Iterator[None]:
    """While this is open, the thread waits for the file ``name``."""
    thread = get_ident()
    _reading[thread] = name, time.monotonic()
    try:
        yield
    finally:
        _reading.pop(thread, None)
        _arrived[thread] = time.monotonic()


def prefetch_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Iterator[Result]:
    """``map`` in threads: results in order, at most two a worker computed ahead of their use.

    With 0 workers each is computed when it is asked for.

    Raises:
        DataError: neither one nor any file of it came within `STUCK` seconds, nor a second time;
            the message names the files that are being read. Whatever ``function`` raises is raised
            in its place.
    """
    if workers == 0:
        yield from map(function, items)
        return
    ahead: deque[tuple[Future[Result], Item]] = deque()
    team = _Team(function, workers)
    try:
        for item in items:
            ahead.append(team.begin(item))
            if len(ahead) > 2 * workers:
                yield team.result(*ahead.popleft())
        while ahead:
            yield team.result(*ahead.popleft())
    finally:
        for future, _ in ahead:
            future.cancel()
        team.leave()


class _Team(Generic[Item, Result]):
    """Threads that compute ``function``. Python does not wait for them at its end, as it does for
    those of a `ThreadPoolExecutor`: one may read a file that never comes."""

    def __init__(self, function: Callable[[Item], Result], workers: int) -> None:
        self.function = function
        self.tasks: SimpleQueue[tuple[Future[Result], Item] | None] = SimpleQueue()
        self.threads: list[Thread] = []
        for _ in range(workers):
            self._hire(self._work)

    def _hire(self, target: Callable[..., None], *args: object) -> None:
        self.threads.append(Thread(target=target, args=args, name="worker", daemon=True))
        self.threads[-1].start()

    def _work(self) -> None:
        while (task := self.tasks.get()) is not None:
            if task[0].set_running_or_notify_cancel():
                self._compute(*task)

    def _compute(self, future: Future[Result], item: Item) -> None:
        try:
            future.set_result(self.function(item))
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    def begin(self, item: Item) -> tuple[Future[Result], Item]:
        task: tuple[Future[Result], Item] = Future(), item
        self.tasks.put(task)
        return task

    def result(self, future: Future[Result], item: Item) -> Result:
        """That of ``item``, or of a second try at it."""
        if self._comes(future):
            return future.result()
        say(f"Nothing has come for {STUCK:g} seconds{self._slow()}; trying once more.")
        again: Future[Result] = Future()
        self._hire(self._compute, again, item)
        if self._comes(future, again):
            return (again if again.done() else future).result()
        raise DataError(
            f"Nothing has come for {2 * STUCK:g} seconds, and trying again did not help"
            f"{self._slow()}. Is the disk or the network folder there?"
        )

    def _comes(self, *futures: Future[Result]) -> bool:
        """Wait until one of ``futures`` is done; False once no file has come for `STUCK` seconds.
        A batch of many slow files is not stuck."""
        begun = time.monotonic()
        while not any(future.done() for future in futures):
            arrivals = (_arrived.get(thread.ident or 0, begun) for thread in self.threads)
            left = max(begun, *arrivals) + STUCK - time.monotonic()
            if left <= 0:
                return False
            wait(futures, left, FIRST_COMPLETED)
        return True

    def _slow(self) -> str:
        """What has been read for long, as a part of a sentence."""
        held = filter(None, (_reading.get(thread.ident or 0) for thread in self.threads))
        names = sorted({name for name, since in held if time.monotonic() - since > STUCK / 2})
        return f"; being read: {', '.join(names)}" if names else ""

    def leave(self) -> None:
        """Wait for the threads to end, but for those that wait for a file that does not come."""
        for _ in self.threads:
            self.tasks.put(None)
        for thread in self.threads:
            while thread.is_alive():
                _, since = _reading.get(thread.ident or 0, ("", time.monotonic()))
                if time.monotonic() - since > PATIENCE:
                    break
                thread.join(0.05)
