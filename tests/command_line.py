"""The command line run as an operator runs it: a process of its own, its exit code and what it printed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Printed:
    """How a command ended, what it gave as data and what it said to people."""

    code: int
    data: str
    words: str


async def run(environment: Mapping[str, str], *arguments: str, stdin: str | None = None) -> Printed:
    """Run `silogate` with these arguments and nothing but this environment."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", *arguments),
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **environment},
    )
    async with asyncio.timeout(60):
        data, words = await process.communicate(None if stdin is None else stdin.encode())
    assert process.returncode is not None
    return Printed(process.returncode, data.decode(), words.decode())
