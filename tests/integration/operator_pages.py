"""The operator's pages over a database of their own, and a browser in front of them, for `test_admin_*`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import aiohttp
import asyncpg
import pytest
from aiohttp import web

from gateway.admin.pages import add_pages
from gateway.audit import Detail
from gateway.auth import ApiKeys
from gateway.dev.addresses import Database
from tests.integration import operator_rows as rows

__all__ = ["Audited", "Operated", "Operator", "busy", "operator", "pool"]


class Audited:
    """Keeps what the pages want to have audited."""

    def __init__(self) -> None:
        self.actions: list[tuple[str, str]] = []

    async def record(
        self, *, actor: str, action: str, subject: str, outcome: str, correlation_id: str, detail: Detail
    ) -> None:
        self.actions.append((action, actor))


@dataclass
class Operated:
    pool: asyncpg.Pool
    keys: ApiKeys
    audit: Audited = field(default_factory=Audited)
    digest: Callable[..., bytes] = lambda *_: b"k" * 16


@dataclass
class Operator:
    """A browser with the pages in front of it, not signed in."""

    http: aiohttp.ClientSession
    url: str
    context: Operated
    key: str

    async def sign_in(self, key: str | None = None, **headers: str) -> aiohttp.ClientResponse:
        return await self.http.post(
            f"{self.url}/admin/login", data={"key": key or self.key}, headers=headers, allow_redirects=False
        )

    async def read(self, path: str, status: int = 200) -> str:
        async with self.http.get(self.url + path, allow_redirects=False) as response:
            assert response.status == status, await response.text()
            return await response.text()


@pytest.fixture
async def pool(gateway_database: Database) -> AsyncIterator[asyncpg.Pool]:
    async with asyncpg.create_pool(
        gateway_database.url, min_size=1, max_size=4, server_settings={"search_path": "gateway"}
    ) as pool:
        yield pool


@pytest.fixture
async def operator(pool: asyncpg.Pool) -> AsyncIterator[Operator]:
    keys = ApiKeys(pool)
    key = await keys.add("duty officer", ["admin:read"])
    context = Operated(pool, keys)
    app = web.Application()
    add_pages(app, context)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as http:
        yield Operator(http, f"http://127.0.0.1:{runner.addresses[0][1]}", context, key)
    await runner.cleanup()


@pytest.fixture
async def busy(operator: Operator) -> Operator:
    """Signed in, with two cases in the database."""
    async with operator.context.pool.acquire() as connection:
        await rows.insert_rows(connection, operator.key.split("_")[1])
    assert (await operator.sign_in()).status == 303
    return operator
