"""A pool of threads for blocking work, with a limited queue and cancellation."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Busy(Exception):
    """All threads are busy and the queue is full. retry_after: estimated seconds until there is room."""

    def __init__(self, retry_after: int):
        super().__init__(f"The server is busy: try again in {retry_after} s.")
        self.retry_after = retry_after


class WorkPool:
    """Iterates over blocking work in threads, for one event loop.

    The work does not wait for a slow reader: its results are kept until they are read, and its thread is free again.

    Args:
        size: number of tasks that run at the same time.
        queue: number of tasks that may wait.
    """

    def __init__(self, size: int, queue: int):
        self.size, self.queue = size, queue
        self.running = self.waiting = 0
        self._free = asyncio.Semaphore(size)
        self._threads = ThreadPoolExecutor(size, thread_name_prefix="smalle-speech")
        self.watch: Callable[[int, int], None] = lambda running, waiting: None  # called when one of them changes
        self._seconds = 1.0  # running average of the duration of a task

    async def iterate(self, work: Callable[[threading.Event], Iterable[T]]) -> AsyncGenerator[T]:
        """Runs `work(cancelled)` in a thread and yields its results. Closing the generator sets the event `cancelled`;
        the work must then end.

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
                cancelled.set()  # after an error, this ends threads that the work has started
                loop.call_soon_threadsafe(leave)

        def leave():
            self._count(-1, 0)
            self._free.release()
            items.put_nowait(None)

        future = loop.run_in_executor(self._threads, run)
        future.add_done_callback(asyncio.Future.exception)  # nobody needs the exception of work that was cancelled
        try:
            while (item := await items.get()) is not None:
                yield item
            await future
        finally:
            cancelled.set()

    async def run(self, function: Callable[[threading.Event], T]) -> T:
        """Runs a blocking function(cancelled) in a thread and returns its result. Cancelling the waiting task sets the
        event `cancelled`."""
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
        """Ends the threads after their current work."""
        self._threads.shutdown(wait=False, cancel_futures=True)
