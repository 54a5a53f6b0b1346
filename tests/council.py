"""A whole council for a test: real servers, real processes, and somebody who uses them by HTTP."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import aiohttp
import asyncpg

from gateway.dev.addresses import Database, Servers
from gateway.dev.children import Child
from gateway.dev.council import Council, establish

PORTS = {"gateway": 0, "admin": 0, "worker": 0}
MONKS = {"uprn": "60002210", "name": "PUBLIC CONVENIENCES MONKS RECREATION GROUND CRABTREE LANE LANCING"}
ResultT = TypeVar("ResultT")

_VERSIONS = {
    "street-team": "select gateway_ref, gateway_version, count(*) as rows, max(details) as words"
    " from street.job group by 1, 2",
    "contractor": "select client_ref as gateway_ref, client_rev as gateway_version, count(*) as rows,"
    " max(fault_text) as words"
    " from fault_log group by 1, 2",
}


async def until(what: str, look: Callable[[], Awaitable[ResultT | None]], *, timeout_s: float = 60.0) -> ResultT:
    """Look until there is something to see; a generous bound, so that only what never happens fails."""
    deadline = time.monotonic() + timeout_s
    while (seen := await look()) is None:
        assert time.monotonic() < deadline, f"{what} was not seen within {timeout_s:.0f} s"
        await asyncio.sleep(0.05)
    return seen


def report(category: str = "litter", **more: Any) -> dict[str, Any]:
    """A resident's report about the toilet at Monks Recreation Ground."""
    return {
        "type": "public-toilet-problem",
        "submitter": {"name": "Ada Whitfield", "email": "ada.whitfield@example.org"},
        "location": {"easting": 518225, "northing": 104730},
        "asset": MONKS,
        "category": category,
        "notes": [{"text": "The bin by the door is overflowing."}],
        **more,
    }


@dataclass
class Town:
    """One council with its processes, and the session of somebody who may do everything there."""

    council: Council
    servers: Servers
    http: aiohttp.ClientSession
    children: list[Child] = field(default_factory=list)

    async def start(self, command: str, **extra: str) -> Child:
        child = await self.council.start(command, extra)
        self.children.append(child)
        if "SILOGATE_FAIL" not in extra:
            await self.ready("admin" if command == "serve" else "worker")
        return child

    async def ready(self, port: str) -> None:
        async def look() -> bool | None:
            return True if await self.health(port) == 200 else None

        await until(f"/readyz of {port}", look)

    async def health(self, port: str) -> int | None:
        try:
            async with self.http.get(self.council.address(port) + "/readyz") as answer:
                return answer.status
        except (aiohttp.ClientError, OSError, TimeoutError):
            return None

    async def call(
        self, method: str, path: str, body: Any = None, *, key: str | None = None, **headers: str
    ) -> tuple[int, Any, Any]:
        """One request with the website's key, or `key`: status, body and headers."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        headers["Authorization"] = f"Bearer {key or self.council.website_key}"
        url = self.council.address("gateway") + path
        async with self.http.request(method, url, json=body, headers=headers) as answer:
            text = await answer.read()
            is_json = "json" in answer.headers.get("Content-Type", "")
            return answer.status, (await answer.json(content_type=None)) if is_json else text, answer.headers

    async def submit(self, category: str = "litter", *, key: str | None = None) -> dict[str, Any]:
        status, body, _ = await self.call("POST", "/v1/cases", report(category), Idempotency_Key=key or str(uuid4()))
        assert status == 201, body
        return dict(body)

    async def lookup(self, name: str, **parameters: str) -> tuple[int, Any, Any]:
        query = "&".join(f"{one}={value}" for one, value in parameters.items())
        return await self.call("GET", f"/v1/lookups/{name}?{query}")

    async def at_recipient(self, recipient: str) -> dict[str, tuple[int, int]]:
        """Reference → (version, rows) at the recipient's own database."""
        rows = await _fetch(self.council.recipient_urls[recipient], _VERSIONS[recipient])
        found: dict[str, tuple[int, int]] = {}
        for row in rows:
            before = found.get(row["gateway_ref"], (0, 0))
            found[row["gateway_ref"]] = (max(before[0], row["gateway_version"]), before[1] + row["rows"])
        return found

    async def set_status(self, reference: str, status: str) -> None:
        """The street team sets the status of a job on its own screen."""
        url = self.council.recipient_urls["street-team"]
        await _fetch(url, "update street.job set state = $2 where gateway_ref = $1", reference, status)

    async def sql(self, statement: str, *arguments: Any) -> list[asyncpg.Record]:
        """Rows of the gateway's own database."""
        return await _fetch(self.servers.postgres_url, statement, *arguments)

    async def delivered(self, recipient: str, cases: dict[str, int]) -> None:
        """Wait until the recipient holds each reference at its version, in one row."""

        async def look() -> bool | None:
            there = await self.at_recipient(recipient)
            return True if all(there.get(name) == (version, 1) for name, version in cases.items()) else None

        await until(f"{cases} at {recipient}", look)


async def _fetch(url: str, statement: str, *arguments: Any) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url, timeout=10, server_settings={"search_path": "gateway, public"})
    try:
        return list(await connection.fetch(statement, *arguments, timeout=30))
    finally:
        await connection.close()


@asynccontextmanager
async def town(
    servers: Servers, database: Database, redis_url: str, topic_prefix: str, root: Path
) -> AsyncIterator[Town]:
    """An established council in a database of its own; what was started in it is stopped at the end."""
    own = dataclasses.replace(servers, postgres_url=database.url, replica_url=database.replica_url, redis_url=redis_url)
    name = urlsplit(database.url).path[1:]
    async with AsyncExitStack() as stack:
        council = await establish(own, root, PORTS, database_prefix=f"{name}_")
        council.environment.update(
            SILOGATE_TOPIC_PREFIX=topic_prefix,
            SILOGATE_TOPIC_PARTITIONS="4",
            SILOGATE_KAFKA_SESSION_TIMEOUT="1s",
            SILOGATE_EFFECT_LEASE="2s",
        )
        stack.push_async_callback(_drop, servers.postgres_url, list(council.recipient_urls.values()))
        http = await stack.enter_async_context(aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)))
        made = Town(council, own, http)
        try:
            yield made
        finally:
            await asyncio.gather(*(child.stop() for child in made.children))


async def _drop(postgres_url: str, urls: list[str]) -> None:
    connection = await asyncpg.connect(postgres_url, timeout=10)
    try:
        for url in urls:
            await connection.execute(f'drop database "{urlsplit(url).path[1:]}" with (force)', timeout=60)
    finally:
        await connection.close()
