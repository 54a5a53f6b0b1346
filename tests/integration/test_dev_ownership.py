"""No development server outlives its owner, and what an unclean end left behind is put right by the next start."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import asyncpg
import pytest

from gateway.dev import servers
from gateway.dev.detached import status, take_down
from gateway.dev.keeper import remove_abandoned
from gateway.dev.ports import free_ports
from gateway.dev.process import PidFile, command_line
from gateway.dev.stack import PROJECT, Stack, StackFailed, open_stack, start_stack
from gateway.dev.state import KeeperLock, State

pytestmark = pytest.mark.timeout(300)  # whole sets are started, several times, beside the rest of the suite

_NAMES = ("postgres", "replica", "valkey", "kafka", "smtp")

_OWNER = """
import sys, time
from pathlib import Path
from gateway.dev.stack import start_stack
with start_stack(Path(sys.argv[1]), ephemeral=True) as stack:
    print(stack.keeper_pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for servers of the test's own; whatever runs there is stopped at the end."""
    folder = tmp_path / "the council's süd set"
    yield folder
    take_down(folder, delete=True)


def _processes_of(root: Path) -> list[str]:
    """Every process with the set's folders on its command line or as its current folder."""
    postgres = root / "postgres"
    folders = {str(root), str(postgres.readlink()) if postgres.is_symlink() else str(root)}
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            where = str((process / "cwd").readlink())
        except OSError:
            continue
        if int(process.name) != os.getpid() and any(folder in line or where.startswith(folder) for folder in folders):
            found.append(f"{process.name} {line}")
    return found


def _eventually(condition: Callable[[], bool], *, within_s: float = 60) -> None:
    until = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < until, "it did not come true in time"
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_nothing_is_left_when_the_owner_is_killed(root: Path) -> None:
    """kill -9 of the process that started the servers ends all of them, and removes their data."""
    owner = subprocess.Popen([sys.executable, "-c", _OWNER, str(root)], stdout=subprocess.PIPE, cwd=PROJECT)
    assert owner.stdout is not None
    with owner, owner.stdout as output:
        assert output.readline()
        data = (root / "postgres").resolve()
        assert len(_processes_of(root)) > 6
        owner.kill()
    _eventually(lambda: not root.exists() and not data.exists() and not _processes_of(root))


async def test_nothing_is_left_when_starting_is_interrupted(root: Path) -> None:
    """Ctrl-C while the servers start ends those that run already, and does not wait for the others."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progress(_server: str, _text: str) -> None:
        loop.call_soon_threadsafe(begun.set)

    async def owner() -> None:
        async with open_stack(root, ephemeral=True, on_progress=progress):
            raise AssertionError("they were not meant to be up so soon")

    starting = asyncio.create_task(owner())
    await asyncio.wait_for(begun.wait(), 60)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert not root.exists()
    assert not _processes_of(root)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the next start stops what a killed keeper leaves")
async def test_nothing_is_left_when_the_keeper_is_killed(root: Path) -> None:
    """kill -9 of the keeper ends all servers too; started again they have every commit at the same addresses."""
    async with open_stack(root) as stack:
        before = stack.servers
        connection = await asyncpg.connect(before.postgres_url)
        await connection.execute("CREATE TABLE toilet AS SELECT 'Beach Green' AS name")
        os.kill(stack.keeper_pid, signal.SIGKILL)
        _eventually(lambda: not _processes_of(root))
        await connection.close()
    async with open_stack(root) as stack:
        for url in (stack.servers.postgres_url, stack.servers.replica_url):
            connection = await asyncpg.connect(url)
            assert await connection.fetchval("SELECT name FROM toilet") == "Beach Green"
            await connection.close()
        assert stack.servers == before
    assert root.exists()
    assert not _processes_of(root)


async def test_up_runs_on_until_down(root: Path) -> None:
    """`dev up` returns with the servers running, a second one finds them, `down` ends them, and the data stays."""
    assert "No servers were started here yet" in _dev("status", root, code=1)
    _dev("up", root)
    addresses = State.read(root).addresses
    assert addresses is not None
    connection = await asyncpg.connect(addresses.postgres_url)
    await connection.execute("CREATE TABLE toilet AS SELECT 'Beach Green' AS name")
    await connection.close()
    assert addresses.kafka_bootstrap in _dev("up", root)
    assert f"export SILOGATE_KAFKA_BOOTSTRAP={addresses.kafka_bootstrap}\n" in _dev("env", root)
    shown = {server["name"]: server for server in json.loads(_dev("status", root, "--json"))}
    assert {name: server["up"] for name, server in shown.items()} == dict.fromkeys(_NAMES, True)
    assert shown["postgres"]["version"].startswith("18.")
    assert shown["kafka"]["version"] == "4.2.0"

    os.kill(shown["valkey"]["pid"], signal.SIGKILL)
    _eventually(lambda: not {server.name: server for server in status(root)}["valkey"].up)
    assert "run only in part (valkey)" in _dev("up", root, code=1)
    assert "The servers are stopped." in _dev("down", root)
    _eventually(lambda: not _processes_of(root))
    assert "No servers were running." in _dev("down", root)

    _dev("up", root)
    connection = await asyncpg.connect(addresses.postgres_url)
    assert await connection.fetchval("SELECT name FROM toilet") == "Beach Green"
    await connection.close()
    _dev("down", root, "--delete")
    assert not root.exists()


def test_two_keepers_never_share_a_folder(stack: Stack) -> None:
    """A second keeper in a folder in use is refused, and harms nothing."""
    with pytest.raises(StackFailed, match="another keeper"), start_stack(stack.root, ephemeral=False):
        pass
    assert stack.root.exists()


def test_what_a_killed_keeper_left_is_removed_by_the_next(tmp_path: Path) -> None:
    """An ephemeral set whose keeper was killed goes when the next starts beside it; one in use stays."""
    abandoned, used = tmp_path / "test-1", tmp_path / "test-2"
    for folder in (abandoned, used):
        (folder / "run").mkdir(parents=True)
        (folder / "ephemeral").touch()
    leftover = _sleeper(str(abandoned / "valkey"))
    PidFile(abandoned / "run" / "valkey.pid").write(leftover.pid, str(abandoned / "valkey"))
    lock = KeeperLock(used)
    assert lock.acquire()

    remove_abandoned(tmp_path)

    assert leftover.wait(10) != 0
    assert not abandoned.exists()
    assert used.exists()
    lock.release()


def test_a_stale_pid_file_kills_no_stranger(tmp_path: Path) -> None:
    """A pid that belongs to another program by now is left alone."""
    stranger = _sleeper("somebody else's")
    file = PidFile(tmp_path / "valkey.pid")
    file.write(stranger.pid, str(tmp_path / "valkey"))
    assert not file.stop_leftover()
    assert stranger.poll() is None
    stranger.kill()
    stranger.wait()


async def test_a_port_taken_meanwhile_is_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When another process takes a port between its choice and its use, the servers start on others."""
    (root / "logs").mkdir(parents=True)
    (root / "run").mkdir()
    told: list[tuple[str, str]] = []
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]

    def late(wanted: Iterable[str], previous: dict[str, int]) -> dict[str, int]:
        chosen = free_ports(wanted, previous)
        return chosen if told else {**chosen, "valkey": port}

    monkeypatch.setattr(servers, "free_ports", late)
    try:
        running = await servers.start_servers(root, durable=False, tell=lambda *said: told.append(said))
        addresses = running.addresses()
        await running.stop(kindly=False)
    finally:
        taken.close()
    assert ("valkey", "its port was taken meanwhile; trying others") in told
    assert str(port) not in addresses.redis_url
    assert not _processes_of(root)


def _dev(command: str, root: Path, *options: str, code: int = 0) -> str:
    """What `silogate dev` prints. A process of its own, because `up` leaves a child behind on purpose."""
    program = [sys.executable, "-c", "from gateway.dev.cli import dev_app; dev_app()", command, "--folder", str(root)]
    done = subprocess.run([*program, *options], cwd=PROJECT, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def _sleeper(argument: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", argument])
    _eventually(lambda: argument in command_line(process.pid))  # empty for a moment after exec
    return process
