"""The machine under the measurements: which core is the server's, and what a process has used of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.load.generator import cpu_s

CAN_MEASURE = Path("/proc/self/stat").exists() and hasattr(os, "sched_setaffinity")


class Cores:
    """One core for the server, the rest for the load and the stores; with one core only, all share it."""

    def __init__(self) -> None:
        self.all = os.sched_getaffinity(0)
        first, *rest = sorted(self.all)
        self.server = {first}
        self.others = set(rest) or {first}

    @contextmanager
    def of_the_server(self) -> Iterator[None]:
        """What is started inside runs on the server's core: a child inherits it."""
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.server)
        try:
            yield
        finally:
            os.sched_setaffinity(0, before)

    @contextmanager
    def pinned(self) -> Iterator[None]:
        """This process, and all that it starts, on the other cores."""
        os.sched_setaffinity(0, self.others)
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.all)


def below(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found, parents = [pid], {pid}
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            # the command, in brackets, may hold anything
            parent = int(stat.read_text(errors="replace").rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(stat.parent.name))
    while parents:
        parents = {child for parent in parents for child in children.get(parent, ())}
        found += sorted(parents)
    return found


def used_s(pids: list[int]) -> float:
    """Processor seconds of these processes together; one that has ended counts nothing."""
    total = 0.0
    for pid in pids:
        try:
            total += cpu_s(pid)
        except OSError:
            continue
    return total
