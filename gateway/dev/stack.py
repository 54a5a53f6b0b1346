"""The parent's side of a keeper: start the development servers, give them orders, and have them end with this process.

    with start_stack(Path(".silogate/demo")) as stack:
        print(stack.servers.postgres_url)

Whatever happens to this process, kill -9 included, the keeper notices and stops every server.
"""

from __future__ import annotations

import asyncio
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from gateway.dev.addresses import Servers
from gateway.dev.state import keeper_log, remove_empty_log

ServerName = Literal["postgres", "replica", "valkey", "kafka", "smtp"]
Action = Literal["stop", "kill", "start", "restart", "crash", "freeze", "thaw", "pause", "resume"]
Progress = Callable[[str, str], None]

_START_S = 330.0
_STOP_S = 40.0
PROJECT = Path(__file__).resolve().parents[2]


class StackFailed(Exception):
    """The servers could not be started, or an order was refused; the message says why."""


class Stack:
    """Running servers and the keeper that owns them."""

    def __init__(self, keeper: subprocess.Popen[bytes], root: Path) -> None:
        self.root = root
        self._keeper = keeper
        self._messages: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, name="silogate-keeper", daemon=True)
        self._reader.start()
        self._order = threading.Lock()
        self._orders = 0
        self._servers: Servers | None = None

    @property
    def servers(self) -> Servers:
        if self._servers is None:
            raise StackFailed("the servers are not up yet")
        return self._servers

    @property
    def keeper_pid(self) -> int:
        return self._keeper.pid

    async def control(self, server: ServerName, action: Action, *, timeout_s: float = 60.0) -> None:
        """Do something to one server, and return when it is done; StackFailed when it cannot be.

        `stop` and `restart` are in good order; `kill` and `crash` (kill, then start) as after a power cut: for Postgres
        the immediate stop, so that its start recovers. `freeze` and `thaw` leave the sockets open with nobody answering
        (not for Postgres). `pause` and `resume` hold the replica's replay back: lag on demand.
        """
        await asyncio.to_thread(self.control_blocking, server, action, timeout_s=timeout_s)

    def control_blocking(self, server: ServerName, action: Action, *, timeout_s: float = 60.0) -> None:
        """`control` for callers without an event loop."""
        how = "kill" if action in {"kill", "crash"} else "stop"
        do = {"kill": "stop", "crash": "restart"}.get(action, action)
        with self._order:
            self._orders += 1
            order = {"id": self._orders, "do": do, "server": server, "how": how}
            self._write(order)
            answer = self._wait({"done", "refused"}, timeout_s, order_id=self._orders)
        if answer["event"] == "refused":
            raise StackFailed(answer["message"])

    def wait_ready(self, on_progress: Progress) -> None:
        """Wait until every server answers; StackFailed with the keeper's reason when they do not."""
        answer = self._wait({"ready", "error"}, _START_S, on_progress=on_progress)
        if answer["event"] == "error":
            raise StackFailed(answer["message"])
        self._servers = Servers.from_json(answer["addresses"])

    def close(self) -> None:
        """Stop every server; returns when no process is left."""
        if self._keeper.stdin is not None:
            with suppress(BrokenPipeError):
                self._keeper.stdin.close()
        try:
            self._keeper.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._reader.join()
        if self._keeper.stdout is not None:
            self._keeper.stdout.close()
        remove_empty_log(self.root)

    def _write(self, order: dict[str, Any]) -> None:
        if self._keeper.stdin is None:
            raise StackFailed("the keeper takes no orders")
        try:
            self._keeper.stdin.write(json.dumps(order).encode() + b"\n")
            self._keeper.stdin.flush()
        except (BrokenPipeError, ValueError):
            raise StackFailed("the keeper of the development servers has ended") from None

    def _read(self) -> None:
        for line in self._keeper.stdout or ():
            self._messages.put(json.loads(line))
        self._messages.put(None)

    def _wait(
        self, events: set[str], timeout_s: float, *, order_id: int | None = None, on_progress: Progress | None = None
    ) -> dict[str, Any]:
        until = time.monotonic() + timeout_s
        while True:
            try:
                message = self._messages.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                raise StackFailed(f"the keeper of the development servers said nothing for {timeout_s:.0f} s") from None
            if message is None:
                self._messages.put(None)
                raise StackFailed(f"the keeper of the development servers has ended; see {keeper_log(self.root)}")
            if message["event"] == "progress" and on_progress is not None:
                on_progress(message["server"], message["text"])
            # An answer to an order that timed out earlier is not ours.
            if message["event"] in events and message.get("id") == order_id:
                return message


def _open(root: Path, *, ephemeral: bool, durable: bool) -> Stack:
    options = [*(["--ephemeral"] if ephemeral else []), *([] if durable else ["--no-fsync"])]
    root = root.resolve()
    root.parent.mkdir(parents=True, exist_ok=True)
    with keeper_log(root).open("wb") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "gateway.dev.keeper", str(root), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=PROJECT,
            start_new_session=True,  # Ctrl-C in the terminal is for us; the servers outlive our own clean-up
        )
    return Stack(keeper, root)


@contextmanager
def start_stack(
    root: Path, *, ephemeral: bool = False, durable: bool = True, on_progress: Progress = lambda _server, _text: None
) -> Iterator[Stack]:
    """Servers that live as long as the `with` block, or until this process ends in any other way.

    `root` holds their data; `ephemeral` removes it at the end. `durable=False` turns Postgres' fsync off.
    `on_progress(server, text)` is called from this thread while they start.
    """
    stack = _open(root, ephemeral=ephemeral, durable=durable)
    try:
        stack.wait_ready(on_progress)
        yield stack
    finally:
        stack.close()


@asynccontextmanager
async def open_stack(
    root: Path, *, ephemeral: bool = False, durable: bool = True, on_progress: Progress = lambda _server, _text: None
) -> AsyncIterator[Stack]:
    """`start_stack` for a program with an event loop; `on_progress` is called from another thread."""
    stack = _open(root, ephemeral=ephemeral, durable=durable)
    try:
        # Cancelled here, the thread ends as soon as close() has ended the keeper.
        await asyncio.to_thread(stack.wait_ready, on_progress)
        yield stack
    finally:
        await asyncio.to_thread(stack.close)
