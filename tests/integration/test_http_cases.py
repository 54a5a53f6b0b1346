"""Cases by HTTP on a real Postgres: made once, read whole, changed only by who has read them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import orjson
import pytest

from gateway.dev.addresses import Servers
from tests.integration.edge import Edge, gateway_schema, idempotent, problem_of, report, running_edge
from tests.unit.test_http_images import png

_JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


async def _count(edge: Edge) -> int:
    count: int = await edge.context.pool.fetchval("select count(*) from cases")
    return count


async def test_a_case_is_made_once_however_often_it_is_sent(edge: Edge) -> None:
    """The same key and body give the same 201 and body, marked as a replay, even after the case has moved on."""
    headers, before = idempotent(), await _count(edge)
    first = await edge.ask("POST", "/v1/cases", json=report(), headers=headers)
    receipt = await first.json()
    assert first.status == 201
    assert receipt.keys() == {"id", "reference", "version", "status"}
    assert (receipt["version"], receipt["status"]) == (1, "open")
    assert first.headers["Location"] == f"/v1/cases/{receipt['id']}"
    assert first.headers["ETag"] == '"1"'
    assert "Idempotency-Replayed" not in first.headers

    changed = await edge.ask("PATCH", first.headers["Location"], json={"status": "fixed"}, headers={"If-Match": '"1"'})
    assert changed.status == 200

    again = await edge.ask("POST", "/v1/cases", data=b" " + orjson.dumps(report()), headers=headers | _JSON)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
    assert await again.json() == receipt
    assert again.headers["ETag"] == '"1"'
    assert await _count(edge) == before + 1


async def test_posts_at_once_with_one_key_make_one_case(edge: Edge) -> None:
    """A double click is one case."""
    headers, before = idempotent(), await _count(edge)
    answers = await asyncio.gather(*(edge.ask("POST", "/v1/cases", json=report(), headers=headers) for _ in range(8)))
    assert {answer.status for answer in answers} == {201}
    assert len({(await answer.json())["id"] for answer in answers}) == 1
    assert await _count(edge) == before + 1


async def test_one_key_with_another_body_is_refused(edge: Edge) -> None:
    """422, and nothing is made."""
    headers = idempotent()
    assert (await edge.ask("POST", "/v1/cases", json=report(), headers=headers)).status == 201
    before = await _count(edge)
    answer = await edge.ask("POST", "/v1/cases", json=report(category="blocked"), headers=headers)
    assert await problem_of(answer) == (422, "idempotency_key_reused", "Idempotency-Key")
    assert await _count(edge) == before


@pytest.mark.parametrize("key", ["", "x" * 256, "two words", "é", "tab\there"])
async def test_a_malformed_key_is_refused(edge: Edge, key: str) -> None:
    """1 to 255 visible ASCII characters, nothing else."""
    before = await _count(edge)
    answer = await edge.ask("POST", "/v1/cases", json=report(), headers={"Idempotency-Key": key})
    assert await problem_of(answer) == (400, "malformed_idempotency_key", "Idempotency-Key")
    assert await _count(edge) == before


async def test_a_missing_key_is_refused(edge: Edge) -> None:
    """A case without a key could be made twice."""
    answer = await edge.ask("POST", "/v1/cases", json=report())
    assert await problem_of(answer) == (400, "missing_idempotency_key", "Idempotency-Key")


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (b"{", _JSON, (400, "malformed_json", "")),
        (b"[]", _JSON, (400, "not_an_object", "")),
        (b'{"type":"a","type":"b"}', _JSON, (400, "duplicate_key", "type")),
        (b'{"a":' + b"[" * 40 + b"]" * 40 + b"}", _JSON, (400, "too_deep", "")),
        (b'{"a":"' + b"x" * (256 * 1024) + b'"}', _JSON, (413, "body_too_large", "")),
        (b"{}", {"Content-Type": "text/plain"}, (415, "unsupported_media_type", "Content-Type")),
        (b"{}", _JSON | {"Content-Encoding": "gzip"}, (415, "unsupported_media_type", "Content-Encoding")),
        (b"{}", _JSON, (422, "unknown_case_type", "/type")),
        (b'{"type":7}', _JSON, (422, "unknown_case_type", "/type")),
        (b'{"type":"parking-permit"}', _JSON, (422, "unknown_case_type", "/type")),
    ],
)
async def test_a_bad_body_is_named_and_changes_nothing(
    edge: Edge, body: bytes, headers: dict[str, str], expected: tuple[int, str, str | None]
) -> None:
    """Each way of being wrong has its code."""
    before = await _count(edge)
    answer = await edge.ask("POST", "/v1/cases", data=body, headers=idempotent() | headers)
    assert await problem_of(answer) == expected
    assert await _count(edge) == before


async def test_a_body_over_its_cap_is_refused_before_it_is_read(edge: Edge) -> None:
    """A declared length is refused at once; one that only shows while it comes, when the cap is reached."""

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(1000):
            yield b"x" * 65_536

    answer = await edge.ask("POST", "/v1/cases", data=endless(), headers=idempotent() | _JSON)
    assert await problem_of(answer) == (413, "body_too_large", "")


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"category": "noise"}, "/category"),
        ({"submitter": {"name": ""}}, "/submitter/name"),
        ({"submitter": {"name": "Avery Quill", "email": "avery quill"}}, "/submitter/email"),
        ({"location": {"easting": -1, "northing": 0}}, "/location/easting"),
        ({"status": "closed"}, "/status"),
        ({"notes": [{"text": "a", "by": "the mayor"}]}, "/notes/0"),
        ({"shoe_size": 44}, "/shoe_size"),
    ],
)
async def test_a_document_against_its_schema_is_refused_by_pointer(
    edge: Edge, changed: dict[str, Any], field: str
) -> None:
    """422 names the place in the document, and no personal value comes back."""
    before = await _count(edge)
    answer = await edge.ask("POST", "/v1/cases", json=report(**changed), headers=idempotent())
    text = await answer.text()
    status, code, named = await problem_of(answer)
    assert (status, code) == (422, "invalid_document")
    assert named is not None
    assert field.startswith(named)
    assert "avery" not in text.lower()
    assert await _count(edge) == before


async def test_every_fault_of_a_document_is_listed(edge: Edge) -> None:
    """A form shows all mistakes at once."""
    wrong = report(category="noise", asset={"uprn": "0"})
    answer = await edge.ask("POST", "/v1/cases", json=wrong, headers=idempotent())
    errors = (await answer.json(content_type=None))["errors"]
    assert {"/category", "/asset/uprn", "/asset/name"} <= {error["field"] for error in errors}


async def test_a_case_is_read_whole(edge: Edge) -> None:
    """Document, personal part, version, files and where it went, under headers that no cache keeps."""
    receipt = await edge.create()
    answer = await edge.ask("GET", f"/v1/cases/{receipt['id']}")
    case = await answer.json()
    assert answer.status == 200
    assert answer.headers["ETag"] == '"1"'
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert case["submitter"] == {"name": "Avery Quill", "email": "avery@example.org"}
    assert case["notes"][0]["text"] == "Needles beside the basin."
    assert (case["reference"], case["type"], case["version"]) == (receipt["reference"], report()["type"], 1)
    assert (case["attachments"], case["deliveries"], case["effects"], case["erased"]) == ([], [], [], False)


async def test_a_case_shows_where_it_went(edge: Edge) -> None:
    """Deliveries and effects come from their tables as they are."""
    case_id = (await edge.create())["id"]
    await edge.context.pool.execute(
        "insert into xref (recipient, case_id, version, state, mapping, pushed_at)"
        " values ('street-team', $1, 1, 'applied', 'm1', now())",
        case_id,
    )
    await edge.context.pool.execute(
        "insert into effect"
        " (effect_id, sink, case_id, case_version, purpose, occurrence, state, payload, correlation_id)"
        " values ($2, 'email', $1, 1, 'confirmation', 'once', 'unknown', '', 'c')",
        case_id,
        uuid4(),
    )
    case = await (await edge.ask("GET", f"/v1/cases/{case_id}")).json()
    assert [(item["recipient"], item["state"], item["version"]) for item in case["deliveries"]] == [
        ("street-team", "applied", 1)
    ]
    assert [(item["purpose"], item["sink"], item["state"]) for item in case["effects"]] == [
        ("confirmation", "email", "unknown")
    ]


@pytest.mark.parametrize("case_id", ["0b9c3a52-0000-4000-8000-000000000000", "no-uuid", "1", "%252e%252e"])
async def test_an_unknown_case_is_404(edge: Edge, case_id: str) -> None:
    """What is no id and what is nobody's id answer alike."""
    for method, path, sent in (
        ("GET", "", {}),
        ("PATCH", "", {"json": {}, "headers": {"If-Match": '"1"'}}),
        ("POST", "/notes", {"json": {"text": "a"}}),
        ("POST", "/attachments", {"data": b"x", "headers": {"Content-Type": "image/png"}}),
        ("GET", "/events", {}),
        ("GET", f"/attachments/{uuid4()}", {}),
    ):
        answer = await edge.ask(method, f"/v1/cases/{case_id}{path}", **sent)
        status, code, _ = await problem_of(answer)
        assert status == 404, (method, path)
        assert code in ("unknown_case", "unknown_attachment", "not_found")


async def test_a_change_needs_the_version_that_was_read(edge: Edge) -> None:
    """428 without If-Match, 400 when malformed, 412 with the current ETag when stale; nothing changes."""
    path = f"/v1/cases/{(await edge.create())['id']}"
    patch = {"status": "in_progress"}
    assert await problem_of(await edge.ask("PATCH", path, json=patch)) == (428, "missing_if_match", "If-Match")
    for header in ("1", "*", 'W/"1"', '"1", "2"', '"0"', '"x"'):
        answer = await edge.ask("PATCH", path, json=patch, headers={"If-Match": header})
        assert await problem_of(answer) == (400, "malformed_if_match", "If-Match")

    done = await edge.ask("PATCH", path, json=patch, headers={"If-Match": '"1"'})
    assert (done.status, done.headers["ETag"]) == (200, '"2"')
    assert (await done.json())["status"] == "in_progress"

    stale = await edge.ask("PATCH", path, json={"status": "fixed"}, headers={"If-Match": '"1"'})
    assert await problem_of(stale) == (412, "version_conflict", "If-Match")
    assert stale.headers["ETag"] == '"2"'
    assert (await (await edge.ask("GET", path)).json())["status"] == "in_progress"


@pytest.mark.parametrize("media_type", ["application/merge-patch+json", "application/json"])
async def test_a_patch_is_a_merge_patch(edge: Edge, media_type: str) -> None:
    """Both media types mean RFC 7396."""
    path = f"/v1/cases/{(await edge.create())['id']}"
    answer = await edge.ask(
        "PATCH", path, data=b'{"status":"fixed"}', headers={"If-Match": '"1"', "Content-Type": media_type}
    )
    assert answer.status == 200


async def test_a_patch_cannot_touch_what_is_fixed(edge: Edge) -> None:
    """Immutable fields, notes, unknown statuses and other media types are refused by name."""
    path = f"/v1/cases/{(await edge.create())['id']}"
    match = {"If-Match": '"1"'}
    for patch, expected in (
        ({"category": "blocked"}, (422, "immutable_field", "/category")),
        ({"notes": []}, (422, "immutable_field", "/notes")),
        ({"status": "lost"}, (422, "invalid_document", "/status")),
    ):
        assert await problem_of(await edge.ask("PATCH", path, json=patch, headers=match)) == expected
    answer = await edge.ask("PATCH", path, data=b"[]", headers=match | {"Content-Type": "application/json-patch+json"})
    assert await problem_of(answer) == (415, "unsupported_media_type", "Content-Type")
    assert answer.headers["Accept-Patch"] == "application/merge-patch+json"


async def test_a_note_is_added_and_says_who_wrote_it(edge: Edge) -> None:
    """201 with the new version; the author is the key, not what the caller claims."""
    case_id = (await edge.create())["id"]
    answer = await edge.ask("POST", f"/v1/cases/{case_id}/notes", json={"text": "The lock is mended."})
    assert (answer.status, (await answer.json())["version"]) == (201, 2)
    notes = (await (await edge.ask("GET", f"/v1/cases/{case_id}")).json())["notes"]
    assert [note["text"] for note in notes] == ["Needles beside the basin.", "The lock is mended."]
    assert notes[1]["by"].startswith("key:")
    for body, field in (({}, "/text"), ({"text": " "}, "/text"), ({"text": "a", "by": "x"}, "")):
        answer = await edge.ask("POST", f"/v1/cases/{case_id}/notes", json=body)
        assert await problem_of(answer) == (422, "invalid_document", field)
    too_long = await edge.ask("POST", f"/v1/cases/{case_id}/notes", json={"text": "x" * 2001})
    assert await problem_of(too_long) == (422, "invalid_document", "/notes/2/text")


async def test_an_erased_case_reads_as_erased(edge: Edge) -> None:
    """What was personal is gone without a fault, and the case takes no more changes."""
    case_id = (await edge.create())["id"]
    await edge.context.pool.execute("update case_key set wrapped = null, erased_at = now() where case_id = $1", case_id)
    case = await (await edge.ask("GET", f"/v1/cases/{case_id}")).json()
    assert case["erased"] is True
    assert "submitter" not in case
    assert case["category"] == "litter"
    answer = await edge.ask("PATCH", f"/v1/cases/{case_id}", json={"status": "fixed"}, headers={"If-Match": '"1"'})
    assert await problem_of(answer) == (410, "case_erased", None)
    photo = {"Content-Type": "image/png"}
    answer = await edge.ask("POST", f"/v1/cases/{case_id}/attachments", data=png(), headers=photo)
    assert await problem_of(answer) == (410, "case_erased", None)


async def test_a_case_keeps_a_status(edge: Edge) -> None:
    """Taking the status away is a mistake of the caller, told with its field."""
    case_id = (await edge.create())["id"]
    answer = await edge.ask("PATCH", f"/v1/cases/{case_id}", json={"status": None}, headers={"If-Match": '"1"'})
    assert await problem_of(answer) == (422, "invalid_document", "/status")


async def test_a_correlation_id_is_taken_kept_and_given_back(edge: Edge) -> None:
    """A sound one goes into the history; one that could break a log line is replaced."""
    answer = await edge.ask(
        "POST", "/v1/cases", json=report(), headers=idempotent() | {"Silogate-Correlation-Id": "journey-0042"}
    )
    assert answer.headers["Silogate-Correlation-Id"] == "journey-0042"
    case_id = (await answer.json())["id"]
    kept = await edge.context.pool.fetchval("select correlation_id from case_event where case_id = $1", case_id)
    assert kept == "journey-0042"
    answer = await edge.ask("GET", "/v1/lookups", headers={"Silogate-Correlation-Id": "x;y z"})
    assert answer.headers["Silogate-Correlation-Id"] != "x;y z"
