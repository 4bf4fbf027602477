"""Threads for blocking work: so many at once, so many waiting, and an end when nobody listens any more."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """All threads work and the queue is full. retry_after: seconds until a place will probably be free."""

    def __init__(self, retry_after: int):
        super().__init__(f"The server is busy: try again in {retry_after} s.")
        self.retry_after = retry_after


class WorkPool:
    """Iterates over blocking work in threads, for one event loop.

    The work does not wait for a slow reader: what it made is kept until it is read, and its thread is free again.

    Args:
        size: how many run at once. queue: how many may wait for their turn.
    """

    def __init__(self, size: int, queue: int):
        self.size, self.queue = size, queue
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(size)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="smalle-speech")
        self.watch: Callable[[int, int], None] = lambda running, waiting: None  # called when these change
        self._seconds = 1.0  # that work takes, a running average

    async def iterate(self, work: Callable[[threading.Event], Iterable[T]]) -> AsyncGenerator[T]:
        """Yields what `work(cancelled)` yields in a thread. Closing the generator sets the event `cancelled`, on which
        the work must end.

        Raises:
            Busy: the queue is full.
        """
        await self._wait_for_turn()
        loop, items, cancelled = asyncio.get_running_loop(), asyncio.Queue[T | None](), threading.Event()

        def run():
            begun = time.monotonic()
            try:
                for item in work(cancelled):
                    loop.call_soon_threadsafe(items.put_nowait, item)
                self._seconds += 0.1 * (time.monotonic() - begun - self._seconds)
            finally:
                cancelled.set()  # what the work itself started, such as a thread that reads ahead, ends after an error
                loop.call_soon_threadsafe(leave)

        def leave():
            self._count(-1, 0)
            self._free.release()
            items.put_nowait(None)

        future = loop.run_in_executor(self._threads, run)
        future.add_done_callback(asyncio.Future.exception)  # where nobody listens any more, nobody has to know
        try:
            while (item := await items.get()) is not None:
                yield item
            await future
        finally:
            cancelled.set()

    async def run(self, function: Callable[[threading.Event], T]) -> T:
        """The result of a blocking function(cancelled), which runs in a thread when its turn comes. Cancelling the task
        that waits for it sets the event `cancelled`."""
        return [result async for result in self.iterate(lambda cancelled: [function(cancelled)])][0]

    async def _wait_for_turn(self):
        if self._free.locked() and self.waiting >= self.queue:
            raise Busy(max(1, math.ceil(self._seconds * (self.waiting + 1) / self.size)))
        self._count(0, 1)
        try:
            await self._free.acquire()
        except BaseException:
            self._count(0, -1)
            raise
        self._count(1, -1)

    def _count(self, running: int, waiting: int):
        self.running += running
        self.waiting += waiting
        self.watch(self.running, self.waiting)

    def close(self):
        """Ends the threads when their work ends."""
        self._threads.shutdown(wait=False, cancel_futures=True)
