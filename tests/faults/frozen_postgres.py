"""A Postgres that hangs: its sockets stay open, and nothing answers."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gateway.dev.stack import Stack


@contextmanager
def frozen(stack: Stack, server: str) -> Iterator[None]:
    """Stop every process of the server, and let them go on afterwards."""
    first = json.loads((stack.root / "run" / f"{server}.pid").read_text())["pid"]
    stopped: list[int] = []
    try:
        for pid in _family(first):
            _send(pid, signal.SIGSTOP)
            stopped.append(pid)
        yield
    finally:
        for pid in stopped:
            _send(pid, signal.SIGCONT)


def _send(pid: int, number: signal.Signals) -> None:
    # One that had ended already is gone once its parent goes on and sees it.
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _family(pid: int) -> Iterator[int]:
    # The parent first: stopped, it has no more children. One that ended meanwhile is none of them.
    yield pid
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            yield from _family(int(stat.parent.name))
