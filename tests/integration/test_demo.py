"""The demo as a person starts it: its journey is seen to the end, and nothing of it survives its end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.dev.browser import find_browser

_PROJECT = Path(__file__).resolve().parents[2]
_WALKED_S = 200


@asynccontextmanager
async def demo() -> AsyncIterator[asyncio.subprocess.Process]:
    """`silogate demo --check`, killed at the end of the block if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.cli", "demo", "--check"),
        cwd=_PROJECT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def lines_until(process: asyncio.subprocess.Process, wanted: str) -> str:
    """What the demo prints, up to a line that begins with `wanted`."""
    assert process.stdout is not None
    told = ""
    async for line in process.stdout:
        told += line.decode()
        if line.decode().startswith(wanted):
            return told
    raise AssertionError(f"the demo ended before {wanted!r}:\n{told}")


def descendants(pid: int) -> set[int]:
    """Every process below `pid`."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _stat(int(entry.name))):
            parents[int(entry.name)] = int(stat[1])
    found, newest = set[int](), {pid}
    while newest:
        newest = {child for child, parent in parents.items() if parent in newest}
        found |= newest
    return found


def _stat(pid: int) -> list[str] | None:
    """State and parent of a process; None when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def living(pids: set[int]) -> set[int]:
    """Those that still run; one that only waits for its parent to notice its end does not."""
    return {pid for pid in pids if (stat := _stat(pid)) and stat[0] != "Z"}


@pytest.mark.browser
@pytest.mark.timeout(_WALKED_S + 40)
async def test_the_whole_journey_is_seen() -> None:
    """`silogate demo --check` walks by HTTP, and in a browser where there is one, and exits 0."""
    async with demo() as process:
        async with asyncio.timeout(_WALKED_S):
            told, _ = await process.communicate()
    text = told.decode()
    assert process.returncode == 0, text
    assert "✗" not in text
    assert "Every step was seen" in text
    if find_browser():
        assert "without JavaScript: the operator's page shows the whole way" in text
    else:
        assert "browser: none found" in text


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc to see which processes are left")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.timeout(150)
async def test_nothing_survives_the_demo(how: signal.Signals) -> None:
    """Killed or asked to stop in the middle of its journey, the demo leaves no process behind."""
    async with demo() as process, asyncio.timeout(120):
        await lines_until(process, "The journey, by HTTP")
        left = descendants(process.pid)
        assert len(left) > 8
        os.kill(process.pid, how)
        if how is signal.SIGINT:
            assert process.stdout is not None
            await process.stdout.read()
            assert await process.wait() == 1
            assert not living(left)
        while left := living(left):
            await asyncio.sleep(0.1)
