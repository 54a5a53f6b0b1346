"""The process that owns the development servers: starts them together, watches them, and takes them with it.

`python -m gateway.dev.keeper FOLDER` runs until its standard input closes, which happens when its parent ends, in
whatever way; with `--detached` it runs until SIGTERM. It writes JSON lines (progress, ready, changed, done, refused,
error) and reads JSON lines (`{"id": 1, "do": "restart", "server": "valkey", "how": "kill"}`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gateway.dev.privilege import remove_private_folder
from gateway.dev.process import PidFile, ServerFailed
from gateway.dev.servers import ServerSet, start_servers
from gateway.dev.state import KeeperLock, remove_empty_log

_PARENT = os.dup(1)  # main() points 1 at standard error: what a library prints must not come between the JSON lines
_EPHEMERAL = "ephemeral"
_WATCH_S = 0.5


class Keeper:
    """Runs one set of servers until told to stop."""

    def __init__(self, root: Path, options: argparse.Namespace) -> None:
        self._root = root
        self._options = options
        self._servers: ServerSet | None = None
        self._orders: asyncio.Queue[dict[str, Any]] = asyncio.Queue(maxsize=100)
        self._stop = asyncio.Event()

    async def run(self, began: float) -> None:
        """Start, obey, and stop everything before returning, however this ends."""
        for sign in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(sign, self._stop.set)
        work = [asyncio.create_task(self._serve(began)), asyncio.create_task(self._stop.wait())]
        if not self._options.detached:
            work.append(asyncio.create_task(self._read_orders()))
        try:
            done, _ = await asyncio.wait(work, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            if self._servers is not None:
                await self._servers.stop(kindly=not self._options.ephemeral)

    async def _serve(self, began: float) -> None:
        self._servers = servers = await start_servers(self._root, durable=not self._options.no_fsync, tell=_tell)
        _say(event="ready", addresses=servers.addresses().to_json(), seconds=round(time.monotonic() - began, 2))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._obey(servers))
            group.create_task(self._watch(servers))

    async def _read_orders(self) -> None:
        """Read orders until standard input closes: the parent closed it, or is no more."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            await self._orders.put(json.loads(line))

    async def _obey(self, servers: ServerSet) -> None:
        while True:
            order = await self._orders.get()
            try:
                await servers.obey(order)
            except (ServerFailed, TimeoutError, OSError) as error:
                _say(event="refused", id=order.get("id"), message=str(error) or type(error).__name__)
            else:
                _say(event="done", id=order.get("id"))

    async def _watch(self, servers: ServerSet) -> None:
        """Keep the state file true when a server ends by itself."""
        known = servers.pids()
        while True:
            await asyncio.sleep(_WATCH_S)
            if (pids := servers.pids()) != known:
                known = pids
                servers.remember()
                _say(event="changed", pids=pids)


def _tell(server: str, text: str) -> None:
    _say(event="progress", server=server, text=text)


def _say(**message: object) -> None:
    # A parent that is gone is learnt from standard input; one that was not interested any more is no error.
    with contextlib.suppress(BrokenPipeError):
        os.write(_PARENT, json.dumps(message).encode() + b"\n")


def remove_abandoned(folder: Path) -> None:
    """Remove the ephemeral sets in a folder whose keepers were killed before they could do it."""
    for marker in folder.glob(f"*/{_EPHEMERAL}"):
        lock = KeeperLock(marker.parent)
        if lock.acquire():
            forget(marker.parent)
            lock.release()


def forget(root: Path) -> None:
    """Remove a set's folder with everything in it, and what still runs there. The caller holds its lock."""
    for path in (root / "run").glob("*.pid"):
        PidFile(path).stop_leftover()
    remove_private_folder(root / "postgres")
    shutil.rmtree(root, ignore_errors=True)
    remove_empty_log(root)


def main(arguments: list[str] | None = None) -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m gateway.dev.keeper", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the servers keep their data")
    parser.add_argument("--detached", action="store_true", help="run until SIGTERM, not until standard input closes")
    parser.add_argument("--ephemeral", action="store_true", help="remove the folder at the end")
    parser.add_argument("--no-fsync", action="store_true", help="faster Postgres, where nothing kills the machine")
    options = parser.parse_args(arguments)
    os.dup2(2, 1)
    root: Path = options.folder.resolve()  # Postgres shows its folder without symbolic links
    for part in ("logs", "run"):
        (root / part).mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    lock = KeeperLock(root)
    if not lock.acquire():
        _say(event="error", message=f"another keeper (process {lock.holder()}) already runs in {root}")
        return 1
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # "unable to connect" is what starting means
    try:
        if options.ephemeral:
            (root / _EPHEMERAL).touch()
            remove_abandoned(root.parent)
        asyncio.run(Keeper(root, options).run(began))
    except ServerFailed as error:
        _say(event="error", message=str(error))
        return 1
    finally:
        if options.ephemeral:
            forget(root)
        lock.release()
    return 0


if __name__ == "__main__":
    sys.exit(main())
