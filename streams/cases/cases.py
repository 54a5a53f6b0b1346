"""The only writer of cases: a change commits the case, its history, its outbox row and its proof of receipt at once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import asyncpg

from streams.cases import rows as caserows
from streams.cases.casetype import CaseType, Problem, pointer
from streams.cases.document import NOTES, completed, is_storable, merge_patch, new_note, problems_of
from streams.cases.keys import CaseKeys, Erased, open_personal, seal_personal
from streams.cases.rows import CaseRow
from streams.events import CaseEvent
from streams.failpoints import reach


class UnknownCase(Exception):
    """There is no case with this id."""


class UnknownCaseType(Exception):
    """No integration declares this type of case."""


class VersionConflict(Exception):
    """The case has moved on since the caller read it; `current` is its version now."""

    def __init__(self, current: int) -> None:
        super().__init__(f"the case is at version {current}")
        self.current = current


class ImmutableField(Exception):
    """The patch touches a field that may not change this way; `field` is its JSON pointer."""

    def __init__(self, field: str) -> None:
        super().__init__(f"{field} cannot be changed")
        self.field = field


class Invalid(Exception):
    """The document does not meet the schema of its case type."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{problem.pointer} {problem.message}" for problem in problems[:3]))
        self.problems = tuple(problems)


class IdempotencyMismatch(Exception):
    """The key was used before, with another body."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """What makes a repeated POST the same POST: who asks, their key, and the hash of the body."""

    api_key: str
    key: str
    request_sha256: bytes


@dataclass(frozen=True, slots=True)
class Case:
    """A case as it is now. When its key was destroyed, `erased` is set and `personal` is empty."""

    id: UUID
    reference: str
    type: str
    version: int
    status: str
    document: dict[str, Any]
    personal: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    erased: bool = False


@dataclass(frozen=True, slots=True)
class Created:
    """The case of a POST; `replayed` when an earlier POST with the same key had made it."""

    case: Case
    replayed: bool


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that belongs to a case; its bytes lie in the blob store under their hash."""

    id: UUID
    case_id: UUID
    sha256: str
    media_type: str
    bytes: int
    created_at: datetime


def _now() -> datetime:
    return datetime.now(UTC)


class Cases:
    """Creates, changes and reads cases. Versions grow by one without gaps; every call ends within `timeout_s`."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        keys: CaseKeys,
        types: Mapping[str, CaseType],
        *,
        topic: str,
        clock: Callable[[], datetime] = _now,
        timeout_s: float = 5.0,
    ) -> None:
        self._pool = pool
        self._keys = keys
        self._types = dict(types)
        self._topic = topic
        self._clock = clock
        self._timeout_s = timeout_s

    async def create(
        self,
        type_name: str,
        document: dict[str, Any],
        *,
        actor: str,
        origin: str,
        correlation_id: str,
        idempotency: Idempotency | None = None,
    ) -> Created:
        """Takes a new case; once this returns, nothing downstream can lose it.

        Fills in the status and the notes' ids, times and authors where absent. A repeat with the same idempotency key
        returns the first case as it is now. Raises UnknownCaseType, Invalid and IdempotencyMismatch.
        """
        case_type = self._type(type_name)
        whole = completed(case_type, document, by=actor, at=self._clock())
        _check(case_type, whole)
        case_id = uuid4()
        async with self._transaction() as connection:
            if idempotency is not None:
                first = await _claim(connection, idempotency, case_id)
                if first is not None:
                    return Created(await self._read(connection, first), replayed=True)
            public, personal = case_type.split(whole)
            sealer = await self._keys.new(connection, case_id)
            row = self._new_row(case_id, case_type, public, seal_personal(sealer, case_id, personal))
            row = await caserows.insert_case(connection, row, prefix=case_type.prefix, submitted_by=actor)
            event = caserows.new_event(
                row,
                "case.created",
                origin=origin,
                correlation_id=correlation_id,
                hops=0,
                changed=case_type.changed({}, whole),
            )
            await caserows.append_event(connection, event, actor=actor, topic=self._topic)
            reach("cases.before_commit")
        reach("cases.after_commit")
        return Created(_case(row, personal), replayed=False)

    async def change(
        self,
        case_id: UUID,
        patch: dict[str, Any],
        *,
        expected_version: int | None = None,
        actor: str,
        origin: str,
        correlation_id: str,
        hops: int = 0,
        message: tuple[str, str] | None = None,
    ) -> Case:
        """Applies a JSON merge patch (RFC 7396) to the whole document; a patch that changes nothing makes no version.

        `message` (source, id) is remembered in the same transaction: a message seen before changes nothing. Notes are
        only added, by `note`. Raises UnknownCase, VersionConflict, ImmutableField, Invalid, Erased and HopLimit.
        """
        if NOTES in patch:
            raise ImmutableField(pointer((NOTES,)))
        if not is_storable(patch):
            raise Invalid([Problem("", "is nested too deeply or holds what JSON cannot carry")])
        return await self._rewrite(
            case_id,
            "case.updated",
            lambda whole: merge_patch(whole, patch),
            expected_version=expected_version,
            actor=actor,
            origin=origin,
            correlation_id=correlation_id,
            hops=hops,
            message=message,
        )

    async def note(
        self,
        case_id: UUID,
        text: str,
        *,
        by: str,
        actor: str,
        origin: str,
        correlation_id: str,
        hops: int = 0,
        message: tuple[str, str] | None = None,
    ) -> Case:
        """Adds a note, which nothing takes away again. Raises UnknownCase, Invalid, Erased and HopLimit."""
        added = new_note(text, by=by, at=self._clock())
        return await self._rewrite(
            case_id,
            "case.noted",
            lambda whole: {**whole, NOTES: [*whole.get(NOTES, []), added]},
            expected_version=None,
            actor=actor,
            origin=origin,
            correlation_id=correlation_id,
            hops=hops,
            message=message,
        )

    async def attach(
        self,
        case_id: UUID,
        sha256: str,
        media_type: str,
        size: int,
        *,
        actor: str,
        origin: str,
        correlation_id: str,
    ) -> Attachment:
        """Records a file; the same content twice is one attachment and one event. Raises UnknownCase and Erased."""
        async with self._transaction() as connection:
            row = await _locked(connection, case_id)
            await self._keys.of(connection, case_id)  # only to raise Erased
            for known in await caserows.select_attachments(connection, case_id):
                if known["sha256"] == sha256:
                    return Attachment(**dict(known))
            added = Attachment(uuid4(), case_id, sha256, media_type, size, self._clock())
            await caserows.insert_attachment(connection, astuple(added))
            row = replace(row, version=row.version + 1, updated_at=added.created_at)
            await caserows.update_case(connection, row)
            event = caserows.new_event(
                row, "case.attached", origin=origin, correlation_id=correlation_id, hops=0, changed=["attachments"]
            )
            await caserows.append_event(connection, event, actor=actor, topic=self._topic)
        return added

    async def read(self, case_id: UUID) -> Case:
        """The case as it is now; raises UnknownCase."""
        async with self._transaction() as connection:
            return await self._read(connection, case_id)

    async def attachments(self, case_id: UUID) -> list[Attachment]:
        """The files of a case, oldest first."""
        async with self._transaction() as connection:
            rows = await caserows.select_attachments(connection, case_id)
        return [Attachment(**dict(row)) for row in rows]

    async def history(self, case_id: UUID, after_version: int = 0, *, limit: int = 500) -> list[CaseEvent]:
        """The events after a version, oldest first, at most `limit`; empty for a case that does not exist."""
        async with self._transaction() as connection:
            return list(await caserows.select_events(connection, case_id, after_version, limit))

    async def open_personal(self, case_id: UUID, sealed: bytes) -> dict[str, Any]:
        """The personal part of one of the case's events; raises Erased when its key was destroyed."""
        async with asyncio.timeout(self._timeout_s):
            sealer = await self._keys.of(self._pool, case_id)
        return open_personal(sealer, case_id, sealed)

    def whole(self, case: Case) -> dict[str, Any]:
        """The whole document of a case: the public and the personal part together."""
        return self._type(case.type).join(case.document, case.personal)

    async def _rewrite(
        self,
        case_id: UUID,
        kind: str,
        change: Callable[[dict[str, Any]], dict[str, Any]],
        *,
        expected_version: int | None,
        actor: str,
        origin: str,
        correlation_id: str,
        hops: int,
        message: tuple[str, str] | None,
    ) -> Case:
        async with self._transaction() as connection:
            row = await _locked(connection, case_id)
            if message is not None and not await caserows.first_sight(connection, *message):
                return await self._read(connection, case_id)
            if expected_version is not None and expected_version != row.version:
                raise VersionConflict(row.version)
            case_type = self._type(row.type)
            sealer = await self._keys.of(connection, case_id)
            personal = open_personal(sealer, case_id, row.sealed)
            before = case_type.join(row.document, personal)
            after = change(before)
            broken = case_type.broken_immutable(before, after)
            if broken is not None:
                raise ImmutableField(broken)
            _check(case_type, after)
            if after == before:
                return _case(row, personal)
            public, personal = case_type.split(after)
            row = replace(
                row,
                version=row.version + 1,
                status=after["status"],
                document=public,
                sealed=seal_personal(sealer, case_id, personal),
                updated_at=self._clock(),
            )
            await caserows.update_case(connection, row)
            event = caserows.new_event(
                row,
                kind,
                origin=origin,
                correlation_id=correlation_id,
                hops=hops,
                changed=case_type.changed(before, after),
            )
            await caserows.append_event(connection, event, actor=actor, topic=self._topic)
            reach("cases.before_commit")
        reach("cases.after_commit")
        return _case(row, personal)

    async def _read(self, connection: asyncpg.Connection, case_id: UUID) -> Case:
        row = await caserows.select_case(connection, case_id)
        if row is None:
            raise UnknownCase
        try:
            sealer = await self._keys.of(connection, case_id)
        except Erased:
            return _case(row, {}, erased=True)
        return _case(row, open_personal(sealer, case_id, row.sealed))

    @asynccontextmanager
    async def _transaction(self) -> AsyncIterator[asyncpg.Connection]:
        async with asyncio.timeout(self._timeout_s), self._pool.acquire() as connection, connection.transaction():
            yield connection

    def _type(self, name: str) -> CaseType:
        try:
            return self._types[name]
        except KeyError:
            raise UnknownCaseType from None

    def _new_row(self, case_id: UUID, case_type: CaseType, public: dict[str, Any], sealed: bytes) -> CaseRow:
        now = self._clock()
        return CaseRow(case_id, "", case_type.name, 1, public["status"], public, sealed, now, now)


def _check(case_type: CaseType, whole: Mapping[str, Any]) -> None:
    # a schema need not require the status, because `create` fills it in: so its removal is refused here
    problems = problems_of(case_type, whole) or ([] if "status" in whole else [Problem("/status", "is required")])
    if problems:
        raise Invalid(problems)


async def _locked(connection: asyncpg.Connection, case_id: UUID) -> CaseRow:
    row = await caserows.select_case(connection, case_id, lock=True)
    if row is None:
        raise UnknownCase
    return row


async def _claim(connection: asyncpg.Connection, idempotency: Idempotency, case_id: UUID) -> UUID | None:
    """The case that an earlier POST with this key made, or None when the key is ours now."""
    first = await caserows.claim_key(
        connection, idempotency.api_key, idempotency.key, idempotency.request_sha256, case_id
    )
    if first is None:
        return None
    request_sha256, found = first
    if request_sha256 != idempotency.request_sha256:
        raise IdempotencyMismatch
    return found


def _case(row: CaseRow, personal: dict[str, Any], *, erased: bool = False) -> Case:
    return Case(
        id=row.id,
        reference=row.reference,
        type=row.type,
        version=row.version,
        status=row.status,
        document=row.document,
        personal=personal,
        created_at=row.created_at,
        updated_at=row.updated_at,
        erased=erased,
    )
