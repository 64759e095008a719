"""One model for many clients: requests in turn, in a thread of their own beside the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from threading import Event
from typing import TypeVar

from hdraft.serve.errors import busy

T = TypeVar("T")


class Turns:
    """Runs one request after another; a bounded number of others may wait.

    Args:
        waiting: how many.

    Attributes:
        held: requests that run or wait.
    """

    def __init__(self, waiting: int) -> None:
        self.waiting = waiting
        self.held = 0
        self._turn = asyncio.Lock()  # in the order of arrival
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="hdraft-model")
        self._stopped = Event()  # of the request that runs

    @contextmanager
    def place(self) -> Iterator[None]:
        """Be one of those that run or wait.

        Raises:
            ApiError: there are too many of them.
        """
        if self.held > self.waiting:
            raise busy(f"{self.held} requests run or wait already")
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    async def run(self, work: Callable[[Event], Iterator[T]]) -> AsyncGenerator[T, None]:
        """Yield what `work` yields in the model's thread, once it is its turn.

        The event that it is given says that nobody listens any more: it is to end soon.
        """
        loop = asyncio.get_running_loop()
        async with self._turn:
            items: asyncio.Queue[T | BaseException | None] = asyncio.Queue()
            stopped = self._stopped = Event()

            def tell(item: T | BaseException | None) -> None:
                with suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(items.put_nowait, item)

            def run() -> None:
                try:
                    for item in work(stopped):
                        tell(item)
                    tell(None)
                except BaseException as error:
                    tell(error)

            self._thread.submit(run)
            try:
                while (item := await items.get()) is not None:
                    if isinstance(item, BaseException):
                        raise item
                    yield item
            finally:
                stopped.set()  # the thread ends its step, and only then begins with the next request

    def close(self) -> None:
        """Stop what runs, and wait for its step to end."""
        self._stopped.set()
        self._thread.shutdown(wait=True, cancel_futures=True)
