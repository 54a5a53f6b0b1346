"""A writer, many askers and a judge over one silo, for as many writes as a test wants."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import pytest

from cache.group import Answer, AsOf
from cache.server import DATABASE_ERRORS
from cache.silo import SiloUnavailable
from tests.faults.cache_stress_history import RADIUS, Branch, History, right
from tests.integration.cache_world import (
    ADVANCE_SQL,
    BY_POSTCODE,
    BY_UPRN,
    NEAR,
    SCHEMA,
    SILO,
    World,
    address,
    rows,
    until,
)

POSTCODES = [f"BN{n} 9JB" for n in range(1, 9)]
UPRNS = range(1, 11)
PLACES = [500_000 + 500 * n for n in range(8)]
ASKERS = 6  # of each world
ASK_TIMEOUT_S = 2.0
# Entries that are soon renewed, and soon past their time: the refresh and the stale answer have races of their own.
ASKED = {
    definition.name: replace(definition, ttl_s=0.5, soft_ttl_s=0.2, negative_ttl_s=0.5)
    for definition in (BY_POSTCODE, BY_UPRN, NEAR)
}
QUESTIONS: list[tuple[str, Any]] = [
    *((BY_POSTCODE.name, postcode) for postcode in POSTCODES),
    *((BY_UPRN.name, uprn) for uprn in UPRNS),
    *((NEAR.name, place) for place in PLACES),
]

_TIMELINE = "('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int8"
# Where each epoch was begun, so that the judge can tell the timelines apart by it.
_NOTE_EPOCHS = f"""
create table {SCHEMA}.epoch_begun (epoch text primary key, timeline int8 not null);
insert into {SCHEMA}.epoch_begun select epoch, {_TIMELINE} from {SCHEMA}.progress;
create function {SCHEMA}.note_epoch() returns trigger language plpgsql as $$ begin
    insert into {SCHEMA}.epoch_begun values (new.epoch, {_TIMELINE}) on conflict do nothing;
    return null;
end $$;
create trigger note_epoch after update of epoch on {SCHEMA}.progress for each row
    when (old.epoch is distinct from new.epoch) execute function {SCHEMA}.note_epoch();
"""
# The applier's transaction as one statement: rows, change log and position, all or nothing.
_WRITE = f"""
with gone as (
    delete from address where uprn = $1 and $2::json is null
), put as (
    insert into address select * from json_populate_record(null::address, $2) where $2 is not null
    on conflict (uprn) do update
        set postcode = excluded.postcode, address = excluded.address, easting = excluded.easting
), moved as (
    {ADVANCE_SQL.replace("$1", "$3")}
), logged as (
    insert into change_log (seq, id, tags) select seq, id, $4 from moved
)
select epoch, seq from moved
"""
# Waits for a commit that a broken connection left half-way.
_WHERE = f"select {_TIMELINE} as timeline, seq from progress for update"
_EPOCHS = "select epoch, timeline from epoch_begun"


class Stress:
    """What goes on while faults happen. It is over once `writes` are done and nobody `holds` it.

    `needs` is how many answers of which source there must be by then, however slow the machine is. With `until_caught`
    it is also over with the first violation.
    """

    def __init__(
        self,
        worlds: Sequence[World],
        seed: int,
        *,
        writes: int,
        needs: Mapping[str, int] | None = None,
        pace_s: float = 0.005,
        until_caught: bool = False,
    ) -> None:
        self.worlds = worlds
        self.chance = random.Random(seed)
        self.writes = writes
        self.needs = needs or {}
        self.pace_s = pace_s
        self.until_caught = until_caught
        self.history = History(0, [])
        self.written = 0
        self.asking = 0
        self.unanswered = 0
        self.slowest_s = 0.0
        self.too_old: list[str] = []
        self.holds: set[object] = set()
        self._token: tuple[AsOf, Branch] | None = None

    def done(self) -> bool:
        if self.until_caught and self.history.violations:
            return True
        if any(self.history.sources[source] < count for source, count in self.needs.items()):
            return False
        return self.written >= self.writes and not self.holds

    async def prepare(self) -> None:
        """Begin the history with a silo that World has prepared: empty, and loaded once."""
        async with self.worlds[0].connect() as connection:
            await connection.execute(_NOTE_EPOCHS)
            row = await connection.fetchrow(_WHERE)
            assert row["seq"] == 1
            self.history = History(row["timeline"], [{}, {}])
            await self.learn_from(connection)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._write())
            for world in self.worlds:
                for _ in range(ASKERS):
                    tasks.create_task(self._ask(world))

    # Writing

    async def _write(self) -> None:
        """Write until it is over; a broken connection is a new one, perhaps to another primary."""
        while not self.done():
            try:
                async with self.worlds[0].connect() as connection:
                    where = await connection.fetchrow(_WHERE, timeout=5)
                    branch = self.history.branches[where["timeline"]]
                    branch.resolve(where["seq"])
                    while not self.done():
                        await self._write_one(connection, branch)
                        await asyncio.sleep(self.chance.uniform(0, 2 * self.pace_s))
            except DATABASE_ERRORS:
                await asyncio.sleep(0.02)

    async def _write_one(self, connection: asyncpg.Connection, branch: Branch) -> None:
        uprn, tagger = self.chance.choice(UPRNS), self.worlds[0].tagger
        text = f"{uprn} at {branch.timeline}/{branch.newest + 1}"
        row = address(uprn, self.chance.choice(POSTCODES), text, self.chance.choice(PLACES))
        before = branch.images[-1].get(uprn)
        after = None if self.chance.random() < 0.2 else row
        tags = {tag for image in (before, after) if image is not None for tag in tagger.row_tags("address", image)}
        image = {key: value for key, value in branch.images[-1].items() if key != uprn}
        branch.note(image if after is None else image | {uprn: after})
        new = None if after is None else json.dumps(after)
        wrote = await connection.fetchrow(_WRITE, uprn, new, secrets.token_hex(16), sorted(tags), timeout=5)
        assert wrote["seq"] == branch.newest
        branch.ack()
        self._token = AsOf(SILO, wrote["epoch"], wrote["seq"]), branch
        self.written += 1

    # Asking

    async def _ask(self, world: World) -> None:
        while not self.done():
            await asyncio.sleep(self.chance.uniform(0, 0.004))
            name, value = self.chance.choice(QUESTIONS)
            token = self._token if self.chance.random() < 0.1 else None
            asked = time.time()
            self.asking += 1
            try:
                answer = await self.put(world, name, value, token[0] if token else None)
            except SiloUnavailable:
                self.unanswered += 1
                # A part that has ended leaves everybody waiting; `running` tells why it has.
                assert not any(task.done() for task in world._tasks)
                continue
            finally:
                self.asking -= 1
                self.slowest_s = max(self.slowest_s, time.time() - asked)
            await self._known(answer.as_of.epoch)
            self.history.judge(name, value, answer, asked)
            if token is not None and token[1] is self.history.current:
                self._compare(token[0], answer)

    async def put(self, world: World, name: str, value: object, wanted: AsOf | None = None) -> Answer:
        """Put one of the QUESTIONS to a world."""
        values = (value, 104_000, RADIUS) if name == NEAR.name else (value,)
        return await world.ask(ASKED[name], *values, timeout_s=ASK_TIMEOUT_S, min_as_of=wanted)

    def _compare(self, wanted: AsOf, answer: Answer) -> None:
        """An answer to someone who had written is not older than what was written, unless that was lost."""
        if answer.as_of.epoch == wanted.epoch and answer.as_of.seq < wanted.seq:
            self.too_old.append(f"{answer.as_of.token} for {wanted.token} ({answer.source})")

    # Epochs

    async def learn_from(self, connection: asyncpg.Connection) -> list[str]:
        """The epochs that a server knows; from now on it is known where they were begun."""
        found = await connection.fetch(_EPOCHS, timeout=5)
        self.history.learn({row["epoch"]: row["timeline"] for row in found})
        return [row["epoch"] for row in found]

    async def _known(self, epoch: str) -> None:
        """Wait until it is known which timeline has that epoch."""

        async def known() -> bool:
            if not self.history.knows(epoch):
                try:
                    async with self.worlds[0].connect() as connection:
                        await self.learn_from(connection)
                except DATABASE_ERRORS:
                    return False
            return self.history.knows(epoch)

        if not self.history.knows(epoch):
            await until(known)

    # Afterwards

    async def rests(self) -> None:
        """At rest every key is answered by the newest image, in every process: nothing stays stale for ever."""
        for world in self.worlds:
            for name, value in QUESTIONS:
                await until(self._answers_newest(world, name, value))

    def _answers_newest(self, world: World, name: str, value: object) -> Callable[[], Awaitable[bool]]:
        async def newest() -> bool:
            branch = self.history.current
            answer = await self.put(world, name, value)
            shown = {row["address"] for row in rows(answer)}
            at_tip = answer.source == "hit" and answer.as_of.seq == branch.newest
            return at_tip and shown == right(branch.images[-1], name, value)

        return newest

    def fills(self) -> Counter[str]:
        """What became of answers offered to Redis, by all worlds."""
        found: Counter[str] = Counter()
        for world in self.worlds:
            for metric in world.registry.collect():
                for sample in metric.samples:
                    if sample.name == "silogate_cache_fills_total":
                        found[sample.labels["outcome"]] += int(sample.value)
        return found

    def summary(self) -> str:
        history = self.history
        return (
            f"{self.written} writes, {len(history.violations)} violations, {len(self.too_old)} older than asked for;"
            f" answers {_shown(history.sources)}, with a bound {history.bounded}, unanswered {self.unanswered};"
            f" fills {_shown(self.fills())}; commits lost {history.lost}, answers right on a dead timeline"
            f" {history.on_dead}"
        )


def say(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """Tell whoever runs the tests, in spite of what pytest captures."""
    with capfd.disabled():
        sys.stderr.write(f"\n{text}")
        sys.stderr.flush()


def _shown(counts: Counter[str]) -> str:
    return "(" + ", ".join(f"{name} {counts[name]}" for name in sorted(counts)) + ")"


@asynccontextmanager
async def running(worlds: Sequence[World]) -> AsyncIterator[None]:
    """The worlds' parts at work; whatever of them ends early fails the test."""
    for world in worlds:
        world.start()
    try:
        yield
    finally:
        ended = [task for world in worlds for task in world._tasks if task.done()]
        for world in worlds:
            await world.stop()
        # Whoever waits for an answer then waits in vain, and that would be all that is seen.
        for task in ended:
            task.result()
