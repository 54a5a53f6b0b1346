"""A mail server that keeps every message in a Maildir and delivers none: aiosmtpd in a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from importlib.metadata import version
from pathlib import Path

from gateway.dev.process import Command
from gateway.dev.server import Server


class Smtp(Server):
    """The SMTP server of the set."""

    name = "smtp"

    @property
    def maildir(self) -> Path:
        return self.root / "mail"

    @property
    def marker(self) -> str:
        return str(self.maildir)

    async def prepare(self) -> None:
        self.version = f"aiosmtpd {version('aiosmtpd')}"
        for part in ("cur", "new", "tmp"):
            (self.maildir / part).mkdir(parents=True, exist_ok=True)

    def command(self) -> Command:
        listen = ("--listen", f"127.0.0.1:{self.port}")
        handler = ("--class", "aiosmtpd.handlers.Mailbox", str(self.maildir))
        # Wherever this process found its packages: an environment, or a path it was given.
        environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        return Command((sys.executable, "-m", "aiosmtpd", "--nosetuid", *listen, *handler), environment=environment)

    async def answers(self) -> bool:
        try:
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                try:
                    return (await reader.readline()).startswith(b"220 ")
                finally:
                    writer.close()
                    await writer.wait_closed()
        except (OSError, TimeoutError):
            return False
