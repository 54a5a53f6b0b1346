"""One line a step, with its time: what the demo did while it started, and what its journey has seen."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

ResultT = TypeVar("ResultT")
_POLL_S = 0.1


class StepFailed(Exception):
    """What a step was to see did not happen; the message says what was seen instead."""


class Steps:
    """Prints a tick and the time for each step that succeeds, a cross and the reason for the one that does not."""

    def __init__(self, *, out: Callable[[str], None] | None = None) -> None:
        self._out = out or _print
        self.seen = 0

    @asynccontextmanager
    async def step(self, text: str) -> AsyncIterator[list[str]]:
        """Runs one step; what the block appends to the list is shown after the text."""
        began, notes = time.monotonic(), list[str]()
        try:
            yield notes
        except BaseException as error:
            reason = "stopped" if isinstance(error, asyncio.CancelledError) else str(error) or type(error).__name__
            self._out(f"  ✗ {text}: {reason}")
            raise
        self.seen += 1
        self._out(f"  ✓ {' · '.join([text, *notes]):<88} {time.monotonic() - began:5.2f} s")

    def say(self, text: str = "") -> None:
        self._out(text)


async def until(what: str, look: Callable[[], Awaitable[ResultT | None]], *, timeout_s: float = 30.0) -> ResultT:
    """Looks again and again until there is something to see; StepFailed when there is nothing in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        if (seen := await look()) is not None:
            return seen
        if time.monotonic() > deadline:
            raise StepFailed(f"{what} was not seen within {timeout_s:.0f} s")
        await asyncio.sleep(_POLL_S)


def _print(text: str) -> None:
    encoding = sys.stdout.encoding or "ascii"
    print(text.encode(encoding, errors="replace").decode(encoding), flush=True)
