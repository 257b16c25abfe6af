"""Concurrent requests gathered into batches: a bounded queue in front of one worker thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """More is waiting than the queue holds."""


class StoppingError(Exception):
    """The server is shutting down."""


@dataclass(eq=False)
class _Waiting(Generic[Item, Answer]):
    item: Item
    since: float
    answer: asyncio.Future[Answer]


class Batcher(Generic[Item, Answer]):
    """Runs ``work`` on lists of items; every item's answer goes back to whoever brought it.

    The worker takes what is waiting as soon as it is free, up to ``max_batch``; an item that is alone waits for company
    for ``max_wait`` seconds at most.
    """

    def __init__(
        self,
        work: Callable[[list[Item]], list[Answer]],
        *,
        max_batch: int,
        max_wait: float,
        max_queue: int,
        prepare: Callable[[], None] | None = None,
        on_batch: Callable[[int, float], None] | None = None,
    ) -> None:
        """Set up; :meth:`start` begins.

        Args:
            work: called in the worker thread with 1 to ``max_batch`` items; returns as many answers, in their order.
            max_batch: most items at a time.
            max_wait: seconds the first item of a batch waits for others.
            max_queue: most items that wait; more are refused.
            prepare: called once in the worker thread before anything else.
            on_batch: told the items and the seconds of every batch.
        """
        self._work, self._on_batch = work, on_batch
        self.max_batch, self.max_wait, self.max_queue = max_batch, max_wait, max_queue
        self._queue: deque[_Waiting[Item, Answer]] = deque()
        self._changed = asyncio.Event()
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="dsee-model", initializer=prepare)
        self._loop_task: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Items in the queue now."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to work, in the running event loop."""
        self._loop_task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Refuse what comes, answer what is waiting, and end the thread."""
        self._stopping = True
        self._changed.set()
        if self._loop_task:
            await self._loop_task
        self._thread.shutdown()

    async def submit(self, items: list[Item]) -> list[Answer]:
        """Have items worked on, together with those of others.

        Args:
            items: queued all or none.

        Returns:
            Their answers, in order.

        Raises:
            QueueFullError: they do not fit into the queue.
            StoppingError: :meth:`stop` was called.
            Exception: what ``work`` raised for one of them.
        """
        if self._stopping:
            raise StoppingError
        if len(self._queue) + len(items) > self.max_queue:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        entries = [_Waiting(item, loop.time(), loop.create_future()) for item in items]
        self._queue.extend(entries)
        self._changed.set()
        try:
            found = await asyncio.gather(*(entry.answer for entry in entries), return_exceptions=True)
        finally:
            # of a caller who has gone; what is being worked on goes on, and nobody looks at the answer
            for entry in entries:
                entry.answer.cancel()
        for each in found:
            if isinstance(each, BaseException):
                raise each
        return found  # type: ignore[return-value]  # no exception is among them

    async def _run(self) -> None:
        while batch := await self._next():
            await self._answer(batch)

    async def _next(self) -> list[_Waiting[Item, Answer]]:
        """The next batch; empty when all is done and the server stops."""
        loop = asyncio.get_running_loop()
        while True:
            while self._queue and self._queue[0].answer.cancelled():
                self._queue.popleft()
            self._changed.clear()
            if self._queue:
                left = self._queue[0].since + self.max_wait - loop.time()
                if self._stopping or left <= 0 or len(self._queue) >= self.max_batch:
                    break
                try:
                    await asyncio.wait_for(self._changed.wait(), left)
                except TimeoutError:
                    break
            elif self._stopping:
                return []
            else:
                await self._changed.wait()
        batch: list[_Waiting[Item, Answer]] = []
        while self._queue and len(batch) < self.max_batch:
            entry = self._queue.popleft()
            if not entry.answer.cancelled():
                batch.append(entry)
        # all callers may have gone while the first one waited for company
        return batch or await self._next()

    async def _answer(self, batch: list[_Waiting[Item, Answer]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            answers = await loop.run_in_executor(self._thread, self._worked, [entry.item for entry in batch])
        except Exception as error:  # noqa: BLE001 - goes to whoever waits for the answer
            if len(batch) > 1:
                # one bad item must not take the others with it
                for entry in batch:
                    await self._answer([entry])
                return
            if not batch[0].answer.cancelled():
                batch[0].answer.set_exception(error)
            return
        if self._on_batch:
            self._on_batch(len(batch), loop.time() - start)
        for entry, answer in zip(batch, answers, strict=True):
            if not entry.answer.cancelled():
                entry.answer.set_result(answer)

    def _worked(self, items: list[Item]) -> list[Answer]:
        answers = self._work(items)
        if len(answers) != len(items):
            raise RuntimeError(f"{len(items)} items, but {len(answers)} answers")
        return answers
