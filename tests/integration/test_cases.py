"""Cases in a real Postgres: what one POST commits, and what concurrent writers cannot break."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import orjson
import pytest
import pytest_asyncio

from streams import failpoints
from streams.cases.cases import (
    Cases,
    Idempotency,
    IdempotencyMismatch,
    ImmutableField,
    Invalid,
    UnknownCase,
    UnknownCaseType,
    VersionConflict,
)
from streams.cases.casetype import CaseType
from streams.cases.keys import CaseKeys, Erased
from streams.events import decode
from streams.failpoints import Injected
from streams.sql.migrate import MigrationChanged, migrate, migrations, pending
from streams.testing import CASE_SCHEMA, WrongSeal, case_keys

TYPE = "public-toilet-problem"
FORM: dict[str, Any] = {"actor": "key-form", "origin": "form", "correlation_id": "0f8fad5b-d9cb-469f-a165-70867728950e"}
OFFICER: dict[str, Any] = {**FORM, "actor": "key-officer", "origin": "officer"}


def report(**changed: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "submitter": {"name": "Avery Quill", "email": "avery@example.org"},
        "location": {"easting": 521000.5, "northing": 105500, "postcode": "BN15 9JB"},
        "asset": {"uprn": 60001449, "name": "Beach Green"},
        "category": "litter",
        "notes": [{"text": "needle beside the basin"}],
    }
    return document | changed


@pytest_asyncio.fixture
async def pool(gateway_database: Any) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=20, server_settings={"search_path": "gateway"}
    ) as pool:
        yield pool


@pytest.fixture
def keys() -> CaseKeys:
    return case_keys()


@pytest.fixture
def cases(pool: asyncpg.Pool, keys: CaseKeys) -> Cases:
    return Cases(pool, keys, {TYPE: CaseType(TYPE, CASE_SCHEMA)}, topic="cases.changes.v1", timeout_s=20)


def idempotent(key: str = "k1", body: bytes = b"body") -> Idempotency:
    return Idempotency("key-form", key, body)


async def count(pool: asyncpg.Pool, table: str) -> int:
    found: int = await pool.fetchval(f"select count(*) from {table}")
    return found


async def test_one_post_commits_all_its_rows(cases: Cases, pool: asyncpg.Pool) -> None:
    """A case, its key, its event, its outbox row and its idempotency row are there together."""
    created = await cases.create(TYPE, report(), **FORM, idempotency=idempotent())
    case = created.case
    assert (case.version, case.status, created.replayed) == (1, "open", False)
    assert case.reference.startswith("RAP-")
    for table in ("cases", "case_key", "case_event", "outbox", "idempotency"):
        assert await count(pool, table) == 1
    assert await cases.read(case.id) == case


async def test_a_post_that_dies_before_its_commit_leaves_nothing(cases: Cases, pool: asyncpg.Pool) -> None:
    """Half a case is never seen: everything of the transaction goes together."""
    failpoints.arm("cases.before_commit:raise")
    try:
        with pytest.raises(Injected):
            await cases.create(TYPE, report(), **FORM, idempotency=idempotent())
    finally:
        failpoints.disarm()
    for table in ("cases", "case_key", "case_event", "outbox", "idempotency"):
        assert await count(pool, table) == 0
    assert not (await cases.create(TYPE, report(), **FORM, idempotency=idempotent())).replayed


async def test_the_outbox_row_is_the_event_that_history_shows(cases: Cases, pool: asyncpg.Pool) -> None:
    """What goes to Kafka and what the history tells are one event, and the personal part opens with the case's key."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    row = await pool.fetchrow("select key, headers, value, topic from outbox")
    headers = [(name, text.encode()) for name, text in orjson.loads(row["headers"])]
    event = decode(row["key"].encode(), row["value"], headers)
    assert [event] == await cases.history(case.id)
    assert row["topic"] == "cases.changes.v1"
    personal = await cases.open_personal(case.id, event.sealed)
    assert personal["submitter"]["name"] == "Avery Quill"
    assert personal["notes"][0]["by"] == "key-form"
    assert b"Quill" not in row["value"] + orjson.dumps(event.document)


async def test_no_column_shows_what_is_personal(cases: Cases, pool: asyncpg.Pool) -> None:
    """Nobody who reads the gateway's tables sees a resident's name."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    await cases.change(case.id, {"submitter": {"telephone": "01632 960001"}}, **OFFICER)
    for table in ("cases", "case_event", "outbox", "case_key"):
        dump = await pool.fetch(f"select t::text as row, to_jsonb(t)::text as json from {table} t")
        text = "".join(row["row"] + row["json"] for row in dump)
        assert "Quill" not in text
        assert b"Quill".hex() not in text
        assert "960001" not in text


async def test_the_same_key_and_body_is_the_same_case(cases: Cases, pool: asyncpg.Pool) -> None:
    """A resident who presses twice, or a form that repeats after a time-out, has one case."""
    first = await cases.create(TYPE, report(), **FORM, idempotency=idempotent())
    again = await cases.create(TYPE, report(), **FORM, idempotency=idempotent())
    assert (again.replayed, again.case) == (True, first.case)
    assert await count(pool, "cases") == 1


async def test_the_same_key_with_another_body_is_refused(cases: Cases, pool: asyncpg.Pool) -> None:
    """A key stands for one body; another caller's equal key is another key."""
    await cases.create(TYPE, report(), **FORM, idempotency=idempotent())
    with pytest.raises(IdempotencyMismatch):
        await cases.create(TYPE, report(category="broken"), **FORM, idempotency=idempotent(body=b"other"))
    other = await cases.create(TYPE, report(), **FORM, idempotency=Idempotency("key-other", "k1", b"other"))
    assert not other.replayed
    assert await count(pool, "cases") == 2


async def test_posts_with_one_key_at_once_make_one_case(cases: Cases, pool: asyncpg.Pool) -> None:
    """However many arrive together, one wins and all get its case."""
    created = await asyncio.gather(*(cases.create(TYPE, report(), **FORM, idempotency=idempotent()) for _ in range(15)))
    assert len({each.case.id for each in created}) == 1
    assert [each.replayed for each in created].count(False) == 1
    for table in ("cases", "case_event", "outbox", "case_key"):
        assert await count(pool, table) == 1


async def test_a_bad_document_stores_nothing(cases: Cases, pool: asyncpg.Pool) -> None:
    """What does not meet the schema is refused with its fields, and the key stays free."""
    with pytest.raises(Invalid) as caught:
        await cases.create(TYPE, report(category="graffiti"), **FORM, idempotency=idempotent())
    assert caught.value.problems[0].pointer == "/category"
    with pytest.raises(UnknownCaseType):
        await cases.create("dangerous-structure", report(), **FORM)
    assert await count(pool, "cases") + await count(pool, "idempotency") == 0


async def test_a_patch_makes_the_next_version(cases: Cases) -> None:
    """A merge patch changes what it names, says so in the event, and leaves the rest."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    patch = {"status": "in progress", "location": {"postcode": None}}
    after = await cases.change(case.id, patch, expected_version=1, **OFFICER)
    assert (after.version, after.status) == (2, "in progress")
    assert after.document["location"] == {"easting": 521000.5, "northing": 105500}
    assert after.personal == case.personal
    event = (await cases.history(case.id, 1))[0]
    assert (event.type, event.changed, event.origin) == (
        "case.updated",
        ("location.postcode", "status"),
        "officer",
    )


async def test_a_stale_version_is_refused(cases: Cases) -> None:
    """Whoever did not see the newest version must look again; the current one is told."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    await cases.change(case.id, {"status": "done"}, expected_version=1, **OFFICER)
    with pytest.raises(VersionConflict) as caught:
        await cases.change(case.id, {"status": "open"}, expected_version=1, **OFFICER)
    assert caught.value.current == 2


async def test_a_patch_cannot_break_the_case(cases: Cases) -> None:
    """Unknown cases, immutable fields, notes, bad values and the loss of a required part change nothing."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    with pytest.raises(UnknownCase):
        await cases.change(uuid4(), {"status": "done"}, **OFFICER)
    immutable: list[dict[str, Any]] = [{"asset": {"uprn": 2}}, {"asset": None}, {"notes": []}, {"notes": None}]
    for patch in immutable:
        with pytest.raises(ImmutableField):
            await cases.change(case.id, patch, **OFFICER)
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"location": deep}
    invalid: list[dict[str, Any]] = [{"status": "eaten"}, {"submitter": None}, {"colour": "blue"}, deep]
    for patch in invalid:
        with pytest.raises(Invalid):
            await cases.change(case.id, patch, **OFFICER)
    assert await cases.read(case.id) == case


async def test_a_patch_cannot_take_the_status_away(cases: Cases) -> None:
    """A schema need not require the status, but a case without one would be nowhere: the patch is refused."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    with pytest.raises(Invalid, match="/status is required"):
        await cases.change(case.id, {"status": None}, **OFFICER)
    assert (await cases.read(case.id)).version == 1


async def test_a_patch_that_changes_nothing_makes_no_version(cases: Cases) -> None:
    """An echo of what is already so causes no event."""
    case = (await cases.create(TYPE, report(), **FORM)).case
    assert await cases.change(case.id, {"status": "open"}, **OFFICER) == case
    assert len(await cases.history(case.id)) == 1


async def test_versions_have_no_gaps_under_concurrent_writers(cases: Cases, pool: asyncpg.Pool) -> None:
    """Notes, patches and attachments at once take turns: every version is there once, in history and in the outbox."""
    case_id = (await cases.create(TYPE, report(), **FORM)).case.id
    async with asyncio.TaskGroup() as group:
        for n in range(10):
            group.create_task(cases.note(case_id, f"note {n}", by="Sam", **OFFICER))
            group.create_task(cases.attach(case_id, f"{n:064x}", "image/png", 100 + n, **FORM))
            group.create_task(cases.change(case_id, {"location": {"easting": n}}, **OFFICER))
    events = await cases.history(case_id)
    assert [event.version for event in events] == list(range(1, 32))
    case = await cases.read(case_id)
    assert (case.version, len(case.personal["notes"])) == (31, 11)
    published = await pool.fetch("select version from outbox order by version")
    assert [row["version"] for row in published] == list(range(1, 32))


async def test_a_message_counts_once(cases: Cases) -> None:
    """What a recipient repeats is not taken twice, though the case moved on in between."""
    case_id = (await cases.create(TYPE, report(), **FORM)).case.id
    recipient = {**FORM, "actor": "street-team", "origin": "recipient:street-team", "hops": 1}
    told = ("street-team", "job-7|done|10:00")
    await cases.change(case_id, {"status": "done"}, message=told, **recipient)
    await cases.change(case_id, {"status": "open"}, **OFFICER)
    again = await cases.change(case_id, {"status": "done"}, message=told, **recipient)
    assert (again.status, again.version) == ("open", 3)
    assert (await cases.history(case_id))[1].hops == 1


async def test_the_same_file_twice_is_one_attachment(cases: Cases) -> None:
    """A repeated upload adds neither a row nor an event."""
    case_id = (await cases.create(TYPE, report(), **FORM)).case.id
    first = await cases.attach(case_id, "a" * 64, "image/jpeg", 12345, **FORM)
    assert await cases.attach(case_id, "a" * 64, "image/jpeg", 12345, **FORM) == first
    assert await cases.attachments(case_id) == [first]
    assert [event.type for event in await cases.history(case_id)] == ["case.created", "case.attached"]


async def test_an_erased_case_reads_as_erased(cases: Cases, pool: asyncpg.Pool) -> None:
    """Destroying the key takes the person out of the case, its history and its events; the public part stays."""
    case_id = (await cases.create(TYPE, report(), **FORM)).case.id
    await pool.execute("update case_key set wrapped = null, erased_at = now()")
    case = await cases.read(case_id)
    assert (case.erased, case.personal, case.document["category"]) == (True, {}, "litter")
    with pytest.raises(Erased):
        await cases.open_personal(case_id, (await cases.history(case_id))[0].sealed)
    with pytest.raises(Erased):
        await cases.note(case_id, "still dirty", by="Sam", **OFFICER)
    with pytest.raises(Erased):
        await cases.attach(case_id, "a" * 64, "image/jpeg", 12345, **FORM)
    assert await cases.attachments(case_id) == []


async def test_one_case_does_not_open_another(cases: Cases) -> None:
    """Each case has its own key, and a sealed part moved to another case does not open there."""
    one = (await cases.create(TYPE, report(), **FORM)).case
    two = (await cases.create(TYPE, report(), **FORM)).case
    with pytest.raises(WrongSeal):
        await cases.open_personal(two.id, (await cases.history(one.id))[0].sealed)


async def test_references_are_drawn_again_on_a_clash(
    cases: Cases, pool: asyncpg.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two residents never share a reference, even if the same one is drawn twice."""
    draws = iter("AAAAAAAAAAAAAAAABBBBBBBB")
    monkeypatch.setattr("streams.cases.rows.secrets.choice", lambda _: next(draws))
    references = [(await cases.create(TYPE, report(), **FORM)).case.reference for _ in range(2)]
    assert references == ["RAP-AAAA-AAAA", "RAP-BBBB-BBBB"]


async def test_a_locked_case_ends_in_a_timeout(pool: asyncpg.Pool, keys: CaseKeys) -> None:
    """No call waits for ever, and the connection it used works afterwards."""
    cases = Cases(pool, keys, {TYPE: CaseType(TYPE, CASE_SCHEMA)}, topic="t", timeout_s=0.5)
    case_id: UUID = (await cases.create(TYPE, report(), **FORM)).case.id
    async with pool.acquire() as other, other.transaction():
        await other.execute("select 1 from cases where id = $1 for update", case_id)
        with pytest.raises(TimeoutError):
            await cases.change(case_id, {"status": "done"}, **OFFICER)
    assert (await cases.change(case_id, {"status": "done"}, **OFFICER)).version == 2


async def test_migrations_apply_once_though_many_start_together(database: Any) -> None:
    """Processes that start at once migrate once; a second start finds nothing to do."""
    connections = [await asyncpg.connect(database.url) for _ in range(4)]
    try:
        everything = [migration.name for migration in migrations()]
        assert await pending(connections[0]) == everything
        applied = await asyncio.gather(*(migrate(connection) for connection in connections))
        assert sorted(applied) == [[], [], [], everything]
        assert await pending(connections[0]) == []
        assert (
            await connections[0].fetchval("select rolcanlogin from pg_roles where rolname = 'silogate_lookup'") is False
        )
    finally:
        for connection in connections:
            await connection.close()


async def test_an_edited_migration_is_refused(database: Any) -> None:
    """A database whose schema no longer matches its files is not guessed at."""
    connection = await asyncpg.connect(database.url)
    try:
        await migrate(connection)
        await connection.execute("update gateway.migration set sha256 = 'another'")
        with pytest.raises(MigrationChanged, match="0001_gateway"):
            await migrate(connection)
    finally:
        await connection.close()
