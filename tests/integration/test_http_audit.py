"""The audit log by HTTP: one row a request about a person, committed first, chained, and silent about values."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientError
from prometheus_client import CollectorRegistry

from cache.silo import SiloUnavailable
from gateway.audit import Audit, AuditUnavailable, verify
from gateway.dev.addresses import Database, Servers
from gateway.problems import IN_DOUBT
from gateway.telemetry import EdgeMetrics
from tests.integration.edge import NINO, Edge, found, gateway_schema, idempotent, problem_of, report, running_edge
from tests.unit.test_http_images import png

CLAIM = "/v1/lookups/claim-already-open"
QUESTION = {"nino": NINO, "date_of_birth": "1980-01-31"}


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


async def _new_rows(edge: Edge, before: int) -> list[tuple[str, str, str]]:
    return [(row["action"], row["outcome"], row["actor"]) for row in (await edge.audit_rows())[before:]]


async def test_each_request_about_a_person_leaves_exactly_one_row(edge: Edge) -> None:
    """Reads, writes, refusals and replays alike; public lookups and strangers leave none."""
    actor = "key:" + edge.tokens["form"].split("_")[1]
    before = len(await edge.audit_rows())
    headers = idempotent()
    case_id = (await (await edge.ask("POST", "/v1/cases", json=report(), headers=headers)).json())["id"]
    path = f"/v1/cases/{case_id}"
    await edge.ask("POST", "/v1/cases", json=report(), headers=headers)
    await edge.ask("POST", "/v1/cases", data=b"{", headers=idempotent() | {"Content-Type": "application/json"})
    await edge.ask("GET", path)
    await edge.ask("PATCH", path, json={"status": "fixed"}, headers={"If-Match": '"1"'})
    await edge.ask("PATCH", path, json={"status": "open"}, headers={"If-Match": '"1"'})
    await edge.ask("POST", f"{path}/notes", json={"text": "Done."})
    added = await edge.ask("POST", f"{path}/attachments", data=png(), headers={"Content-Type": "image/png"})
    await edge.ask("GET", added.headers["Location"])
    await edge.ask("GET", f"/v1/cases/{uuid4()}")
    await edge.ask("GET", path, key="nothing")
    await edge.ask("GET", path, key=None)
    await edge.ask("GET", "/v1/lookups/addresses-by-postcode", params={"postcode": "BN15 9JB"})
    stranger = "key:" + edge.tokens["nothing"].split("_")[1]
    assert await _new_rows(edge, before) == [
        ("case.create", "created", actor),
        ("case.create", "replayed", actor),
        ("case.create", "malformed_json", actor),
        ("case.read", "read", actor),
        ("case.change", "changed", actor),
        ("case.change", "version_conflict", actor),
        ("case.note", "noted", actor),
        ("case.attach", "attached", actor),
        ("attachment.read", "read", actor),
        ("case.read", "unknown_case", actor),
        ("case.read", "forbidden", stranger),
    ]
    rows = (await edge.audit_rows())[before:]
    assert {row["subject"] for row in rows if row["outcome"] in ("created", "read", "changed", "noted")} == {case_id}


async def test_a_personal_question_leaves_one_row_without_its_values(edge: Edge) -> None:
    """Verdicts, refusals and outages; the same question has the same subject, another one another."""
    before = len(await edge.audit_rows())
    edge.double.answer_with = found(verdict="not_found", results=b"[]")
    await edge.ask("POST", CLAIM, json=QUESTION, key="personal")
    await edge.ask("POST", CLAIM, json={**QUESTION, "nino": "qq 76 54 32 a"}, key="personal")
    await edge.ask("POST", CLAIM, json={**QUESTION, "nino": "QQ111111A"}, key="personal")
    await edge.ask("POST", CLAIM, json={**QUESTION, "nino": "nonsense"}, key="personal")
    await edge.ask("POST", CLAIM, json=QUESTION, key="form")
    await edge.ask("GET", CLAIM, params=QUESTION, key="personal")
    edge.double.error = SiloUnavailable("claims")
    await edge.ask("POST", CLAIM, json=QUESTION, key="personal")
    edge.double.error = None
    rows = (await edge.audit_rows())[before:]
    assert [(row["action"], row["outcome"]) for row in rows] == [
        ("lookup.claim-already-open", "not_found"),
        ("lookup.claim-already-open", "not_found"),
        ("lookup.claim-already-open", "not_found"),
        ("lookup.claim-already-open", "malformed_nino"),
        ("lookup.claim-already-open", "forbidden"),
        ("lookup.claim-already-open", "personal_lookup"),
        ("lookup.claim-already-open", "silo_unavailable"),
    ]
    subjects = [row["subject"] for row in rows]
    assert subjects[0] == subjects[1] == subjects[6]
    assert subjects[0] != subjects[2]
    assert subjects[3:6] == ["-", "-", "-"]
    dumped = str([tuple(row) for row in rows])
    assert not [value for value in (NINO, "1980", "QQ111111A", "nonsense") if value in dumped]


async def test_rows_of_requests_at_once_form_one_sound_chain(edge: Edge) -> None:
    """Fifty at once are fifty rows in a chain without a gap."""
    case_id = (await edge.create())["id"]
    before = len(await edge.audit_rows())
    answers = await asyncio.gather(*(edge.ask("GET", f"/v1/cases/{case_id}") for _ in range(50)))
    assert {answer.status for answer in answers} == {200}
    rows = await edge.audit_rows()
    assert len(rows) == before + 50
    assert [row["n"] for row in rows] == list(range(1, len(rows) + 1))
    assert {row["chain"] for row in rows} == {edge.context.audit.chain}
    assert await verify(edge.context.pool) == []


async def test_a_request_that_is_cut_off_leaves_its_row(edge: Edge) -> None:
    """As when a process ends before it has answered; what is found out later, nobody is told."""
    before = len(await edge.audit_rows())
    edge.double.asked.clear()
    edge.double.delay_s = 30
    asked = asyncio.create_task(edge.ask("POST", CLAIM, json=QUESTION, key="personal"))
    try:
        async with asyncio.timeout(10):
            while not edge.double.asked:
                await asyncio.sleep(0.01)
            edge.cut_off()
            with pytest.raises(ClientError):
                await asked
            while not (rows := (await edge.audit_rows())[before:]):
                await asyncio.sleep(0.02)
    finally:
        edge.double.delay_s = 0
    assert [(row["action"], row["outcome"]) for row in rows] == [("lookup.claim-already-open", "cancelled")]
    assert rows[0]["subject"] != "-"
    await edge.ask("POST", CLAIM, json=QUESTION, key="personal")
    outcomes = [row["outcome"] for row in (await edge.audit_rows())[before:]]
    assert outcomes == ["cancelled", edge.double.answer_with.verdict]


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    """A pool on a database of the test's own, as its owner."""
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=4, server_settings={"search_path": "gateway"}
    ) as pool:
        yield pool


async def _written(pool: asyncpg.Pool, count: int) -> UUID:
    audit = Audit(pool, metrics=EdgeMetrics(CollectorRegistry(), "test"))
    writer = asyncio.create_task(audit.run())
    for number in range(count):
        await _record(audit, f"case-{number}")
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    return audit.chain


async def _record(audit: Audit, subject: str) -> None:
    await audit.record(
        actor="key:form",
        action="case.read",
        subject=subject,
        outcome="read",
        correlation_id="c",
        detail={
            "bytes": 41,
            "attachment": "ü",
            "none": None,
            "yes": True,
            "seconds": 1e22,
            "sink": uuid4(),
            "huge": 2**70,
            "nul": "a\x00b",
            "half": "\ud800",
            "deep": {"list": [1, 2.5, {"é": None}]},
        },
    )


@pytest.mark.parametrize(
    ("statement", "n", "reason"),
    [
        ("update audit set outcome = 'denied' where n = 3", 3, "the row was altered"),
        ("update audit set detail = '{\"bytes\": 42}' where n = 2", 2, "the row was altered"),
        ("update audit set at = at + interval '1 microsecond' where n = 5", 5, "the row was altered"),
        ("delete from audit where n = 4", 4, "the row is missing"),
        ("delete from audit where n = 1", 1, "the row is missing"),
        ("update audit set previous = '\\x00' where n = 2", 2, "the row does not name the hash before it"),
    ],
)
async def test_the_first_broken_link_is_named(pool: asyncpg.Pool, statement: str, n: int, reason: str) -> None:
    """Whoever gets past the trigger still cannot change or remove a row unseen; another chain stays sound."""
    chain = await _written(pool, 5)
    other = await _written(pool, 7)
    assert await verify(pool) == []
    async with pool.acquire() as connection:
        await connection.execute("alter table audit disable trigger audit_append_only")
        await connection.execute(statement + f" and chain = '{chain}'")
    broken = await verify(pool)
    assert [(link.chain, link.n, link.reason) for link in broken] == [(chain, n, reason)]
    assert other != chain


@pytest.mark.parametrize("statement", ["update audit set outcome = 'denied'", "delete from audit", "truncate audit"])
async def test_the_database_refuses_to_change_a_row(pool: asyncpg.Pool, statement: str) -> None:
    """Append-only, for the owner too."""
    await _written(pool, 1)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await pool.execute(statement)


async def test_a_note_whose_row_fails_is_not_called_safe_to_repeat(gateway_database: Database, tmp_path: Path) -> None:
    """A note has no Idempotency-Key: it may be there although the answer is 503, and the answer says to look first."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        path = f"/v1/cases/{(await edge.create())['id']}"
        await edge.context.pool.execute("alter table audit rename to audit_away")
        answer = await edge.ask("POST", f"{path}/notes", json={"text": "Seen."})
        await edge.context.pool.execute("alter table audit_away rename to audit")
        assert await problem_of(answer) == (503, "audit_unavailable", None)
        detail = (await answer.json(content_type=None))["detail"]
        assert "not known whether" in detail
        assert "read the case first" in detail
        notes = (await (await edge.ask("GET", path)).json())["notes"]
        assert [note["text"] for note in notes][-1] == "Seen."


async def test_without_its_row_nothing_is_confirmed(gateway_database: Database, tmp_path: Path) -> None:
    """When the log cannot be written, the request is 503; once it can, the same request is answered, once made."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        await edge.context.pool.execute("alter table audit rename to audit_away")
        headers = idempotent()
        answer = await edge.ask("POST", "/v1/cases", json=report(), headers=headers)
        assert await problem_of(answer) == (503, "audit_unavailable", None)
        assert (await answer.json(content_type=None))["detail"].endswith(IN_DOUBT)
        await edge.context.pool.execute("alter table audit_away rename to audit")
        again = await edge.ask("POST", "/v1/cases", json=report(), headers=headers)
        assert again.status == 201
        assert await edge.context.pool.fetchval("select count(*) from cases") == 1
        assert await verify(edge.context.pool) == []


class _LosesOneAnswer:
    """A pool whose first commit happens, but whose answer never arrives."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool
        self._lost = False

    async def fetchrow(self, *args: object) -> object:
        return await self._pool.fetchrow(*args)

    async def execute(self, *args: object) -> object:
        result = await self._pool.execute(*args)
        if not self._lost:
            self._lost = True
            raise ConnectionResetError
        return result


async def test_a_commit_whose_answer_was_lost_does_not_break_the_chain(pool: asyncpg.Pool) -> None:
    """The writer finds the true tip again: rows that were committed unheard are neither lost nor doubled."""
    audit = Audit(_LosesOneAnswer(pool), metrics=EdgeMetrics(CollectorRegistry(), "test"))
    writer = asyncio.create_task(audit.run())
    with pytest.raises(AuditUnavailable):
        await _record(audit, "case-1")
    await _record(audit, "case-2")
    writer.cancel()
    await asyncio.gather(writer, return_exceptions=True)
    assert [row["subject"] for row in await pool.fetch("select subject from audit order by n")] == ["case-1", "case-2"]
    assert await verify(pool) == []


async def test_a_full_queue_refuses_at_once_and_a_stopped_writer_too(pool: asyncpg.Pool) -> None:
    """Nobody waits for a row that will not come."""
    audit = Audit(pool, metrics=EdgeMetrics(CollectorRegistry(), "test"), limit=1, timeout_s=0.2)
    waiting = asyncio.create_task(_record(audit, "case-1"))
    await asyncio.sleep(0)
    with pytest.raises(AuditUnavailable, match="too many"):
        await _record(audit, "case-2")
    with pytest.raises(AuditUnavailable, match="in time"):
        await waiting


class _Slow:
    """A pool whose commits take a while."""

    def __init__(self, pool: asyncpg.Pool, delay_s: float) -> None:
        self._pool, self._delay_s = pool, delay_s
        self.begun = asyncio.Event()

    async def fetchrow(self, *args: object) -> object:
        return await self._pool.fetchrow(*args)

    async def execute(self, *args: object) -> object:
        self.begun.set()
        await asyncio.sleep(self._delay_s)
        return await self._pool.execute(*args)


def _note(audit: Audit, subject: str) -> None:
    audit.note(
        actor="key:form", action="case.read", subject=subject, outcome="cancelled", correlation_id="c", detail={}
    )


async def test_a_writer_that_is_ended_writes_what_still_waits(pool: asyncpg.Pool) -> None:
    """The row whose commit has begun and those behind it, once each: their requests were cut off just before."""
    slow = _Slow(pool, 0.1)
    audit = Audit(slow, metrics=EdgeMetrics(CollectorRegistry(), "test"))
    writer = asyncio.create_task(audit.run())
    _note(audit, "case-1")
    await asyncio.wait_for(slow.begun.wait(), 10)
    _note(audit, "case-2")
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(writer, 10)
    assert [row["subject"] for row in await pool.fetch("select subject from audit order by n")] == ["case-1", "case-2"]
    assert await verify(pool) == []


async def test_a_writer_that_is_ended_waits_for_no_dead_database(pool: asyncpg.Pool) -> None:
    """What cannot be written by then is counted and refused; the process ends all the same."""
    metrics = EdgeMetrics(CollectorRegistry(), "test")
    slow = _Slow(pool, 60)
    audit = Audit(slow, metrics=metrics, limit=2, timeout_s=1.0)
    writer = asyncio.create_task(audit.run())
    waiting = asyncio.create_task(_record(audit, "case-1"))
    await asyncio.wait_for(slow.begun.wait(), 10)
    for subject in ("case-2", "case-3", "case-4"):
        _note(audit, subject)
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(writer, 1.7)  # and not the time of each commit that waits
    with pytest.raises(AuditUnavailable):
        await waiting
    assert metrics.registry.get_sample_value("silogate_audit_failures_total") == 4
    assert await pool.fetchval("select count(*) from audit") == 0


async def test_a_row_whose_caller_gave_up_is_not_written_later(edge: Edge) -> None:
    """Who was told that a row failed records it again; the queued one must not be committed as well."""
    lock = await asyncpg.connect(
        edge.context.settings.database_url.get_secret_value(), server_settings={"search_path": "gateway"}
    )
    impatient = Audit(edge.context.pool, metrics=EdgeMetrics(CollectorRegistry(), "test"), timeout_s=1.0)

    async def record(subject: str) -> None:
        await impatient.record(
            actor="ledger", action="effect.attempt", subject=subject, outcome="done", correlation_id="c", detail={}
        )

    writer = asyncio.create_task(impatient.run())
    try:
        async with lock.transaction():
            await lock.execute("lock table audit in access exclusive mode")
            stuck = asyncio.create_task(record("stuck"))
            await asyncio.sleep(0.2)
            for task in (stuck, asyncio.create_task(record("queued"))):
                with pytest.raises(AuditUnavailable):
                    await task
        await record("queued")
        assert await edge.context.pool.fetchval("select count(*) from audit where subject = 'queued'") == 1
    finally:
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)
        await lock.close()


async def test_what_is_told_once_has_one_row(edge: Edge) -> None:
    """Two processes that tell the same thing at once both succeed, and one row is there; the chains hold together."""
    trails = [Audit(edge.context.pool, metrics=EdgeMetrics(CollectorRegistry(), "test")) for _ in range(2)]

    async def tell(trail: Audit, n: int) -> None:
        await trail.record(
            actor="ledger",
            action="effect.attempt",
            subject="told",
            outcome="done",
            correlation_id="c",
            detail={"attempt": n},
            once=f"effect.attempt:x:{n}",
        )

    writers = [asyncio.create_task(trail.run()) for trail in trails]
    try:
        async with asyncio.timeout(30):
            await asyncio.gather(*(tell(trail, n) for n in range(20) for trail in (*trails, *trails)))
    finally:
        for writer in writers:
            writer.cancel()
        await asyncio.gather(*writers, return_exceptions=True)
    rows = await edge.context.pool.fetch("select once, detail ->> 'attempt' as n from audit where subject = 'told'")
    assert sorted(int(row["n"]) for row in rows) == list(range(20))
    assert await verify(edge.context.pool) == []
