"""API keys: 256 random bits shown once, stored as SHA-256, each with the scopes it may use."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypedDict

import asyncpg

from cache.server import leased
from streams.outages import DATABASE_AWAY, DATABASE_ERRORS

_BEARER = re.compile(r"(?i:Bearer) +sg_([a-z0-9]{12})_([A-Za-z0-9_-]{43})", re.ASCII)
_SCOPE = re.compile(r"lookups:(?:\*|[a-z][a-z0-9-]{0,62})|cases:read|cases:write|events:read|events:all|admin:read")
SCOPES = "lookups:<name>, lookups:*, cases:read, cases:write, events:read, events:all and admin:read"
_ALPHABET = "abcdefghjkmnpqrstvwxyz0123456789"
# A revoked key dies within KEEP_S. A flood of unknown keys costs the database at most one query per GAP_S.
KEEP_S = 5.0
GAP_S = 0.1
# While the database is away nobody can revoke a key in it either, so those it knew last are let in for this long.
OUTAGE_S = 600.0
_RENEW_EVERY_S = 2.0
_QUERY_S = 2.0
# With the pause before it, well within KEEP_S: that the database is away is known before the snapshot is too old.
_READ_S = 1.0
# Each key can be written in few ways; whoever finds more of them gains nothing by it.
_MOST_PROVEN, _LONGEST_PROVEN = 1_000, 128
ALL_LOOKUPS = "lookups:*"

_SELECT = "select id, name, secret_sha256, scopes from api_key where revoked_at is null"
_LIST = "select id, name, scopes, created_at, revoked_at from api_key order by created_at, id"
_INSERT = "insert into api_key (id, name, secret_sha256, scopes) values ($1, $2, $3, $4)"
_REVOKE = "update api_key set revoked_at = now() where id = $1 and revoked_at is null"


class Unauthenticated(Exception):
    """The request carries no valid key; `reason` is a short word for metrics, never told to the caller."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidScope(ValueError):
    """A scope that no route knows."""


class UnnamedKey(ValueError):
    """A key that nobody could be asked about."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is asking, and what they may do."""

    id: str
    name: str
    scopes: frozenset[str]

    @property
    def actor(self) -> str:
        return "key:" + self.id

    def may(self, scope: str) -> bool:
        return scope in self.scopes

    def may_ask(self, scope: str, *, personal: bool) -> bool:
        """True with the lookup's own scope. The wildcard opens public lookups only: a personal one is named."""
        return scope in self.scopes or (not personal and ALL_LOOKUPS in self.scopes)


def key_id(token: str) -> str:
    """The part of a token that may be shown: the key's id."""
    return token.split("_")[1]


class KeyRecord(TypedDict):
    """A key as the operator sees it: everything but the secret."""

    id: str
    name: str
    scopes: list[str]
    created_at: datetime
    revoked_at: datetime | None


class ApiKeys:
    """The keys in the table `api_key`, read as one snapshot: there are tens of them, not millions.

    A key in the snapshot costs no query; one that it lacks waits for a snapshot taken after the request came, so a new
    key works at once. Nobody gets in on a snapshot older than KEEP_S, unless the database has failed to answer within
    KEEP_S: then the keys known last are let in for OUTAGE_S, counted from the snapshot, and no request of theirs waits.
    Whoever else cannot be checked gets what the driver raised. `run` keeps the snapshot new.
    """

    def __init__(self, pool: asyncpg.Pool, clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self._lock = asyncio.Lock()
        self._taken = float("-inf")
        self._failed = float("-inf")
        self._keys: Mapping[str, tuple[bytes, Principal]] = {}
        # Headers found valid by the snapshot at hand: to hash each again takes longer than all else about a known key.
        self._proven: dict[str, Principal] = {}

    @property
    def taken(self) -> float:
        """When the snapshot at hand was taken: whoever keeps a header forgets it when that changes."""
        return self._taken

    def known(self, header: str | None) -> Principal | None:
        """Who the header stands for by the snapshot at hand, without waiting; None leaves it to `principal`."""
        if header is None or not self._is_usable():
            return None
        proven = self._proven.get(header)
        if proven is not None:
            return proven
        match = _BEARER.fullmatch(header)
        if match is None or match[1] not in self._keys:
            return None
        principal = self._check(match[1], match[2])
        if len(self._proven) < _MOST_PROVEN and len(header) <= _LONGEST_PROVEN:
            self._proven[header] = principal
        return principal

    async def principal(self, header: str | None) -> Principal:
        """Who the Authorization header stands for; raises Unauthenticated."""
        if header is None:
            raise Unauthenticated("missing")
        match = _BEARER.fullmatch(header)
        if match is None:
            raise Unauthenticated("malformed")
        arrived = self._clock()
        if not self._is_usable():
            try:
                await self._refresh(arrived - KEEP_S)
            except DATABASE_AWAY:
                if not self._is_usable():
                    raise
        if match[1] not in self._keys:
            await self._refresh(arrived)
        return self._check(match[1], match[2])

    async def run(self) -> None:
        """Renew the snapshot until cancelled: no request has to wait for that, and least of all in an outage."""
        while True:
            # Whoever asks meanwhile is told what is wrong, where it is of consequence.
            with contextlib.suppress(*DATABASE_ERRORS):
                await self._refresh(self._clock())
            await asyncio.sleep(_RENEW_EVERY_S)

    async def add(self, name: str, scopes: Iterable[str]) -> str:
        """Makes a key and returns its token, which cannot be shown again; raises InvalidScope and UnnamedKey."""
        if not name.strip():
            raise UnnamedKey("a key needs a name: who holds it")
        wanted = sorted(set(scopes))
        for scope in wanted:
            if not _SCOPE.fullmatch(scope):
                raise InvalidScope(f"{scope!r} is not a scope; scopes are {SCOPES}")
        key_id = "".join(secrets.choice(_ALPHABET) for _ in range(12))
        secret = secrets.token_urlsafe(32)
        await self._pool.execute(
            _INSERT, key_id, name, hashlib.sha256(secret.encode()).digest(), wanted, timeout=_QUERY_S
        )
        return f"sg_{key_id}_{secret}"

    async def list(self) -> list[KeyRecord]:
        """All keys, revoked ones too, oldest first."""
        rows = await self._pool.fetch(_LIST, timeout=_QUERY_S)
        return [
            KeyRecord(
                id=row["id"],
                name=row["name"],
                scopes=row["scopes"],
                created_at=row["created_at"],
                revoked_at=row["revoked_at"],
            )
            for row in rows
        ]

    async def revoke(self, key_id: str) -> bool:
        """Revokes a key: at once in this process, within KEEP_S in the others. False if there is no such living key."""
        tag: str = await self._pool.execute(_REVOKE, key_id, timeout=_QUERY_S)
        self._taken = float("-inf")
        return tag == "UPDATE 1"

    def _check(self, key_id: str, secret: str) -> Principal:
        stored, principal = self._keys.get(key_id, (b"", None))
        # compared even for an unknown id, so that both refusals cost the same
        same = hmac.compare_digest(stored, hashlib.sha256(secret.encode()).digest())
        if principal is None:
            raise Unauthenticated("unknown")
        if not same:
            raise Unauthenticated("wrong_secret")
        return principal

    def _is_usable(self) -> bool:
        now = self._clock()
        return now - self._taken <= (OUTAGE_S if now - self._failed <= KEEP_S else KEEP_S)

    async def _refresh(self, since: float) -> None:
        async with self._lock:
            if self._taken >= since:
                return
            wait = self._taken + GAP_S - self._clock()
            if wait > 0:
                await asyncio.sleep(wait)
            taken = self._clock()
            try:
                async with asyncio.timeout(_READ_S), leased(self._pool) as connection:
                    rows = await connection.fetch(_SELECT)
            except DATABASE_AWAY:
                self._failed = self._clock()
                raise
            self._keys = {
                row["id"]: (row["secret_sha256"], Principal(row["id"], row["name"], frozenset(row["scopes"])))
                for row in rows
            }
            self._proven = {}
            self._taken = taken
            self._failed = float("-inf")
