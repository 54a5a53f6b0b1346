"""What flowed where: everything that is known of a correlation id or a reference, as one timeline."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from gateway.admin.queries import QUERIES
from gateway.admin.rendering import exact_time, how_long

_PER_CASE = ("events", "attachments", "outbox", "deliveries", "parked", "effects", "attempts")
Row = Mapping[str, Any]
Facts = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """One thing that happened. `rank` orders what happened at the same instant; `text` is said only when needed."""

    at: datetime
    rank: int
    kind: str
    title: str
    facts: Facts
    text: str = ""
    warns: bool = False
    searched: bool = False
    case_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Flow:
    """The cases that belong to what was asked, newest state first, and their common timeline, oldest moment first."""

    cases: tuple[Row, ...]
    moments: tuple[Moment, ...]

    @property
    def began(self) -> datetime | None:
        return self.moments[0].at if self.moments else None


async def find_flow(pool: asyncpg.Pool, asked: str, *, timeout_s: float = 5.0) -> Flow:
    """Everything about a correlation id, a reference, a case id or an effect id; empty when nothing is known of it."""
    async with pool.acquire(timeout=timeout_s) as connection, connection.transaction(readonly=True):
        found = await connection.fetch(QUERIES["find_cases"], asked, _as_uuid(asked), timeout=timeout_s)
        ids = [row["id"] for row in found]
        cases = await connection.fetch(QUERIES["flow_case"], ids, timeout=timeout_s)
        rows: dict[str, list[Row]] = {}
        for name in _PER_CASE:
            wanted = [str(one) for one in ids] if name == "outbox" else ids
            rows[name] = await connection.fetch(QUERIES[f"flow_{name}"], wanted, timeout=timeout_s)
        correlations = {asked, *(row["correlation_id"] for row in rows["events"])}
        rows["audit"] = await connection.fetch(
            QUERIES["flow_audit"], sorted(correlations), [str(one) for one in ids], timeout=timeout_s
        )
    moments = sorted(_moments(rows, asked), key=lambda one: (one.at, one.rank))
    return Flow(tuple(cases), tuple(moments))


def _as_uuid(text: str) -> UUID | None:
    try:
        return UUID(text)
    except ValueError:
        return None


def _moments(rows: Mapping[str, Iterable[Row]], asked: str) -> Iterator[Moment]:
    for row in rows["events"]:
        yield _event(row, asked)
    for row in rows["attachments"]:
        facts = _facts(type=row["media_type"], bytes=row["bytes"], sha256=row["sha256"][:12] + "…")
        yield Moment(row["created_at"], 2, "Photo", "Attachment stored", facts, case_id=row["case_id"])
    for row in rows["outbox"]:
        yield _published(row)
    for row in rows["deliveries"]:
        yield _delivery(row)
    for row in rows["parked"]:
        yield _parked(row)
    attempts = defaultdict[UUID, list[Row]](list)
    for row in rows["attempts"]:
        attempts[row["effect_id"]].append(row)
    for row in rows["effects"]:
        yield from _effect(row, attempts[row["effect_id"]], asked)
    for row in rows["audit"]:
        yield _audit(row, asked)


def _event(row: Row, asked: str) -> Moment:
    recipient = row["origin"].removeprefix("recipient:")
    if recipient != row["origin"]:
        kind, title = "Recipient", f"Polled back from {recipient}: version {row['version']}, status {row['status']}"
    elif row["version"] == 1:
        kind, title = "Request", "Case created: version 1"
    else:
        kind, title = "Case", f"{row['type']}: version {row['version']}"
    facts = _facts(
        by=_actor(row),
        origin=row["origin"],
        status=row["status"],
        changed=", ".join(row["changed"]),
        hops=row["hops"] or None,
        correlation=row["correlation_id"],
    )
    return Moment(row["at"], 1, kind, title, facts, searched=row["correlation_id"] == asked, case_id=row["case_id"])


def _published(row: Row) -> Moment:
    if row["published_at"] is None:
        title = f"Version {row['version']} waits to be published"
        facts = _facts(topic=row["topic"])
        return Moment(row["created_at"], 3, "Kafka", title, facts, warns=True, case_id=row["case_id"])
    waited = how_long((row["published_at"] - row["created_at"]).total_seconds())
    facts = _facts(topic=row["topic"], waited=waited)
    title = f"Version {row['version']} published"
    return Moment(row["published_at"], 3, "Kafka", title, facts, case_id=row["case_id"])


def _delivery(row: Row) -> Moment:
    parked = row["state"] == "parked"
    title = f"{row['recipient']} {'did not take' if parked else 'has'} version {row['version']}"
    facts = _facts(remote_id=row["remote_id"], mapping=row["mapping"][:12])
    return Moment(row["pushed_at"], 5, "Recipient", title, facts, warns=parked, case_id=row["case_id"])


def _parked(row: Row) -> Moment:
    facts = _facts(
        stage=row["stage"],
        field=row["field"],
        reason=row["reason"],
        attempts=row["attempts"],
        waiting=f"{row['waiting']} events",
        asked_to_resume=row["resume_requested"],
    )
    text = "This case and all its later events wait, in order, until the cause is mended and the case is resumed."
    title = f"Parked at {row['consumer_group']}"
    return Moment(row["parked_at"], 6, "Parked", title, facts, text, warns=True, case_id=row["case_id"])


def _effect(row: Row, attempts: list[Row], asked: str) -> Iterator[Moment]:
    name = f"{row['purpose']} by {row['sink']}"
    searched = row["correlation_id"] == asked
    facts = _facts(effect_id=row["effect_id"], occurrence=row["occurrence"], correlation=row["correlation_id"])
    yield Moment(row["created_at"], 4, "Effect", f"Planned: {name}", facts, searched=searched, case_id=row["case_id"])
    for attempt in attempts:
        outcome = attempt["outcome"] or ("under way" if attempt["ended_at"] is None else "ended")
        ended = attempt["ended_at"]
        facts = _facts(
            phase=attempt["phase"],
            outcome=outcome,
            detail=attempt["detail"],
            took=how_long((ended - attempt["started_at"]).total_seconds()) if ended else None,
            worker=str(attempt["owner"])[:8],
        )
        title = f"Attempt {attempt['attempt']}: {name}"
        warns = outcome in ("unknown", "failed")
        yield Moment(attempt["started_at"], 7, "Effect", title, facts, warns=warns, case_id=row["case_id"])
    yield _effect_now(row, name, searched=searched)


def _effect_now(row: Row, name: str, *, searched: bool) -> Moment:
    state = row["state"]
    waits = state in ("planned", "intent")
    facts = _facts(
        reason=row["reason"],
        provider_reference=row["provider_ref"],
        attempts=row["attempt"],
        due=exact_time(row["due_at"]) if waits else None,
    )
    return Moment(
        row["updated_at"],
        8,
        "Effect",
        f"{'Waits' if waits else state.capitalize()}: {name}",
        facts,
        what_resolves(row) if state == "unknown" else "",
        warns=state in ("unknown", "failed"),
        searched=searched,
        case_id=row["case_id"],
    )


def what_resolves(effect: Row) -> str:
    """What an operator must know of an effect of which nobody can say whether it happened."""
    return (
        "It may or may not have happened: the last byte had gone out, and no answer was seen. It is never sent again by"
        f" itself. To resolve it, look for the Message-ID <{effect['effect_id']}@…> in the log of the mail server or in"
        " the mailbox it went to. Found: it happened once. Not found: it did not, and may be sent again by hand."
    )


def _audit(row: Row, asked: str) -> Moment:
    detail = json.loads(row["detail"])
    facts = _facts(
        by=_actor(row), outcome=row["outcome"], **{name: value for name, value in detail.items() if value is not None}
    )
    warns = row["outcome"] in ("failed", "unknown")
    title = row["action"]
    return Moment(row["at"], 9, "Audit", title, facts, warns=warns, searched=row["correlation_id"] == asked)


def _actor(row: Row) -> str:
    return f"{row['key_name']} ({row['actor']})" if row["key_name"] else str(row["actor"])


def _facts(**facts: object) -> Facts:
    """What is known of it: names as people read them, and nothing for a fact that is missing."""
    return tuple((name.replace("_", " "), str(value)) for name, value in facts.items() if value not in (None, ""))
