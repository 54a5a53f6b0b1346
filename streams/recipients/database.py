"""The connections to one recipient's database, and what was learnt of its table when it was first reached."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from streams.consumer.fence import RECIPIENT, RECIPIENT_TABLE_SQL
from streams.errors import Misconfigured
from streams.mapping.compile import Mapping
from streams.mapping.declaration import InvalidMapping
from streams.outages import DATABASE_ERRORS
from streams.recipients.refusals import of_connector
from streams.recipients.tables import Statements, read_table

_CONNECTIONS = 4
# ValueError: what the driver calls an address it cannot read
_ERRORS = (*DATABASE_ERRORS, ValueError)


@dataclass(frozen=True, slots=True)
class Ready:
    """The mapping fitted to the table that is really there, and the statements for it."""

    mapping: Mapping
    statements: Statements
    pool: asyncpg.Pool


class RecipientDatabase:
    """Connects when first used, and checks the declaration against the table before anything is written or read.

    Its sessions end every statement and every wait for a lock by themselves, so that nothing of ours can hold up the
    recipient's own users. `address` is a secret: it is in no message. `mapping` is as declared, `ready` fits it.
    """

    def __init__(self, address: str, mapping: Mapping, *, statement_s: float = 10.0, lock_s: float = 1.0) -> None:
        self._address = address
        self.mapping = mapping
        self._statement_s = statement_s
        # To find one slow row among many, groups must end much sooner than a row alone may
        self.group_s = statement_s / 10
        self._lock_s = lock_s
        self._pool: asyncpg.Pool | None = None
        self._ready: Ready | None = None
        self._opening = asyncio.Lock()

    async def ready(self) -> Ready:
        """The fitted mapping; raises Unavailable while the recipient is away, Misconfigured when it does not fit."""
        if self._ready is not None:
            return self._ready
        async with self._opening:
            if self._ready is None:
                self._ready = await self._open()
            return self._ready

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection for one piece of work; raises like `ready`. Errors inside it are left as they are."""
        pool = (await self.ready()).pool
        try:
            connection = await pool.acquire(timeout=self._statement_s)
        except _ERRORS as error:
            raise of_connector(error) from None
        try:
            yield connection
        finally:
            await pool.release(connection, timeout=self._statement_s)

    def forget(self) -> None:
        """The table is read again before its next use: its owner has changed it."""
        self._ready = None

    async def close(self) -> None:
        """Ends every connection, after what is under way if that ends soon."""
        if self._pool is None:
            return
        try:
            async with asyncio.timeout(self._statement_s):
                await self._pool.close()
        except TimeoutError:
            self._pool.terminate()

    async def _open(self) -> Ready:
        try:
            pool = self._pool or await self._connect()
            self._pool = pool
            async with pool.acquire(timeout=self._statement_s) as connection:
                table = await read_table(connection, self.mapping.declaration)
        except _ERRORS as error:
            raise of_connector(error) from None
        declaration = self.mapping.declaration
        if not table.columns:
            raise Misconfigured(f"the recipient has no table {declaration.table!r} that this user can see")
        try:
            mapping = self.mapping.fitted(table.columns)
        except InvalidMapping as invalid:
            raise Misconfigured(str(invalid)) from None
        if not table.key_is_unique:
            raise Misconfigured(
                f"{declaration.table!r} needs a unique index on {declaration.columns.key!r} alone: "
                "without it one case could become two rows"
            )
        if not table.has_fence:
            statement = " ".join(RECIPIENT_TABLE_SQL.split())
            raise Misconfigured(
                f"the recipient's database lacks the table {RECIPIENT}, which its owner makes once: {statement}"
            )
        return Ready(mapping, Statements.of(mapping, table), pool)

    async def _connect(self) -> asyncpg.Pool:
        return await asyncpg.create_pool(
            self._address,
            min_size=0,
            max_size=_CONNECTIONS,
            timeout=self._statement_s,
            command_timeout=self._statement_s,
            server_settings={
                "application_name": "silogate",
                "statement_timeout": str(int(self._statement_s * 1000)),
                "lock_timeout": str(int(self._lock_s * 1000)),
                "idle_in_transaction_session_timeout": str(int(self._statement_s * 2000)),
            },
        )
