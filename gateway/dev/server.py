"""One development server: the same steps to start, watch and stop it, whatever it is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path

from gateway.dev.process import Command, PidFile, ServerFailed, spawn, tail

_STOP_S = 15.0


class Server(ABC):
    """A server of the set. It keeps its port for its whole life, so a restart is invisible but for the gap."""

    name: str
    stop_signal = signal.SIGTERM
    kill_signal = signal.SIGKILL
    can_freeze = True

    def __init__(self, root: Path, port: int) -> None:
        self.root = root
        self.port = port
        self.log = root / "logs" / f"{self.name}.log"
        self.pid_file = PidFile(root / "run" / f"{self.name}.pid")
        self.version = "?"
        self._process: asyncio.subprocess.Process | None = None
        self._frozen = False

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    @abstractmethod
    def marker(self) -> str:
        """A part of the command line that only this server of this folder has."""

    @abstractmethod
    async def prepare(self) -> None:
        """Make the data folder where there is none; called before the first start."""

    @abstractmethod
    def command(self) -> Command:
        """The program that serves."""

    @abstractmethod
    async def answers(self) -> bool:
        """Whether a client would be served now; never raises for a server that is still starting."""

    async def start(self, timeout_s: float = 60.0) -> None:
        """Start, and return once the server answers."""
        if self.pid is not None:
            raise ServerFailed(self.name, "it is running already")
        self._frozen = False
        command = self.command()
        self._process = await spawn(command, self.log)
        self.pid_file.write(self._process.pid, self.marker)
        until = time.monotonic() + timeout_s
        while not await self.answers():
            if self._process.returncode is not None:
                raise ServerFailed(self.name, f"it ended while it started. The end of {self.log}:\n{tail(self.log)}")
            if time.monotonic() > until:
                await self.kill()
                raise ServerFailed(self.name, f"it did not answer within {timeout_s:.0f} s; see {self.log}")
            await asyncio.sleep(0.03)

    async def stop(self) -> None:
        """Stop in good order; one that does not obey in time is killed."""
        await self._end(self.stop_signal)

    async def kill(self) -> None:
        """Stop at once, as a crash would."""
        await self._end(self.kill_signal)

    def freeze(self, frozen: bool) -> None:
        """Suspend the server, or let it go on: its sockets stay open and nothing answers."""
        if not self.can_freeze:
            raise ServerFailed(self.name, "it has several processes and cannot be frozen")
        if self.pid is None:
            raise ServerFailed(self.name, "it is not running")
        os.kill(self.pid, signal.SIGSTOP if frozen else signal.SIGCONT)
        self._frozen = frozen

    async def _end(self, sign: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if self._frozen:
                # It takes any signal but SIGKILL only once it goes on.
                self.freeze(False)
            process.send_signal(sign)
        try:
            async with asyncio.timeout(_STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        self.pid_file.path.unlink(missing_ok=True)
