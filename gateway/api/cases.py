"""Cases: made, read, changed and noted. What is personal in them leaves only by these answers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
import orjson
from aiohttp import hdrs, web

from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE
from gateway.limits import read_object
from gateway.problems import Problem
from streams.cases.cases import (
    Case,
    Idempotency,
    IdempotencyMismatch,
    ImmutableField,
    Invalid,
    UnknownCase,
    UnknownCaseType,
    VersionConflict,
)
from streams.cases.keys import Erased

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"

_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_VERSION = re.compile(r'"([1-9][0-9]{0,17})"')
_NOTE_FIELDS = frozenset({"text"})
_ATTACHMENTS = "select id, sha256, media_type, bytes, created_at from attachment where case_id = $1 order by created_at"
_DELIVERIES = """
select recipient, state, version, pushed_at as at from xref where case_id = $1 order by recipient
"""
_EFFECTS = "select purpose, sink, state, updated_at as at from effect where case_id = $1 order by created_at, effect_id"


async def create_case(request: web.Request) -> web.Response:
    """Takes a case. The same key and body give the same answer, however often it is sent."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    key = _idempotency_key(request)
    document = await read_object(request, context.settings.json_body_cap, (JSON,))
    # hashed as it is understood: a repeat may space its JSON otherwise
    sha256 = hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).digest()
    type_name = document.pop("type", None)
    if not isinstance(type_name, str) or type_name not in context.case_types:
        raise Problem("unknown_case_type", "There is no case type of this name.", field="/type")
    _refuse_what_we_fill_in(document)
    api_key = exchange.principal.id if exchange.principal is not None else ""
    async with refusals():
        created = await context.cases.create(
            type_name,
            document,
            actor=exchange.actor,
            origin="form",
            correlation_id=exchange.correlation_id,
            idempotency=Idempotency(api_key, key, sha256),
        )
    case, version, status = created.case, created.case.version, created.case.status
    if created.replayed and version > 1:
        # the answer is the first one again, whatever has happened to the case since
        first = (await context.cases.history(case.id, 0, limit=1))[0]
        version, status = first.version, first.status
    exchange.subject, exchange.outcome = str(case.id), "replayed" if created.replayed else "created"
    headers = {"Location": f"/v1/cases/{case.id}", "ETag": f'"{version}"'}
    if created.replayed:
        headers[REPLAYED] = "true"
    body = {"id": str(case.id), "reference": case.reference, "version": version, "status": status}
    return _json(body, status=201, headers=headers)


async def get_case(request: web.Request) -> web.Response:
    """The whole case: its document, its files, and where it went."""
    context = request.app[CONTEXT]
    case_id = case_id_of(request)
    async with refusals():
        case = await context.cases.read(case_id)
    async with context.pool.acquire() as connection:
        attachments = await connection.fetch(_ATTACHMENTS, case_id)
        deliveries = await connection.fetch(_DELIVERIES, case_id)
        effects = await connection.fetch(_EFFECTS, case_id)
    ours = {
        "id": str(case.id),
        "reference": case.reference,
        "type": case.type,
        "version": case.version,
        "created_at": case.created_at,
        "updated_at": case.updated_at,
        "erased": case.erased,
        "attachments": _rows(attachments),
        "deliveries": _rows(deliveries),
        "effects": _rows(effects),
    }
    # ours again at the end: no field of a document may pass for one of ours
    body = {**ours, **context.cases.whole(case), **ours}
    request[EXCHANGE].outcome = "read"
    return _json(body, headers={"ETag": f'"{case.version}"'})


async def change_case(request: web.Request) -> web.Response:
    """Merges a patch into the case, if it still is at the version that the caller has read."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    case_id = case_id_of(request)
    expected = _expected_version(request)
    patch = await read_object(request, context.settings.json_body_cap, (MERGE_PATCH, JSON))
    async with refusals():
        case = await context.cases.change(
            case_id,
            patch,
            expected_version=expected,
            actor=exchange.actor,
            origin="officer",
            correlation_id=exchange.correlation_id,
        )
    exchange.outcome = "changed" if case.version > expected else "unchanged"
    return _changed(case)


async def add_note(request: web.Request) -> web.Response:
    """Adds a note to the case; nothing takes it away again."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    case_id = case_id_of(request)
    note = await read_object(request, context.settings.json_body_cap, (JSON,))
    text = note.get("text")
    if not isinstance(text, str) or not text.strip():
        raise Problem("invalid_document", "A note has a text.", field="/text")
    if set(note) - _NOTE_FIELDS:
        raise Problem("invalid_document", "A note has a text and nothing else.", field="")
    async with refusals():
        case = await context.cases.note(
            case_id,
            text,
            by=exchange.actor,
            actor=exchange.actor,
            origin="officer",
            correlation_id=exchange.correlation_id,
        )
    exchange.outcome = "noted"
    return _changed(case, status=201)


def case_id_of(request: web.Request) -> UUID:
    """The case in the address, which becomes the audit row's subject; raises Problem when it cannot be one."""
    try:
        case_id = UUID(request.match_info["id"])
    except ValueError:
        raise _unknown_case() from None
    request[EXCHANGE].subject = str(case_id)
    return case_id


@asynccontextmanager
async def refusals() -> AsyncIterator[None]:
    """Turns what the writer of cases raises into problems, and names fields, never values."""
    try:
        yield
    except UnknownCase:
        raise _unknown_case() from None
    except UnknownCaseType:
        raise Problem("unknown_case_type", "There is no case type of this name.", field="/type") from None
    except IdempotencyMismatch:
        detail = "This key was used with another body. A new request needs a new key."
        raise Problem("idempotency_key_reused", detail, field=IDEMPOTENCY_KEY) from None
    except VersionConflict as error:
        detail = "The case has changed since it was read. Read it again, then repeat the change."
        headers = {"ETag": f'"{error.current}"'}
        raise Problem("version_conflict", detail, field=hdrs.IF_MATCH, headers=headers) from None
    except ImmutableField as error:
        raise Problem("immutable_field", "This field cannot be changed this way.", field=error.field) from None
    except Invalid as error:
        errors = [{"field": problem.pointer, "detail": problem.message} for problem in error.problems]
        first = error.problems[0]
        detail = f"{first.pointer or 'The document'} {first.message}."
        raise Problem("invalid_document", detail, field=first.pointer, errors=errors) from None
    except Erased:
        detail = "What was personal in this case was erased, so it can no longer be changed."
        raise Problem("case_erased", detail) from None


def _unknown_case() -> Problem:
    return Problem("unknown_case", "There is no case with this id.", field="id")


def _idempotency_key(request: web.Request) -> str:
    key = request.headers.get(IDEMPOTENCY_KEY)
    if key is None:
        detail = "Send a key of your own, so that a repeated request is not a second case."
        raise Problem("missing_idempotency_key", detail, field=IDEMPOTENCY_KEY)
    if not _KEY.fullmatch(key):
        detail = "A key has 1 to 255 visible ASCII characters and no space."
        raise Problem("malformed_idempotency_key", detail, field=IDEMPOTENCY_KEY)
    return key


def _expected_version(request: web.Request) -> int:
    header = request.headers.get(hdrs.IF_MATCH)
    if header is None:
        detail = 'Send the version that you have read, such as If-Match: "3", so that no change is overwritten.'
        raise Problem("missing_if_match", detail, field=hdrs.IF_MATCH)
    match = _VERSION.fullmatch(header.strip())
    if match is None:
        raise Problem("malformed_if_match", 'Send one version in quotes, such as "3".', field=hdrs.IF_MATCH)
    return int(match[1])


def _refuse_what_we_fill_in(document: Mapping[str, Any]) -> None:
    """Who wrote a note, when, and where a case begins is for us to say, not for the caller."""
    if "status" in document:
        raise Problem("invalid_document", "A new case has no status yet.", field="/status")
    notes = document.get("notes")
    for index, note in enumerate(notes if isinstance(notes, list) else ()):
        foreign = set(note) - _NOTE_FIELDS if isinstance(note, dict) else ()
        if foreign:
            raise Problem("invalid_document", "A new note has a text and nothing else.", field=f"/notes/{index}")


def _changed(case: Case, *, status: int = 200) -> web.Response:
    body = {"id": str(case.id), "reference": case.reference, "version": case.version, "status": case.status}
    return _json(body, status=status, headers={"ETag": f'"{case.version}"'})


def _rows(records: Sequence[asyncpg.Record]) -> list[dict[str, Any]]:
    return [dict(record) for record in records]


def _json(body: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    # asyncpg has a UUID of its own
    text = orjson.dumps(body, default=str, option=orjson.OPT_UTC_Z)
    return web.Response(body=text, status=status, headers=headers, content_type=JSON)
