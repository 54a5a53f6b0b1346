"""What a keeper leaves on disk: who it is, where its servers answer, and the passwords; readable by its owner only."""

from __future__ import annotations

import fcntl
import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gateway.dev.addresses import Servers
from gateway.dev.process import write_private


@dataclass(frozen=True, slots=True)
class ServerState:
    """One server as its keeper last saw it."""

    version: str
    address: str
    pid: int | None


@dataclass(slots=True)
class State:
    """The content of state.json. Ports and passwords outlive the keeper, so that the next one can use the same data."""

    passwords: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    servers: dict[str, ServerState] = field(default_factory=dict)
    addresses: Servers | None = None

    @classmethod
    def read(cls, root: Path) -> State:
        """The state in a folder; an empty one where there is none, or an unreadable one."""
        try:
            values: dict[str, Any] = json.loads((root / "state.json").read_text())
            return cls(
                passwords=values["passwords"],
                ports=values["ports"],
                servers={name: ServerState(**server) for name, server in values["servers"].items()},
                addresses=Servers.from_json(values["addresses"]) if values["addresses"] else None,
            )
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, root: Path) -> None:
        """Replace state.json in one step; it is 0600 from its first byte."""
        values = {
            "passwords": self.passwords,
            "ports": self.ports,
            "servers": {name: asdict(server) for name, server in self.servers.items()},
            "addresses": self.addresses.to_json() if self.addresses else None,
        }
        unfinished = root / "state.json.unfinished"
        write_private(unfinished, json.dumps(values, indent=2))
        unfinished.replace(root / "state.json")


def keeper_log(root: Path) -> Path:
    """What a keeper itself complains about; beside its folder, which may be gone when somebody wants to read why."""
    return root.with_name(f"{root.name}.keeper.log")


def remove_empty_log(root: Path) -> None:
    """Remove the log of a keeper that had nothing to complain about."""
    with suppress(FileNotFoundError):
        if keeper_log(root).stat().st_size == 0:
            keeper_log(root).unlink()


class KeeperLock:
    """Held by a keeper for as long as it lives, however it ends: the one true sign that a folder is in use."""

    def __init__(self, root: Path) -> None:
        self._path = root / "keeper.lock"
        self._file: int | None = None

    def acquire(self) -> bool:
        """Take the lock and write our pid into it; False when another keeper has it."""
        file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        # holder() takes the lock for a moment too, to see whether it can.
        attempts_left = 20
        while not _try_lock(file):
            attempts_left -= 1
            if attempts_left == 0:
                os.close(file)
                return False
            time.sleep(0.02)
        os.ftruncate(file, 0)
        os.pwrite(file, str(os.getpid()).encode(), 0)
        self._file = file
        return True

    def release(self) -> None:
        """Let the next keeper in."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def holder(self) -> int | None:
        """The pid of the keeper that holds the lock; None when no keeper lives."""
        try:
            file = os.open(self._path, os.O_RDONLY)
        except OSError:
            return None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(file, 20, 0).decode()
            return int(text) if text else None
        else:
            return None
        finally:
            os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
