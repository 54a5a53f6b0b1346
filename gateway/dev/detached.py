"""Servers that run on without a parent: what `silogate dev up`, `down` and `status` do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gateway.dev.addresses import Servers
from gateway.dev.keeper import forget
from gateway.dev.ports import accepts
from gateway.dev.process import PidFile
from gateway.dev.stack import PROJECT, Progress, StackFailed
from gateway.dev.state import KeeperLock, State, keeper_log, remove_empty_log

_STOP_S = 40.0


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server as `dev status` shows it."""

    name: str
    version: str
    address: str
    pid: int | None
    up: bool


def bring_up(root: Path, on_progress: Progress) -> Servers:
    """Start the servers so that they outlive this process; the addresses of those that run already otherwise."""
    root = root.resolve()
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if KeeperLock(root).holder() is not None:
        return _addresses_of_running(root)
    with keeper_log(root).open("wb") as errors:
        keeper = subprocess.Popen(
            [sys.executable, "-m", "gateway.dev.keeper", str(root), "--detached"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=PROJECT,
            start_new_session=True,
        )
    try:
        return _wait_ready(keeper, root, on_progress)
    except BaseException:
        # Ctrl-C while they start, too: half a set must not stay behind unnoticed.
        with suppress(ProcessLookupError):
            keeper.terminate()
        keeper.wait(_STOP_S)
        raise
    finally:
        if keeper.stdout is not None:
            keeper.stdout.close()


def _wait_ready(keeper: subprocess.Popen[bytes], root: Path, on_progress: Progress) -> Servers:
    for line in keeper.stdout or ():
        message = json.loads(line)
        match message["event"]:
            case "progress":
                on_progress(message["server"], message["text"])
            case "ready":
                return Servers.from_json(message["addresses"])
            case "error":
                raise StackFailed(message["message"])
    raise StackFailed(f"the keeper of the servers ended before they were up; see {keeper_log(root)}")


def _addresses_of_running(root: Path) -> Servers:
    addresses = State.read(root).addresses
    down = [server.name for server in status(root) if not server.up]
    if addresses is None or down:
        raise StackFailed(
            f"the servers in {root} run only in part ({', '.join(down) or 'they are still starting'});"
            " stop them with `silogate dev down` and start them again"
        )
    return addresses


def take_down(root: Path, *, delete: bool = False) -> bool:
    """Stop the servers of a folder, whatever state they are in; whether there was anything to stop.

    `delete` removes their data as well.
    """
    root = root.resolve()
    stopped = False
    if (keeper := KeeperLock(root).holder()) is not None:
        stopped = True
        for sign in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(keeper, sign)
            if _poll(lambda: KeeperLock(root).holder() is None, _STOP_S):
                break
    # What a keeper that was killed could not stop (on Linux its servers end with it).
    for path in (root / "run").glob("*.pid"):
        stopped = PidFile(path).stop_leftover() or stopped
    remove_empty_log(root)
    if delete:
        forget(root)
    return stopped


def status(root: Path) -> list[ServerStatus]:
    """Each server of a folder; none where servers were never started."""
    root = root.resolve()
    running = KeeperLock(root).holder() is not None
    return [
        ServerStatus(name, server.version, server.address, server.pid if up else None, up)
        for name, server in State.read(root).servers.items()
        for up in [running and server.pid is not None and accepts(int(server.address.rsplit(":", 1)[1]))]
    ]


def _poll(condition: Callable[[], bool], timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.05)
    return condition()
