"""Servers of the stress's own: a Postgres primary with two replicas and two Valkeys, each behind a proxy.

They end with this process whatever happens to it, and the next run removes what a killed one left on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
from redis.asyncio import Redis

from gateway.dev.keeper import forget
from gateway.dev.ports import free_ports
from gateway.dev.postgres import Cluster, Primary, Replica
from gateway.dev.state import KeeperLock
from gateway.dev.valkey import Valkey
from tests.faults.delaying_proxy import NONE, Proxy
from tests.integration.cache_world import SCHEMA, until

_NAMES = ("postgres", "second", "third", "valkey", "other-valkey")


@dataclass(slots=True)
class Standby:
    """A replica, the way that lookups reach it, and the way that it reaches its primary."""

    server: Replica
    read: Proxy
    link: Proxy


@dataclass(frozen=True, slots=True)
class Fallen:
    """What a failover of Postgres left on a timeline that has ended: the old primary and the replica that follows it.

    `promoted` keeps its way for lookups too, so that both are asked until the fallen are made anew.
    """

    primary: Primary | Replica
    follower: Standby
    promoted: Standby


class StressServers:
    """Everything that can be turned against the cache. `primary` and `valkey` are the ones that count at present."""

    def __init__(self, root: Path, seed: int) -> None:
        self.ports = free_ports(_NAMES, {})
        words = {name: secrets.token_urlsafe(24) for name in ("password", "replication_password")}
        self.cluster = Cluster.at(root, durable=False, **words)
        self.root = root
        self.primary: Primary | Replica = Primary(root, self.ports["postgres"], self.cluster)
        # Each that may run, by its name: also the one that a failover has just replaced.
        self._databases: dict[str, Primary | Replica] = {self.primary.name: self.primary}
        self.valkey = Valkey(root, self.ports["valkey"])
        self.other_valkey = Valkey(root, self.ports["other-valkey"], name="other-valkey")

        def proxy(port: int) -> Proxy:
            # Each has a chance of its own, so that what happens to one does not hang on the traffic of the others.
            return Proxy(port, random.Random(f"{seed} {port}"))

        self.write = proxy(self.primary.port)
        # Those who follow the primary have a way of their own: they may be the last to hear of a promotion.
        self.follow = proxy(self.primary.port)
        self.redis = proxy(self.valkey.port)
        self.redis_link = proxy(self.valkey.port)
        self.standbys = []
        for name in ("second", "third"):
            link, read = proxy(self.primary.port), proxy(self.ports[name])
            self.standbys.append(Standby(self._replica(name, self.ports[name], self.primary, link), read, link))

    @property
    def proxies(self) -> list[Proxy]:
        return [
            self.write,
            self.follow,
            self.redis,
            self.redis_link,
            *(p for s in self.standbys for p in (s.read, s.link)),
        ]

    def _replica(self, name: str, port: int, primary: Primary | Replica, link: Proxy) -> Replica:
        made = Replica(self.root, port, self.cluster, primary, name=name, through=lambda: link.port)
        self._databases[name] = made
        return made

    async def start(self) -> None:
        for proxy in self.proxies:
            await proxy.open()
        async with asyncio.TaskGroup() as tasks:
            for valkey in (self.valkey, self.other_valkey):
                tasks.create_task(_start(valkey))
            await _start(self.primary)
            for standby in self.standbys:
                tasks.create_task(_start(standby.server))
        await self.calm()

    async def stop(self) -> None:
        for server in (*self._databases.values(), self.valkey, self.other_valkey):
            await server.kill()
        for proxy in self.proxies:
            await proxy.close()

    async def calm(self) -> None:
        """No delay and no lag; the other Valkey follows."""
        for proxy in self.proxies:
            proxy.requests = proxy.replies = NONE
            proxy.hold(False)
            proxy.shut(False)
        for standby in self.standbys:
            await standby.server.replay(paused=False)
        await self.follow_valkey()

    # Valkey

    async def follow_valkey(self) -> None:
        """Have the other Valkey copy the present one, through a proxy that can hold it back."""
        self.redis_link.lead_to(self.valkey.port)
        for valkey in (self.valkey, self.other_valkey):
            async with Redis.from_url(valkey.url) as redis:
                await redis.config_set("repl-diskless-sync-delay", 0)
        async with Redis.from_url(self.other_valkey.url) as redis:
            await redis.replicaof("127.0.0.1", str(self.redis_link.port))

            async def follows() -> bool:
                info: dict[str, Any] = await redis.info("replication")
                return info["master_link_status"] == "up" and not info["master_sync_in_progress"]

            await until(follows)

    async def promote_valkey(self) -> None:
        """Make the other Valkey the one that is used, with what it has; the present one is its replica from then on."""
        async with Redis.from_url(self.other_valkey.url) as redis:
            await redis.replicaof("NO", "ONE")
        self.redis_link.cut()  # what was still on its way to it must not come
        self.redis_link.hold(False)
        self.valkey, self.other_valkey = self.other_valkey, self.valkey
        self.redis.lead_to(self.valkey.port)

    # Postgres

    async def promote(self, standby: Standby) -> None:
        """Make a replica a primary with what it has; the present primary is not told and goes on."""
        await standby.server.replay(paused=False)
        await standby.server.promote()

    def switch(self, standby: Standby) -> Fallen:
        """Lead whoever writes to the promoted replica."""
        [follower] = [other for other in self.standbys if other is not standby]
        fallen = Fallen(self.primary, follower, standby)
        self.primary = standby.server
        self.write.lead_to(self.primary.port)
        return fallen

    def follow_primary(self) -> None:
        """Lead whoever follows the primary to the present one."""
        self.follow.lead_to(self.primary.port)

    async def renew(self, fallen: Fallen) -> None:
        """Make the servers of the ended timeline replicas of the present primary, from nothing."""
        follower, promoted = fallen.follower, fallen.promoted
        # The promoted one's way for lookups leads to it until its successor there is up.
        for place, old in ((follower, follower.server), (promoted, fallen.primary)):
            place.read.cut()
            await old.kill()
            await asyncio.to_thread(shutil.rmtree, old.data)
            place.link.hold(False)
            place.link.lead_to(self.primary.port)
            place.server = self._replica(old.name, old.port, self.primary, place.link)
            await _start(place.server)
            place.read.lead_to(place.server.port)

    def url(self, port: int, database: str) -> str:
        return f"{self.cluster.url(port).rpartition('/')[0]}/{database}"

    @contextlib.asynccontextmanager
    async def connect(self, server: Primary | Replica, database: str) -> AsyncIterator[asyncpg.Connection]:
        """A connection to that very server, past every proxy."""
        connection = await asyncpg.connect(
            self.url(server.port, database), timeout=10, server_settings={"search_path": SCHEMA}
        )
        try:
            yield connection
        finally:
            await connection.close(timeout=5)


async def _start(server: Primary | Replica | Valkey) -> None:
    await server.prepare()
    await server.start()


@contextlib.asynccontextmanager
async def stress_servers(folder: Path, seed: int) -> AsyncIterator[StressServers]:
    """Servers for as long as the block lasts."""
    root = (folder / f"test-{os.getpid()}-stress").resolve()
    for part in ("logs", "run"):
        (root / part).mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    lock = KeeperLock(root)
    assert lock.acquire()
    # Left behind by a killed run, it is removed by the next keeper that starts beside it.
    (root / "ephemeral").touch()
    try:
        servers = StressServers(root, seed)
        try:
            await servers.start()
            yield servers
        finally:
            await servers.stop()
    finally:
        await asyncio.to_thread(forget, root)
        lock.release()
