"""How a process is asked to stop: the first SIGTERM or SIGINT drains, the second leaves at once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_BY_SIGNAL = 128


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """Give an event that the first signal sets. A second one ends the process without draining: someone insists."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()

    def asked(number: int) -> None:
        if stop.is_set():
            os._exit(_BY_SIGNAL + number)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
