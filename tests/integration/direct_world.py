"""A lookup served both ways at once: one port that knows the short way, and one whose requests all go the long way."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from cache.definition import LookupDefinition
from cache.feed import L1
from cache.group import Group
from gateway.context import EdgeOptions
from gateway.declarations import LookupDeclaration, ParameterDeclaration
from gateway.dev.addresses import Database
from gateway.direct import DIRECT, Direct, InHand
from gateway.protocol import Runner, _Server
from gateway.server import build_public_app
from tests.integration.cache_world import BY_POSTCODE, CLAIM_OPEN, World, address
from tests.integration.edge import Edge, running_edge

CRABTREE, NOWHERE = "BN15 9JB", "BN99 9ZZ"
PATH = "/v1/lookups/addresses-by-postcode?postcode="
_VARYING = (
    (re.compile(rb"\r\nAge: \d+"), b"\r\nAge: -"),
    (re.compile(rb"\r\nDate: [^\r]+"), b"\r\nDate: -"),
    (re.compile(rb"\r\nSilogate-Staleness-Bound-Ms: \d+"), b"\r\nSilogate-Staleness-Bound-Ms: -"),
    (re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), b"<id>"),
    (re.compile(rb'"time":"[^"]+"'), b'"time":"-"'),
)


@dataclass(slots=True)
class Ways:
    """Both ports over the same silo, and what came of each request that the first one was asked: `taken` by bytes
    (answered at once), `waits` (in hand), or `left` to the long way. `known` has those that needed no parser.
    """

    world: World
    edge: Edge
    group: Group
    app: web.Application
    runner: Runner
    short: int
    long: int
    taken: list[str] = field(default_factory=list)
    known: list[bytes] = field(default_factory=list)

    async def say(self, port: int, *requests: bytes, token: str = "form", within_s: float = 10.0) -> bytes:
        """Everything the server says to these bytes, sent at once, until it closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        said = b""
        try:
            writer.write(b"".join(requests).replace(b"KEY", self.edge.tokens[token].encode()))
            async with asyncio.timeout(within_s):
                while chunk := await reader.read(1 << 20):
                    said += chunk
        except ConnectionError:
            pass
        finally:
            writer.close()
        return said

    async def say_in_turn(self, port: int, *pieces: bytes, token: str = "form") -> bytes:
        """The same, but each piece is sent only when something was said to the one before it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 26)
        said = b""
        try:
            async with asyncio.timeout(10):
                for piece in pieces:
                    writer.write(piece.replace(b"KEY", self.edge.tokens[token].encode()))
                    said += await reader.read(1 << 20)
                while chunk := await reader.read(1 << 20):
                    said += chunk
        except ConnectionError:
            pass
        finally:
            writer.close()
        return said

    async def warm(self, *postcodes: str) -> None:
        """Ask until Redis has them, and until this process knows the keys."""
        for postcode in postcodes:
            await self.world.stored(BY_POSTCODE, postcode)
        await self.say(self.short, get("/v1/lookups", close=True))
        await self.say(self.long, get("/v1/lookups", close=True))

    @property
    def inside(self) -> int:
        return self.app[DIRECT]._gate.inside


def get(path: str, *headers: str, close: bool = False, method: str = "GET", key: str = "Bearer KEY") -> bytes:
    """One request; the spaces of a postcode may stand in `path`."""
    lines = [f"{method} {path.replace(' ', '+')} HTTP/1.1", "Host: silogate", f"Authorization: {key}", *headers]
    if close:
        lines.append("Connection: close")
    return "\r\n".join([*lines, "", ""]).encode()


def without_times(said: bytes) -> bytes:
    """The bytes but for ids, times and ages."""
    for pattern, shown in _VARYING:
        said = pattern.sub(shown, said)
    return said


@asynccontextmanager
async def both_ways(
    database: Database,
    redis_url: str,
    folder: Path,
    *,
    l1: bool = False,
    options: EdgeOptions | None = None,
    **settings: Any,
) -> AsyncIterator[Ways]:
    """A silo with addresses in Crabtree Lane, complete and followed."""
    world = World(database, redis_url)
    await world.prepare()
    await world.put("address", *(address(n, CRABTREE, f"{n} Crabtree Lane") for n in range(40)))
    world.start()
    await world.settled()
    shelf = L1("town", redis_url, world.metrics, most_entries=100, most_bytes=1 << 24, silence_s=30) if l1 else None
    if shelf is not None:
        world.run(shelf.run())
    group = Group(BY_POSTCODE, world.silo, world.store, world.ring, world.metrics, l1=shelf)
    answering = {
        BY_POSTCODE.name: (_declared(BY_POSTCODE, "postcode", CRABTREE), group),
        CLAIM_OPEN.name: (_declared(CLAIM_OPEN, "nino", "QQ123456C"), world.group(CLAIM_OPEN)),
    }
    async with running_edge(database.url, folder, answering=answering, options=options, **settings) as edge:
        app = build_public_app(edge.context)
        runner = Runner(app, access_log=None, shutdown_timeout=5)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        other = Runner(build_public_app(edge.context), access_log=None, shutdown_timeout=5)
        await other.setup()
        assert isinstance(other.server, _Server)
        other.server.direct = None
        await web.TCPSite(other, "127.0.0.1", 0).start()
        ways = Ways(world, edge, group, app, runner, runner.addresses[0][1], other.addresses[0][1])
        _remember(app[DIRECT], ways)
        try:
            yield ways
        finally:
            await runner.cleanup()
            await other.cleanup()
            await world.stop()


def _remember(direct: Direct, ways: Ways) -> None:
    begin, again, taken = direct.begin, direct.again, ways.taken

    def remembered(message: Any, tell: Callable[[bytes | None], None]) -> InHand | bytes | None:
        begun = begin(message, tell)
        taken.append("left" if begun is None else "waits" if isinstance(begun, InHand) else "at once")
        return begun

    def recognised(data: bytes, tell: Callable[[bytes | None], None]) -> InHand | bytes | None:
        begun = again(data, tell)
        if begun is not None:
            taken.append("waits" if isinstance(begun, InHand) else "at once")
            ways.known.append(data)
        return begun

    # this one only, to see what it does
    direct.begin = remembered  # type: ignore[method-assign]
    direct.again = recognised  # type: ignore[method-assign]


def _declared(definition: LookupDefinition, name: str, example: str) -> LookupDeclaration:
    return LookupDeclaration(
        definition=definition,
        title=definition.name,
        scope=f"lookups:{definition.name}",
        cache_control="private, no-store" if definition.personal else "private, max-age=60",
        parameters={name: ParameterDeclaration(definition.parameters[name], True, example, name)},
        personal=definition.personal,
    )
