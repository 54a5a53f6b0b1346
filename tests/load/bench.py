"""One run of the bench: its council, its settings, and what it tells the person who waits."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from redis.asyncio import Redis
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gateway.dev.stack import Stack
from gateway.dev.state import State
from tests.load.council import BenchCouncil
from tests.load.machine import Cores, below

T = TypeVar("T")
_REDIS_MEMORY = "3gb"


@dataclass
class Bench:
    """`seconds` is how long one side is measured in one round, of whose answers `least_hits` have to
    be hits where that is measured. `database` is the gateway's logical one in Redis."""

    council: BenchCouncil
    stack: Stack
    cores: Cores
    _: KW_ONLY
    rounds: int
    seconds: float = 2.0
    least_hits: float = 0.99
    is_quick: bool = False
    is_verbose: bool = False
    database: int = 0
    profile: Path | None = None
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False, soft_wrap=True))
    notes: list[tuple[str, str]] = field(default_factory=list)
    compared: int = 0
    _bar: tuple[Progress, TaskID] | None = None

    @contextmanager
    def measuring(self, name: str, steps: int) -> Iterator[None]:
        """Draw a bar of so many steps on a terminal; elsewhere one line says what is measured."""
        if self.is_verbose or not self.console.is_terminal:
            self.say(f"{name} …")
            yield
            return
        columns = (TextColumn(f"{name:4}"), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            self._bar = progress, progress.add_task("", total=steps)
            try:
                yield
            finally:
                self._bar = None

    def progress(self, text: str) -> None:
        """The next step begins."""
        if self._bar is not None:
            progress, task = self._bar
            progress.update(task, description=text, advance=1)
        elif self.is_verbose:
            self.say(f"{time.strftime('%H:%M:%S')} {text}")

    async def step(self, text: str, work: Awaitable[T]) -> T:
        """Do something that takes a while, and say so."""
        self.progress(text)
        return await work

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def note(self, name: str, text: str) -> None:
        """A line under the table: what was seen beside the rows."""
        self.notes.append((name, text))

    def profile_of(self, name: str) -> Path | None:
        """Where the profile of this side goes, if one is wanted; only single processes of ours have one."""
        return self.profile if self.profile is not None and name.startswith("ours") else None

    def processes(self, *servers: str) -> list[int]:
        """Every process of these servers of the stack, `postgres` with its backends."""
        known = State.read(self.stack.root).servers
        return [pid for name in servers if (first := known[name].pid) is not None for pid in below(first)]

    # Redis

    def redis(self) -> Redis:
        """A client of the gateway's own database."""
        return Redis.from_url(self.council.environment["SILOGATE_REDIS_URL"])

    async def give_redis_room(self) -> None:
        """Let Redis keep every side's keys at once, as an operator sizes it for what it has to hold."""
        async with self.redis() as redis:
            await redis.config_set("maxmemory", _REDIS_MEMORY)

    async def told_by_redis(self, section: str) -> dict[str, Any]:
        async with self.redis() as redis:
            told: dict[str, Any] = await redis.info(section)
            return told

    async def forget_entries(self) -> None:
        """Take every stored answer away; what is known of the silo stays."""
        async with self.redis() as redis:
            keys = []
            async for key in redis.scan_iter(match="silogate:*:lk:*", count=5_000):
                keys.append(key)
                if len(keys) >= 5_000:
                    await redis.unlink(*keys)
                    keys = []
            if keys:
                await redis.unlink(*keys)
