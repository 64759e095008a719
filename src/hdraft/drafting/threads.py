"""Rows of a batch on several threads: for kernels, which run without the interpreter's lock."""

import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PIECE = 4  # rows that a thread takes at a time


class Threads:
    """The thread that calls, and helpers beside it.

    Args:
        count: of threads, 1 for no helper.

    >>> rows = list(range(10))
    >>> done = []
    >>> Threads(2).over(len(rows), lambda begin, end: done.extend(rows[begin:end]))
    >>> sorted(done) == rows
    True
    """

    def __init__(self, count: int) -> None:
        self._helpers = count - 1
        self._pool = ThreadPoolExecutor(self._helpers, "hdraft", _use_processors) if self._helpers else None

    def over(self, rows: int, work: Callable[[int, int], None]) -> None:
        """Call `work(begin, end)` for pieces that are all rows together, and return when all is done.

        Raises:
            Exception: what `work` raised.
        """
        if not self._pool or rows <= _PIECE:
            work(0, rows)
            return
        pieces = deque(range(0, rows, _PIECE))

        def run() -> None:
            while True:
                try:
                    begin = pieces.popleft()
                except IndexError:
                    return
                work(begin, min(begin + _PIECE, rows))

        helpers = [self._pool.submit(run) for _ in range(min(self._helpers, len(pieces) - 1))]
        run()
        for helper in helpers:
            if not helper.cancel():  # it has begun
                helper.result()


def processors() -> set[int]:
    """The processors that some thread of this process may run on.

    An engine may have bound each of its threads to one, and a thread that one of them starts is bound like it.
    """
    try:
        threads = [int(task.name) for task in Path("/proc/self/task").iterdir()]
        return set().union(*map(os.sched_getaffinity, threads))
    except (OSError, AttributeError):  # not Linux, or a thread that has just ended
        return set(range(os.cpu_count() or 1))


def _use_processors() -> None:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, processors())
