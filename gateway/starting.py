"""How a process that cannot start says so: sentences and an exit code, also when a TaskGroup raised it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from aiohttp import web

from gateway.assembly import NotReady
from gateway.console import fail
from gateway.settings import InvalidSettings


@contextmanager
def said() -> Iterator[None]:
    """Name what keeps the process from running and leave: 2 for a setting that cannot be used, else 1."""
    try:
        yield
    except (NotReady, InvalidSettings) as error:
        _fail([error])
    except ExceptionGroup as group:
        known, rest = group.split((NotReady, InvalidSettings))
        # anything else among them is a fault of ours, which needs its traceback
        if known is None or rest is not None:
            raise
        _fail(_leaves(known))


def _fail(errors: list[NotReady | InvalidSettings]) -> None:
    problems = [problem for error in errors for problem in error.problems]
    fail(*problems, code=2 if any(isinstance(error, InvalidSettings) for error in errors) else 1)


def _leaves(group: ExceptionGroup[Any]) -> list[NotReady | InvalidSettings]:
    found: list[NotReady | InvalidSettings] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, ExceptionGroup) else [error]
    return found


async def open_site(runner: web.AppRunner, host: str, port: int, setting: str) -> web.TCPSite:
    """Listen there; raises NotReady with the settings' names when the port is taken or the host is not this machine."""
    site = web.TCPSite(runner, host, port)
    try:
        await site.start()
    except OSError as error:
        raise NotReady([f"{setting}: {host}:{port} cannot be listened on: {error.strerror}"]) from None
    return site
