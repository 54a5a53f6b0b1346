"""One mail: a real worker process, a real database and a real mail server, and the worker killed at every step.

A kill counts only when the journal, kept outside the worker, has seen its failpoint reached with the effect in hand.
"""

from __future__ import annotations

import asyncio
import json
import mailbox
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from gateway.dev.addresses import Database, Servers
from streams.ledger import unknown
from tests.effects import RESIDENT, effects, open_pool, plan_confirmation, until
from tests.journal import Journal, Seen

pytestmark = pytest.mark.faults

WORKER = Path(__file__).with_name("mail_worker.py")
LEASE_S = 1.0
BEFORE_THE_ACT = ("effect.after_plan", "effect.after_intent", "effect.after_sending", "effect.mid_message")
AT_THE_ACT = ("effect.before_dot", "effect.after_dot", "effect.after_reply")
EVERYWHERE = (*BEFORE_THE_ACT, *AT_THE_ACT, "effect.after_done")
ROUNDS = 25 if os.environ.get("SILOGATE_TEST_FAULTS") == "all" else 6


def journal_of(pool: asyncpg.Pool) -> Journal:
    """A journal that writes down what the ledger held when a failpoint was reached."""

    async def states() -> tuple[str, ...]:
        return tuple(effect["state"] for effect in await effects(pool))

    return Journal(states)


class Bench:
    """The database, mailbox and journal of one test, and the workers it starts."""

    def __init__(self, servers: Servers, database: Database, pool: asyncpg.Pool, journal: Journal, logs: Path) -> None:
        self.pool = pool
        self.journal = journal
        self._servers = servers
        self._database = database
        self._logs = logs
        self._workers: list[asyncio.subprocess.Process] = []

    async def worker(self, fail: str | None = None) -> asyncio.subprocess.Process:
        options = {
            "database": self._database.url,
            "smtp_host": self._servers.smtp_host,
            "smtp_port": self._servers.smtp_port,
            "lease_s": LEASE_S,
            "fail": fail,
            "journal": self.journal.address,
        }
        with (self._logs / "workers.log").open("ab") as log:
            started = await asyncio.create_subprocess_exec(
                sys.executable, str(WORKER), json.dumps(options), stdout=log, stderr=log
            )
        self._workers.append(started)
        return started

    def mails(self, effect_id: UUID) -> int:
        """Count the messages of one effect in the mailbox."""
        message_id = f"<{effect_id}@council.example>"
        return sum(message["Message-ID"] == message_id for message in mailbox.Maildir(self._servers.maildir))

    def log(self) -> str:
        return (self._logs / "workers.log").read_text()

    async def settled(self, effect_id: UUID) -> Any:
        async def reached() -> Any:
            row = await self.pool.fetchrow("select * from effect where effect_id = $1", effect_id)
            return row if row is not None and row["state"] in {"done", "unknown", "failed"} else None

        return await until(reached)

    async def another_is_sent(self) -> None:
        """Let the running workers send one more mail: whatever they would have done to the first is done by then."""
        event = await plan_confirmation(self.pool)
        row = await self.pool.fetchrow("select effect_id from effect where case_id = $1", event.case_id)
        assert row is not None
        assert (await self.settled(row["effect_id"]))["state"] == "done"

    async def close(self) -> None:
        for worker in self._workers:
            if worker.returncode is None:
                with suppress(ProcessLookupError):
                    worker.send_signal(signal.SIGCONT)
                    worker.kill()
                await worker.wait()


@pytest.fixture
async def bench(servers: Servers, gateway_database: Database, tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_pool(gateway_database.url) as pool, journal_of(pool).kept() as journal:
        made = Bench(servers, gateway_database, pool, journal, tmp_path)
        try:
            yield made
        finally:
            await made.close()


async def planned(bench: Bench) -> UUID:
    await plan_confirmation(bench.pool)
    effect_id: UUID = (await effects(bench.pool))[0]["effect_id"]
    return effect_id


async def killed_at(bench: Bench, failpoint: str) -> Seen:
    """Start a worker, let it be killed at a failpoint, and return what the journal saw."""
    victim = await bench.worker(f"{failpoint}:kill")
    async with asyncio.timeout(30):
        await victim.wait()
    assert victim.returncode == -signal.SIGKILL
    return await bench.journal.saw(failpoint, victim.pid)


async def each_attempt_is_audited_once(bench: Bench) -> None:
    rows = await bench.pool.fetch(
        """select e.effect_id, a.attempt, count(r.n) as rows from effect e join effect_attempt a using (effect_id)
        left join audit r on r.action = 'effect.attempt' and (r.detail ->> 'effect_id')::uuid = e.effect_id
            and (r.detail ->> 'attempt')::int = a.attempt
        group by e.effect_id, a.attempt"""
    )
    assert rows
    assert {row["rows"] for row in rows} == {1}


@pytest.mark.parametrize("failpoint", BEFORE_THE_ACT)
async def test_killed_before_the_last_dot_the_mail_is_sent_once(bench: Bench, failpoint: str) -> None:
    """Whenever the worker is killed before the dot, the server has no message, and the next worker sends it once."""
    effect_id = await planned(bench)
    seen = await killed_at(bench, failpoint)
    assert seen.work == ("planned" if failpoint == "effect.after_plan" else "intent",)
    assert bench.mails(effect_id) == 0

    await bench.worker()
    assert (await bench.settled(effect_id))["state"] == "done"
    await bench.another_is_sent()

    assert bench.mails(effect_id) == 1
    await each_attempt_is_audited_once(bench)
    assert RESIDENT not in bench.log()


@pytest.mark.parametrize("failpoint", AT_THE_ACT)
async def test_killed_at_the_last_dot_the_mail_stays_unknown(bench: Bench, failpoint: str) -> None:
    """Killed between the commit point and the written answer, nobody can know: unknown, shown, and never sent again."""
    effect_id = await planned(bench)
    seen = await killed_at(bench, failpoint)
    assert seen.work == ("intent",)
    sent = 0 if failpoint == "effect.before_dot" else 1
    await until(lambda: _counted(bench, effect_id, sent))

    await bench.worker()
    assert (await bench.settled(effect_id))["state"] == "unknown"
    await bench.another_is_sent()

    assert bench.mails(effect_id) == sent
    assert [shown.effect_id for shown in await unknown(bench.pool)] == [effect_id]
    await each_attempt_is_audited_once(bench)


async def _counted(bench: Bench, effect_id: UUID, expected: int) -> bool:
    return bench.mails(effect_id) == expected


async def test_killed_after_it_was_written_down_the_mail_is_not_sent_again(bench: Bench) -> None:
    """Once the outcome is stored, a kill changes nothing."""
    effect_id = await planned(bench)
    seen = await killed_at(bench, "effect.after_done")
    assert seen.work == ("done",)
    await bench.worker()
    await bench.another_is_sent()
    assert bench.mails(effect_id) == 1
    await each_attempt_is_audited_once(bench)


@pytest.mark.parametrize("failpoint", ["effect.after_sending", "effect.mid_message"])
async def test_a_worker_that_slept_past_its_lease_does_not_send_a_second_mail(bench: Bench, failpoint: str) -> None:
    """Stopped before the dot, overtaken and woken up, a worker is held back at the commit point: one mail."""
    effect_id = await planned(bench)
    sleeper = await bench.worker(f"{failpoint}:stop")
    await bench.journal.saw(failpoint, sleeper.pid)
    await until(lambda: _is_stopped(sleeper.pid))

    other = await bench.worker()
    assert (await bench.settled(effect_id))["state"] == "done"
    other.terminate()
    async with asyncio.timeout(30):
        assert await other.wait() == 0
    sleeper.send_signal(signal.SIGCONT)
    await until(lambda: _logged(bench, "ledger.lease_lost"))
    await bench.another_is_sent()

    assert sleeper.returncode is None
    assert bench.mails(effect_id) == 1
    await each_attempt_is_audited_once(bench)


async def test_a_worker_that_slept_at_the_last_dot_finishes_its_mail(bench: Bench) -> None:
    """Stopped past the commit point, the mail is unknown for others; woken up, the worker sends it: one mail, done."""
    effect_id = await planned(bench)
    sleeper = await bench.worker("effect.before_dot:stop")
    await bench.journal.saw("effect.before_dot", sleeper.pid)
    await until(lambda: _is_stopped(sleeper.pid))

    await bench.worker()
    assert (await bench.settled(effect_id))["state"] == "unknown"
    assert bench.mails(effect_id) == 0
    sleeper.send_signal(signal.SIGCONT)
    await until(lambda: _is_done(bench, effect_id))
    await bench.another_is_sent()

    assert bench.mails(effect_id) == 1
    await each_attempt_is_audited_once(bench)


async def test_a_worker_that_slept_between_outcome_and_audit_row_adds_no_second_row(bench: Bench) -> None:
    """Stopped with the outcome written and nothing told, overtaken and woken up: one mail, and one audit row."""
    effect_id = await planned(bench)
    sleeper = await bench.worker("effect.after_conclude:stop")
    await bench.journal.saw("effect.after_conclude", sleeper.pid)
    await until(lambda: _is_stopped(sleeper.pid))

    other = await bench.worker()
    assert (await bench.settled(effect_id))["state"] == "done"
    other.terminate()
    async with asyncio.timeout(30):
        assert await other.wait() == 0
    sleeper.send_signal(signal.SIGCONT)
    await bench.another_is_sent()

    assert bench.mails(effect_id) == 1
    await each_attempt_is_audited_once(bench)


async def _is_stopped(pid: int) -> bool:
    status = await asyncio.to_thread(Path(f"/proc/{pid}/stat").read_text)
    return status.rpartition(")")[2].split()[0] == "T"


async def _logged(bench: Bench, event: str) -> bool:
    return event in bench.log()


async def _is_done(bench: Bench, effect_id: UUID) -> bool:
    return bool(await bench.pool.fetchval("select state = 'done' from effect where effect_id = $1", effect_id))


@pytest.mark.timeout(600)
async def test_many_mails_and_many_kills(bench: Bench) -> None:
    """Workers share many mails and are killed again and again at random steps: none is lost, none is sent twice."""
    seed = int(os.environ.get("SILOGATE_TEST_SEED", "22"))
    dice = random.Random(seed)
    for _ in range(3 * ROUNDS):
        await plan_confirmation(bench.pool)
    kills = 0
    for _ in range(ROUNDS):
        failpoint, hit = dice.choice(EVERYWHERE), dice.randint(1, 3)
        victim = await bench.worker(f"{failpoint}:hit={hit}:kill")
        with suppress(TimeoutError):
            async with asyncio.timeout(5):
                await victim.wait()
        if victim.returncode == -signal.SIGKILL:
            await bench.journal.saw(failpoint, victim.pid)
            kills += 1
        else:
            victim.kill()
            await victim.wait()
    survivors = [await bench.worker(), await bench.worker()]
    rows = [await bench.settled(effect["effect_id"]) for effect in await effects(bench.pool)]
    await bench.another_is_sent()

    assert kills >= ROUNDS // 2, f"seed {seed}"
    assert all(worker.returncode is None for worker in survivors)
    for row in rows:
        mails = bench.mails(row["effect_id"])
        assert mails == 1 if row["state"] == "done" else mails <= 1, f"seed {seed}: {row['state']} {mails}"
    assert {row["state"] for row in rows} <= {"done", "unknown"}
    assert sum(row["state"] == "unknown" for row in rows) <= 8 * kills
    await each_attempt_is_audited_once(bench)
    assert RESIDENT not in bench.log()
