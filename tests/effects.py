"""What the tests of effects share: a reported case, the flow that plans its confirmation, and a sink under control."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import orjson
from prometheus_client import CollectorRegistry

from gateway.audit import Audit
from gateway.telemetry import EdgeMetrics
from streams.cases.keys import CaseKeys, seal_personal
from streams.consumer.fence import Fence
from streams.effects.metrics import EffectMetrics
from streams.events import CaseEvent
from streams.flow import Flow
from streams.flows.planner import FlowPlanner
from streams.ledger import Ledger, Patience
from streams.sinks import CommitPoint, NotSent, Order, Sink, SinkClass
from streams.sinks.notifications.templates import MailTemplate
from streams.testing import PlainKeySealer, case_event

FOLDER = Path(__file__).parents[1] / "deploy" / "integrations" / "report-a-problem"
SCHEMA: dict[str, Any] = orjson.loads((FOLDER / "case.schema.json").read_bytes())
RESIDENT = "ada.whitfield@example.org"
# The ring of a test run: the workers it starts must open what it sealed.
RING = bytes(range(32))
FENCE = Fence("effects", "cases.changes.v1", {0: 1})
# Quick enough for a test, and still in the order of the real ones.
QUICK = Patience(poll_s=0.02, backoff_s=0.02, backoff_cap_s=0.1, settle_s=20.0, census_s=0.2)

Act = Callable[[bytes, CommitPoint], Awaitable[str]]


def case_keys() -> CaseKeys:
    return CaseKeys(PlainKeySealer(RING), PlainKeySealer)


def flow() -> Flow:
    return Flow.load(FOLDER / "flow.yaml")


def templates() -> dict[str, MailTemplate]:
    return {"report-a-problem/confirmation": MailTemplate.load(FOLDER / "templates", "confirmation", SCHEMA)}


def open_pool(url: str) -> asyncpg.pool.Pool:
    return asyncpg.create_pool(url, min_size=0, max_size=8, server_settings={"search_path": "gateway"})


async def report(pool: asyncpg.Pool, *, email: str | None = RESIDENT, category: str = "litter") -> CaseEvent:
    """Commit a new case as the edge does, and return its event."""
    case_id = uuid4()
    submitter = {"name": "Ada Whitfield"} if email is None else {"name": "Ada Whitfield", "email": email}
    personal = {"submitter": submitter, "notes": [{"text": "It smells"}]}
    async with pool.acquire() as connection, connection.transaction():
        sealer = await case_keys().new(connection, case_id)
        sealed = seal_personal(sealer, case_id, personal)
        await connection.execute(
            """insert into cases (id, reference, type, version, status, document, sealed, submitted_by)
            values ($1, $2, 'public-toilet-problem', 1, 'open', $3, $4, 'key-form')""",
            case_id,
            f"RAP-{case_id.hex[:8].upper()}",
            orjson.dumps({"category": category, "status": "open"}).decode(),
            sealed,
        )
    return case_event(
        case_id=case_id,
        reference=f"RAP-{case_id.hex[:8].upper()}",
        at=datetime.now(UTC),
        document={"category": category, "status": "open"},
        sealed=sealed,
    )


async def plan(pool: asyncpg.Pool, *events: CaseEvent, by: Flow | None = None) -> None:
    """Let a flow, the shipped one unless another is given, plan the effects of events; raises what is wrong."""
    await own(pool)
    await FlowPlanner(by or flow(), pool, case_keys()).apply(events, FENCE)


async def own(pool: asyncpg.Pool) -> None:
    """Make FENCE the one that holds."""
    await pool.execute(
        """insert into partition_fence (consumer_group, topic, partition, epoch) values ($1, $2, 0, 1)
        on conflict do nothing""",
        FENCE.group,
        FENCE.topic,
    )


async def plan_confirmation(pool: asyncpg.Pool) -> CaseEvent:
    event = await report(pool)
    await plan(pool, event)
    return event


class ControlledSink:
    """A sink whose every act the test writes. `done` holds the bytes of the acts that happened."""

    name = "email"
    sink_class = SinkClass.NONE
    timeout_s = 20.0

    def __init__(self, *acts: Act) -> None:
        self._acts = list(acts)
        self.rendered = 0
        self.tried: list[bytes] = []
        self.done: list[bytes] = []

    def render(self, order: Order) -> bytes:
        self.rendered += 1
        return f"{order.effect_id} {order.payload['to']} {self.rendered}".encode()

    async def perform(self, request: bytes, *, commit_point: CommitPoint) -> str:
        self.tried.append(request)
        act = self._acts.pop(0) if self._acts else self.act
        return await act(request, commit_point)

    async def act(self, request: bytes, commit_point: CommitPoint) -> str:
        """Do it: this is what every act does that the test has not written."""
        await commit_point()
        self.done.append(request)
        return "250 OK"


@asynccontextmanager
async def auditing(pool: asyncpg.Pool) -> AsyncIterator[Audit]:
    """The real audit trail, with its writer running."""
    audit = Audit(pool, metrics=EdgeMetrics(CollectorRegistry(), "test"))
    async with asyncio.TaskGroup() as group:
        writer = group.create_task(audit.run())
        yield audit
        writer.cancel()


def ledger(pool: asyncpg.Pool, sink: Sink, audit: Any, **changed: Any) -> Ledger:
    options: dict[str, Any] = {
        "owner": uuid4(),
        "lease_s": 1.0,
        "metrics": EffectMetrics(CollectorRegistry(), ["email"]),
        "patience": QUICK,
        **changed,
    }
    return Ledger(pool, case_keys(), {"email": sink}, audit=audit, **options)


async def until(condition: Callable[[], Awaitable[Any]], *, within_s: float = 30.0) -> Any:
    """Return the first true answer; fails when there is none in time."""
    async with asyncio.timeout(within_s):
        while not (answer := await condition()):
            await asyncio.sleep(0.02)
    return answer


async def effects(pool: asyncpg.Pool) -> list[Mapping[str, Any]]:
    return [dict(row) for row in await pool.fetch("select * from effect order by created_at")]


async def attempts(pool: asyncpg.Pool) -> list[tuple[int, str, str | None]]:
    rows = await pool.fetch("select attempt, phase, outcome from effect_attempt order by effect_id, attempt")
    return [tuple(row) for row in rows]


async def audit_rows(pool: asyncpg.Pool) -> list[tuple[str, str, int]]:
    """The audit rows of effects as (action, outcome, attempt), in order."""
    rows = await pool.fetch(
        "select action, outcome, (detail ->> 'attempt')::int from audit where action like 'effect.%' order by at"
    )
    return [tuple(row) for row in rows]


@asynccontextmanager
async def running(worker: Ledger) -> AsyncIterator[asyncio.Task[None]]:
    """Run a worker; at the end it is asked to stop, and must."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(worker.run(stop))
        try:
            yield task
        finally:
            stop.set()


async def states(pool: asyncpg.Pool) -> list[str]:
    return [effect["state"] for effect in await effects(pool)]


async def settled(pool: asyncpg.Pool, *expected: str) -> Mapping[str, Any]:
    """Wait until the effects are in these states; return the first."""

    async def reached() -> bool:
        return await states(pool) == list(expected)

    await until(reached)
    return (await effects(pool))[0]


async def refused(_request: bytes, _commit_point: CommitPoint) -> str:
    raise NotSent("smtp_recipient:450")


class Held:
    """An act that waits at a place until the test lets it go on."""

    def __init__(self, sink_done: list[bytes], *, past_commit_point: bool) -> None:
        self._done = sink_done
        self._past = past_commit_point
        self.there = asyncio.Event()
        self.go = asyncio.Event()

    async def __call__(self, request: bytes, commit_point: CommitPoint) -> str:
        if self._past:
            await commit_point()
        self.there.set()
        await self.go.wait()
        if not self._past:
            await commit_point()
        self._done.append(request)
        return "250 late"


async def lose(task: asyncio.Task[None]) -> None:
    """End a worker as a kill does: whatever it held stays as it is."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def expire(pool: asyncpg.Pool) -> None:
    """Let every lease run out, as a pause of its worker does."""
    await pool.execute("update effect set lease_until = now() - interval '1 second' where lease_until is not null")


async def sample(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, {"sink": "email", **labels})
