"""The whole set of development servers in one folder: started together, stopped together, each addressed by name."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gateway.dev.addresses import Servers
from gateway.dev.kafka import Kafka
from gateway.dev.ports import free_ports
from gateway.dev.postgres import Cluster, Primary, Replica
from gateway.dev.process import ServerFailed
from gateway.dev.server import Server
from gateway.dev.smtp import Smtp
from gateway.dev.state import ServerState, State
from gateway.dev.valkey import Valkey

_START_S = 300.0  # the first start fetches 43 MB of jars, perhaps over a slow line
_PORTS = ("postgres", "replica", "valkey", "kafka", "kafka-controller", "smtp")

Tell = Callable[[str, str], None]


class ServerSet:
    """One set of servers. `tell(server, text)` hears of progress, from any thread."""

    def __init__(self, root: Path, *, durable: bool, tell: Tell) -> None:
        if (root / "postgres").is_symlink() and not (root / "postgres").exists():
            tell("postgres", "its data in /tmp is gone, as after a reboot: it begins with an empty database")
        self._root = root
        self._tell = tell
        self._state = State.read(root)
        for name in ("postgres", "replication"):
            self._state.passwords.setdefault(name, secrets.token_urlsafe(24))
        self._state.ports = ports = free_ports(_PORTS, self._state.ports)
        self._state.write(root)
        cluster = Cluster.at(
            root,
            password=self._state.passwords["postgres"],
            replication_password=self._state.passwords["replication"],
            durable=durable,
        )
        self._primary = Primary(root, ports["postgres"], cluster)
        self._replica = Replica(root, ports["replica"], cluster, self._primary)
        self._valkey = Valkey(root, ports["valkey"])
        self._kafka = Kafka(root, ports["kafka"], ports["kafka-controller"], self._fetched)
        self._smtp = Smtp(root, ports["smtp"])
        servers: tuple[Server, ...] = (self._primary, self._replica, self._valkey, self._kafka, self._smtp)
        self._servers: Mapping[str, Server] = {server.name: server for server in servers}

    def addresses(self) -> Servers:
        return Servers(
            postgres_url=self._primary.url,
            replica_url=self._replica.url,
            redis_url=self._valkey.url,
            kafka_bootstrap=self._kafka.address,
            smtp_host="127.0.0.1",
            smtp_port=self._smtp.port,
            maildir=self._smtp.maildir,
        )

    def pids(self) -> dict[str, int | None]:
        return {name: server.pid for name, server in self._servers.items()}

    async def start(self) -> None:
        """Start all servers, side by side; ServerFailed when one of them does not come up."""
        for server in self._servers.values():
            if await asyncio.to_thread(server.pid_file.stop_leftover):
                self._tell(server.name, "stopped one that an unclean end had left")
        try:
            async with asyncio.timeout(_START_S), asyncio.TaskGroup() as group:
                group.create_task(self._start_postgres())
                for server in (self._valkey, self._kafka, self._smtp):
                    group.create_task(self._start(server))
        except* ServerFailed as failures:
            raise _first(failures) from None
        except* TimeoutError:
            raise ServerFailed("kafka", f"the servers were not up within {_START_S:.0f} s") from None
        self.remember()

    async def _start_postgres(self) -> None:
        await self._start(self._primary)
        await self._replica.start_or_copy()
        self._started(self._replica)

    async def _start(self, server: Server) -> None:
        await server.prepare()
        await server.start()
        self._started(server)

    def _started(self, server: Server) -> None:
        self._tell(server.name, f"{server.version} answers at {server.address}")

    def _fetched(self, text: str) -> None:
        self._tell("kafka", text)

    def remember(self) -> None:
        """Write what runs now to the state file."""
        self._state.servers = {
            name: ServerState(server.version, server.address, server.pid) for name, server in self._servers.items()
        }
        self._state.addresses = self.addresses()
        self._state.write(self._root)

    async def stop(self, *, kindly: bool) -> None:
        """Stop all servers; `kindly=False` when nobody needs the data any more."""
        async with asyncio.TaskGroup() as group:
            for server in self._servers.values():
                group.create_task(server.stop() if kindly else server.kill())
        self.remember()

    async def obey(self, order: Mapping[str, Any]) -> None:
        """Carry out one order: `do` what to `server`, and `how`. ServerFailed when that cannot be done."""
        server = self._servers.get(str(order.get("server")))
        if server is None:
            raise ServerFailed(
                "?", f"no server is called {order.get('server')!r}; there are {', '.join(self._servers)}"
            )
        end = server.kill if order.get("how") == "kill" else server.stop
        match order.get("do"):
            case "stop":
                await end()
            case "start":
                await server.start()
            case "restart":
                await end()
                await server.start()
            case "freeze" | "thaw" as what:
                server.freeze(what == "freeze")
            case "pause" | "resume" as what if server is self._replica:
                await self._replica.replay(paused=what == "pause")
            case unknown:
                raise ServerFailed(server.name, f"it cannot {unknown!r}")
        self.remember()


async def start_servers(root: Path, *, durable: bool, tell: Tell) -> ServerSet:
    """A running set. When this fails or is cancelled, nothing is left running."""
    attempts_left = 3
    while True:
        servers = ServerSet(root, durable=durable, tell=tell)
        attempts_left -= 1
        try:
            await servers.start()
        except ServerFailed as failure:
            await servers.stop(kindly=False)
            # Between our choice of a port and its use another process may take it: choose again.
            if attempts_left == 0 or "already in use" not in str(failure).casefold():
                raise
            tell(failure.server, "its port was taken meanwhile; trying others")
        except BaseException:
            await servers.stop(kindly=False)
            raise
        else:
            return servers


def _first(failures: BaseExceptionGroup[ServerFailed]) -> ServerFailed:
    found = failures.exceptions[0]
    return found if isinstance(found, ServerFailed) else _first(found)
