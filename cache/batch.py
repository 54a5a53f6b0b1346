"""What arrives together is done together: one batch a turn of the event loop, and one more while the last is away."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

G = TypeVar("G", bound=Hashable)
I = TypeVar("I")  # noqa: E741 - an item


@dataclass(frozen=True, slots=True)
class Sizes(Generic[I]):
    """How many bytes an item is, with how many a batch is full, and how many may wait."""

    of: Callable[[I], int]
    most: int
    waiting: int


class Batcher(Generic[G, I]):
    """Hands items to `serve` in batches of one group.

    A free worker takes what is there once the event loop has run everything that was ready, so the callers of one turn
    share a batch; while all workers are busy, what arrives forms the next one. Where nobody waits for the outcome, a
    worker may linger for `linger_s` first, so that more share the cost of a batch. `serve` must tell each item's owner
    itself, and must not raise.

    A batch ends at `most` items, and `waiting` may wait. Where items differ in size, `sizes` bounds both in bytes too.
    """

    def __init__(
        self, serve: Callable[[G, list[I]], Awaitable[None]], *, workers: int, most: int, waiting: int,
        sizes: Sizes[I] | None = None, linger_s: float = 0.0,
    ) -> None:  # fmt: skip
        self._serve = serve
        self._workers = workers
        self._most = most
        self._room = waiting
        self._sizes = sizes
        self._linger_s = linger_s
        self._waiting_bytes = 0
        self._pending: dict[G, deque[I]] = {}
        self._arrived = asyncio.Event()
        self._urgent = asyncio.Event()

    def put(self, group: G, item: I, *, is_urgent: bool = False) -> bool:
        """Whether there was room for it. Nobody lingers over what is urgent. Without `run` nothing is served."""
        if self._room <= 0:
            return False
        if self._sizes is not None:
            size = self._sizes.of(item)
            if self._waiting_bytes + size > self._sizes.waiting:
                return False
            self._waiting_bytes += size
        self._room -= 1
        queue = self._pending.get(group)
        if queue is None:
            queue = self._pending[group] = deque()
        queue.append(item)
        self._arrived.set()
        if is_urgent:
            self._urgent.set()
        return True

    async def run(self) -> None:
        """Serve until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._workers):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            if self._linger_s:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._linger_s):
                        await self._urgent.wait()
                self._urgent.clear()
            while self._pending:
                group, items = self._take()
                await self._serve(group, items)
            self._arrived.clear()

    def _take(self) -> tuple[G, list[I]]:
        """The group that has waited longest, or as much of it as one batch takes; the rest goes to the back."""
        group = next(iter(self._pending))
        queue = self._pending.pop(group)
        if self._sizes is None:
            items = [queue.popleft() for _ in range(min(self._most, len(queue)))]
        else:
            items = self._measured(queue, self._sizes)
        if queue:
            self._pending[group] = queue
        self._room += len(items)
        return group, items

    def _measured(self, queue: deque[I], sizes: Sizes[I]) -> list[I]:
        """As many as make a batch; the one that fills it is the last."""
        items: list[I] = []
        size = 0
        while queue and len(items) < self._most and size < sizes.most:
            item = queue.popleft()
            items.append(item)
            size += sizes.of(item)
        self._waiting_bytes -= size
        return items
