"""Ports for the development servers: free now, and not taken by a client's socket later."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

# Below the range from which the kernel gives ports to outgoing connections (32768 on Linux, 49152 on macOS), so that
# a server that is stopped and started again finds its port still free.
_LOWEST, _HIGHEST = 15_000, 32_000


def free_ports(wanted: Iterable[str], previous: dict[str, int]) -> dict[str, int]:
    """One free port for each name: the previous one where it is still free, else one chosen at random."""
    chosen: dict[str, int] = {}
    for name in wanted:
        candidate = previous.get(name)
        while candidate is None or candidate in chosen.values() or not _is_free(candidate):
            candidate = random.randint(_LOWEST, _HIGHEST)  # noqa: S311 - spreads parallel test runs, guards nothing
        chosen[name] = candidate
    return chosen


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def accepts(port: int) -> bool:
    """Whether something listens on this port of the local host."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=0.5):
            return True
    except OSError:
        return False
