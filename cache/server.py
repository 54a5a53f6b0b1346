"""One Postgres server of a silo, behind a bounded pool that can only read."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from cache.state import Position

_CONNECT_TIMEOUT_S = 2.0
_CLOSE_TIMEOUT_S = 1.0
_UNDEFINED_TABLE = "42P01"
TOO_SLOW = "57014"
# Where the estimate of what a batch usually takes begins, and how fast it moves.
_FIRST_GUESS_S = 0.05
_STEP, _QUANTILE = 0.1, 0.95
# Whatever a call to a database raises when it fails. OSError: a time-out is one. InternalClientError: what asyncpg 0.32
# makes of the server's last words on a connection that was idle or is cut in mid-query.
DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
# What asyncpg 0.32 makes of a row whose bytes are not what their lengths say.
UNREADABLE = (AssertionError, BufferError)


class ServerFailed(Exception):
    """The server could not be asked; another one may."""


class Poisoned(Exception):
    """The query fails because of a value in it, or takes too long; without that value it may not."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


class Refused(Exception):
    """The query is wrong for this database, whatever the values."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate

    @property
    def table_missing(self) -> bool:
        return self.sqlstate == _UNDEFINED_TABLE


class Server:
    """Asks one server. `label` names it in metrics without its password; `p95_s` is what a batch takes at most, mostly.

    Errors carry an SQLSTATE and never the server's message, which may repeat a personal value.
    """

    def __init__(
        self, url: str, *, silo: str, schema: str, role: str, statement_timeout_ms: int, connections: int
    ) -> None:
        self.label = url.partition("://")[2].rpartition("@")[2].partition("/")[0].partition("?")[0]
        self.position: Position | None = None
        self.in_flight = 0
        self.p95_s = _FIRST_GUESS_S
        self._heard_at = 0.0
        self._url = url
        self._connections = connections
        self._settings = {
            "application_name": f"silogate lookups of {silo}",
            "search_path": schema,
            "role": role,
            "statement_timeout": str(statement_timeout_ms),
            "default_transaction_read_only": "on",
            "jit": "off",
        }
        self._pool: asyncpg.Pool | None = None

    @property
    def silent_s(self) -> float:
        """For how long it has been asked and has said nothing; 0 when nothing is asked of it."""
        return time.monotonic() - self._heard_at if self.in_flight else 0.0

    async def open(self) -> None:
        """Make the pool. It connects when it is first asked, so a server that is down keeps nobody from starting."""
        self._pool = await asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._connections,
            timeout=_CONNECT_TIMEOUT_S,
            server_settings=self._settings,
            # A lookup leaves nothing behind in its session, so a round trip to clean it after each one is saved.
            reset=_leave_as_it_is,
        )

    async def close(self) -> None:
        if self._pool is not None:
            with contextlib.suppress(*DATABASE_ERRORS):
                await asyncio.wait_for(self._pool.close(), _CLOSE_TIMEOUT_S)
            self._pool.terminate()

    async def fetch(self, sql: str, arguments: Sequence[Any], *, timeout_s: float) -> list[asyncpg.Record]:
        """The rows; raises ServerFailed, Poisoned or Refused."""
        return await self._ask(lambda connection: connection.fetch(sql, *arguments), timeout_s)

    async def fetch_each(
        self, sql: str, questions: Sequence[Sequence[Any]], *, timeout_s: float
    ) -> list[asyncpg.Record]:
        """The rows of the query asked once for each question, all sent in one go; `timeout_s` is for all of them.

        Raises as `fetch` does: an error of one question ends them all. Each has a snapshot of its own.
        """
        return await self._ask(lambda connection: connection.fetchmany(sql, questions), timeout_s)

    def took(self, seconds: float) -> None:
        """Learn from a batch: a step up for each that took longer, one of 5/95 of that down for each that did not."""
        share = _QUANTILE if seconds > self.p95_s else _QUANTILE - 1
        self.p95_s *= 1 + _STEP * share

    async def _ask(
        self, work: Callable[[asyncpg.Connection], Awaitable[list[asyncpg.Record]]], timeout_s: float
    ) -> list[asyncpg.Record]:
        if self.in_flight == 0:
            self._heard_at = time.monotonic()
        self.in_flight += 1
        try:
            rows = await self._work(work, timeout_s)
        except (Poisoned, Refused):
            self._heard_at = time.monotonic()
            raise
        else:
            self._heard_at = time.monotonic()
            return rows
        finally:
            self.in_flight -= 1

    async def _work(
        self, work: Callable[[asyncpg.Connection], Awaitable[list[asyncpg.Record]]], timeout_s: float
    ) -> list[asyncpg.Record]:
        if self._pool is None:
            raise ServerFailed("not open")
        failure: Exception
        try:
            async with asyncio.timeout(timeout_s), leased(self._pool) as connection:
                try:
                    return await work(connection)
                except asyncpg.PostgresError as error:
                    failure = _failure(error.sqlstate or "")
                except ValueError:
                    failure = Poisoned("22000")  # the driver cannot even write the value
        except (*DATABASE_ERRORS, *UNREADABLE) as error:
            failure = ServerFailed(type(error).__name__)
        # Raised out here so that the driver's error, and the values in its message, are not attached to it.
        raise failure


@contextlib.asynccontextmanager
async def leased(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the pool. One that a time-out or a cancelled caller cut off in a query is thrown away.

    Its state is not known then, and a hung server would not let us clean it: that would wait past any deadline.
    """
    connection = await pool.acquire()
    try:
        yield connection
    except asyncpg.PostgresError:
        raise
    except BaseException:
        connection.terminate()
        raise
    finally:
        await pool.release(connection)


def _failure(sqlstate: str) -> Exception:
    # 54: a limit of the server's, which fewer questions at a time may keep to
    if sqlstate.startswith(("22", "54")) or sqlstate == TOO_SLOW:
        return Poisoned(sqlstate)
    if sqlstate.startswith(("42", "3F", "25", "0A", "21")):
        return Refused(sqlstate)
    return ServerFailed(sqlstate)


async def _leave_as_it_is(_connection: object) -> None:
    return None
