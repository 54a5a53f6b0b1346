"""What is done to the servers while the stress goes on. Each fault tells how much of it there was; 0 is not enough."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import asyncpg
from redis.asyncio import Redis

from cache.server import DATABASE_ERRORS
from cache.state import State
from gateway.dev.postgres import Replica
from tests.faults.cache_stress import Stress
from tests.faults.cache_stress_servers import Fallen, Standby, StressServers
from tests.faults.delaying_proxy import NONE, Delay
from tests.integration.cache_world import STATE_KEY, as_bytes, until

Fault = Callable[[], Awaitable[int]]

REDIS = ("flush", "evict", "hang", "late replies of Redis", "late calls of Redis", "reset by Redis", "Redis failover")
POSTGRES = ("epoch", "replica paused", "replicas paused", "late replies of replicas", "reset by replicas", "silo away")
FAILOVER = "Postgres failover"

_SLOW = Delay(0.2, 0.09)  # below the time-out of a read, so that what is late is used all the same
_VERY_SLOW = Delay(0.04, 0.4)
_SLOW_SILO = Delay(0.5, 0.25)


class Faults:
    """Faults on a set of servers. `amounts` sums up what each did, `happened` counts those that met work in flight."""

    def __init__(self, stress: Stress, servers: StressServers, database: str, seed: int) -> None:
        self.stress = stress
        self.servers = servers
        self.chance = random.Random(f"faults {seed}")
        self.happened: Counter[str] = Counter()
        self.amounts: Counter[str] = Counter()
        self._database = database
        self._all: dict[str, Fault] = {
            "flush": self._flush,
            "evict": self._evict,
            "hang": self._hang,
            "late replies of Redis": lambda: self._late_redis(replies=True),
            "late calls of Redis": lambda: self._late_redis(replies=False),
            "reset by Redis": self._reset_redis,
            "Redis failover": self._fail_redis_over,
            "epoch": self._epoch,
            "replica paused": lambda: self._pause([self.chance.choice(self.servers.standbys)]),
            "replicas paused": lambda: self._pause(self.servers.standbys),
            "late replies of replicas": self._late_replicas,
            "reset by replicas": self._reset_replicas,
            "silo away": self._silo_away,
            FAILOVER: self._fail_postgres_over,
        }

    async def run(self, names: Sequence[str], *, rounds: int = 1) -> None:
        """One fault after another, each once a round in any order, for at least so many rounds.

        One that met nobody, or did nothing, has not happened: then there is another round.
        """
        self.stress.holds.add(token := object())
        while not self.stress.done():
            bag = list(names)
            self.chance.shuffle(bag)
            for name in bag:
                await asyncio.sleep(self.chance.uniform(0.05, 0.3))
                asking = self.stress.asking
                amount = await self._all[name]()
                self.happened[name] += asking > 0 and amount > 0
                self.amounts[name] += amount
                if self.stress.done():
                    return
            rounds -= 1
            if rounds <= 0 and all(self.happened[name] for name in names):
                self.stress.holds.discard(token)

    def summary(self) -> str:
        return ", ".join(f"{name} {self.happened[name]} ({self.amounts[name]})" for name in self.happened)

    # Redis

    async def _flush(self) -> int:
        async with Redis.from_url(self.servers.valkey.url) as redis:
            keys = int(await redis.dbsize())
            await redis.flushall()
        return keys

    async def _evict(self) -> int:
        async with Redis.from_url(self.servers.valkey.url) as redis:
            found = [key async for key in redis.scan_iter(match="silogate:*:lk:*", count=1000)]
            gone = [key for key in found if self.chance.random() < 0.5]
            return int(await redis.unlink(*gone)) if gone else 0

    async def _hang(self) -> int:
        """Returns how many were asking when it went on."""
        self.servers.valkey.freeze(True)
        try:
            await asyncio.sleep(0.15)
            return self.stress.asking
        finally:
            self.servers.valkey.freeze(False)

    async def _late_redis(self, *, replies: bool) -> int:
        """Some replies late, or some calls: a FILL or an APPLY that arrives when much has happened since."""
        proxy = self.servers.redis
        before = proxy.delayed
        if replies:
            proxy.replies = _SLOW
        else:
            proxy.requests = _VERY_SLOW
        await asyncio.sleep(0.5)
        proxy.requests = proxy.replies = NONE
        return proxy.delayed - before

    async def _reset_redis(self) -> int:
        asking = self.stress.asking
        self.servers.redis.cut()
        return asking

    async def _fail_redis_over(self) -> int:
        """Promote the other Valkey while it lacks changes and fills; returns how many changes it lacked."""
        servers = self.servers
        servers.redis_link.hold(True)
        await self._written(5)
        newest, copied = await self._seq_of(servers.valkey.url), await self._seq_of(servers.other_valkey.url)
        await servers.promote_valkey()
        await asyncio.sleep(self.chance.uniform(0, 0.1))
        await servers.follow_valkey()
        # One that a flush left without a state lacks everything, which is another fault.
        return max(newest - copied, 0) if copied >= 0 else 0

    async def _seq_of(self, url: str) -> int:
        async with Redis.from_url(url) as redis:
            state = State.parse(as_bytes(await redis.get(STATE_KEY)))
        return -1 if state is None else state.seq

    # Postgres

    async def _epoch(self) -> int:
        async with self.servers.connect(self.servers.primary, self._database) as connection:
            done = await connection.execute("update progress set epoch = md5(random()::text)")
        return int(done.split()[1])

    async def _pause(self, standbys: list[Standby]) -> int:
        """Replicas that replay nothing for a while; returns how many commits the first lacked in the end."""
        try:
            for standby in standbys:
                await standby.server.replay(paused=True)
            await asyncio.sleep(self.chance.uniform(0.1, 0.5))
            await self._written(3)
            newest = self.stress.history.current.newest
            return max(0, newest - await self._seq_at(standbys[0].server))
        finally:
            for standby in standbys:
                await standby.server.replay(paused=False)

    async def _seq_at(self, server: Replica) -> int:
        async with self.servers.connect(server, self._database) as connection:
            return int(await connection.fetchval("select seq from progress"))

    async def _late_replicas(self) -> int:
        """Answers of the replicas that come late, and so fills of what was true a while ago."""
        proxies = [standby.read for standby in self.servers.standbys]
        before = sum(proxy.delayed for proxy in proxies)
        for proxy in proxies:
            proxy.replies = _SLOW_SILO
        await asyncio.sleep(0.6)
        for proxy in proxies:
            proxy.replies = NONE
        return sum(proxy.delayed for proxy in proxies) - before

    async def _reset_replicas(self) -> int:
        asking = self.stress.asking
        for standby in self.servers.standbys:
            standby.read.cut()
        return asking

    async def _silo_away(self) -> int:
        """Nothing of the silo can be reached for longer than a caller with an old answer is made to wait."""
        servers = self.servers
        proxies = [servers.write, servers.follow, *(standby.read for standby in servers.standbys)]
        before = self.stress.history.sources["stale"] + self.stress.unanswered
        for proxy in proxies:
            proxy.shut(True)
        await asyncio.sleep(0.8)
        for proxy in proxies:
            proxy.shut(False)
        return self.stress.history.sources["stale"] + self.stress.unanswered - before

    async def _fail_postgres_over(self) -> int:
        """Promote a replica that lacks commits; returns how many. The other one stays on the timeline that ended."""
        standby = self.chance.choice(self.servers.standbys)
        standby.link.hold(True)
        await self._written(5)
        await self.servers.promote(standby)
        async with self.servers.connect(standby.server, self._database) as connection:
            epochs = await self.stress.learn_from(connection)
            timeline, seq = await connection.fetchrow(
                "select ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8, seq from progress"
            )
        lost = self.stress.history.fork(timeline, seq, epochs)
        fallen = self.servers.switch(standby)
        # Lost numbers are given anew while Redis still follows the old primary: an epoch must tell the two apart.
        await self._written(lost + 5)
        self.servers.follow_primary()
        await until(self._new_timeline_known)
        self.amounts["questions to a dead replica"] += await self._ask_the_dead(fallen)
        async with self.servers.connect(fallen.primary, self._database) as connection:
            await self.stress.learn_from(connection)
        await self.servers.renew(fallen)
        return lost

    async def _new_timeline_known(self) -> bool:
        """Whether Redis follows the new primary: its epoch was begun there."""
        async with Redis.from_url(self.servers.valkey.url) as redis:
            state = State.parse(as_bytes(await redis.get(STATE_KEY)))
        current = self.stress.history.current
        try:
            async with self.servers.connect(self.servers.primary, self._database) as connection:
                await self.stress.learn_from(connection)
        except DATABASE_ERRORS:
            return False
        return state is not None and state.epoch in current.epochs

    async def _ask_the_dead(self, fallen: Fallen) -> int:
        """For a while the replica on the dead timeline is the only one that lookups can reach."""
        before = fallen.follower.read.asked
        fallen.promoted.read.shut(True)
        await asyncio.sleep(0.7)
        fallen.promoted.read.shut(False)
        return fallen.follower.read.asked - before

    async def _written(self, more: int) -> None:
        """Wait for so many more writes, or until there are no more."""
        enough = self.stress.written + more

        async def written() -> bool:
            return self.stress.written >= enough or self.stress.done()

        await until(written)


async def replicas_follow(servers: StressServers, connection: asyncpg.Connection) -> None:
    """Wait until both replicas have what the primary has written by now."""
    position = await connection.fetchval("select pg_current_wal_lsn()::text")

    async def followed() -> bool:
        for standby in servers.standbys:
            async with servers.connect(standby.server, "postgres") as replica:
                if not await replica.fetchval("select pg_last_wal_replay_lsn() >= $1::text::pg_lsn", position):
                    return False
        return True

    await until(followed)
