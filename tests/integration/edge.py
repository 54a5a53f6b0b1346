"""The HTTP edge over a real Postgres, for the tests of `test_http_*`; what answers lookups is a switchable double."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import asyncpg
import orjson
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request
from prometheus_client import CollectorRegistry

from cache.answer import Answer, AsOf
from cache.definition import LookupDefinition, TableTag
from cache.seal import KeyRing
from cache.values import VALUE_TYPES
from gateway.audit import Audit
from gateway.auth import ApiKeys
from gateway.blobs import Blobs
from gateway.context import Asker, Context, EdgeOptions
from gateway.declarations import CaseTypeDeclaration, LookupDeclaration, ParameterDeclaration
from gateway.dev.addresses import Servers
from gateway.health import Health
from gateway.live import Live
from gateway.server import build_admin_app, build_public_app
from gateway.settings import Settings
from gateway.telemetry import EdgeMetrics
from streams.cases.cases import Cases
from streams.cases.casetype import CaseType
from streams.cases.keys import CaseKeys
from streams.sql.migrate import migrate

TYPE = "public-toilet-problem"
SCHEMA = Path(__file__).resolve().parents[2] / "deploy/integrations/report-a-problem/case.schema.json"
SCOPES = {
    "form": ("lookups:*", "cases:write", "cases:read", "events:read"),
    "personal": ("lookups:claim-already-open",),
    "lookups": ("lookups:*",),
    "nothing": (),
}
NINO = "QQ765432A"

Client = TestClient[Request, Application]


def report(**changed: Any) -> dict[str, Any]:
    """The body of a sound POST /v1/cases."""
    return {
        "type": TYPE,
        "submitter": {"name": "Avery Quill", "email": "avery@example.org"},
        "location": {"easting": 518225.5, "northing": 104730, "postcode": "BN15 9JB"},
        "asset": {"uprn": "60002210", "name": "Beach Green"},
        "category": "litter",
        "notes": [{"text": "Needles beside the basin."}],
    } | changed


def lookup(name: str, silo: str, parameters: Mapping[str, tuple[str, object, bool]], **more: Any) -> LookupDeclaration:
    """A declared lookup; parameters are name → (type, example, required)."""
    personal = bool(more.get("personal"))
    definition = LookupDefinition(
        name=name,
        silo=silo,
        parameters={key: VALUE_TYPES[kind] for key, (kind, _, _) in parameters.items()},
        sql="select 1",
        shape=more.get("shape", "many"),
        columns=("uprn", "address"),
        tags={"address": TableTag()},
        ttl_s=60,
        soft_ttl_s=30,
        negative_ttl_s=30,
        stale_for_s=60,
        max_age_s=None,
        personal=personal,
    )
    return LookupDeclaration(
        definition=definition,
        title=name.replace("-", " "),
        scope=f"lookups:{name}",
        cache_control="private, no-store" if personal else "private, max-age=60",
        parameters={
            key: ParameterDeclaration(VALUE_TYPES[kind], required, example, key, default=more.get("default"))
            for key, (kind, example, required) in parameters.items()
        },
        personal=personal,
        over_cases=silo == "cases",
    )


LOOKUPS = {
    item.name: item
    for item in (
        lookup("addresses-by-postcode", "addresses", {"postcode": ("postcode", "BN15 9JB", True)}),
        lookup(
            "assets-near",
            "assets",
            {"easting": ("easting", 518225, True), "northing": ("northing", 104730, True), "uprn": ("uprn", 1, False)},
        ),
        lookup(
            "claim-already-open",
            "claims",
            {"nino": ("nino", NINO, True), "date_of_birth": ("date", "1980-01-31", True)},
            personal=True,
            shape="exists",
        ),
    )
}


@dataclass(slots=True)
class Double:
    """Answers every lookup with `answer`, or raises `error`; remembers what it was asked."""

    answer_with: Answer
    error: Exception | None = None
    delay_s: float = 0.0
    asked: list[dict[str, Any]] = field(default_factory=list)
    min_as_of: AsOf | None = None
    timeout_s: float = 0.0

    async def answer(self, parameters: Mapping[str, Any], *, timeout_s: float, min_as_of: AsOf | None = None) -> Answer:
        self.asked.append(dict(parameters))
        self.min_as_of, self.timeout_s = min_as_of, timeout_s
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return self.answer_with


def found(**changed: Any) -> Answer:
    """An answer of the silo `addresses`."""
    values: dict[str, Any] = {
        "verdict": "found",
        "results": b'[{"uprn":900001,"address":"1 Crabtree Lane"}]',
        "as_of": AsOf("addresses", "5f0c91aa", 118, datetime(2026, 11, 22, 18, 5, 9, 123000, tzinfo=UTC)),
        "etag": 'W/"9b1c4e0d7a2f6835"',
        "age_s": 0.4,
        "staleness_bound_ms": 412,
        "source": "hit",
    }
    return Answer(**(values | changed))


@dataclass(slots=True)
class Edge:
    """A running edge. `tokens` holds an API key for each set of SCOPES."""

    context: Context
    double: Double
    tokens: dict[str, str]
    public: Client
    admin: Client

    async def ask(self, method: str, path: str, *, key: str | None = "form", **sent: Any) -> ClientResponse:
        """One request with the named key; `json` and `headers` as in aiohttp."""
        headers = dict(sent.pop("headers", {}))
        if key is not None:
            headers.setdefault("Authorization", f"Bearer {self.tokens[key]}")
        return await self.public.request(method, path, headers=headers, **sent)

    async def create(self, **changed: Any) -> dict[str, Any]:
        """A new case's receipt."""
        response = await self.ask("POST", "/v1/cases", json=report(**changed), headers=idempotent())
        assert response.status == 201, await response.text()
        receipt: dict[str, Any] = await response.json()
        return receipt

    def cut_off(self) -> None:
        """Cancels every request in flight, as aiohttp does when a process has waited for them long enough."""
        runner = self.public.server.runner
        assert runner is not None
        assert runner.server is not None
        for connection in runner.server.connections:
            task = connection._task_handler
            if connection._current_request is not None and task is not None:
                task.cancel()

    def metric(self, name: str, **labels: str) -> float:
        """What /metrics would say now."""
        return self.context.metrics.registry.get_sample_value(name, labels) or 0.0

    async def audit_rows(self) -> list[asyncpg.Record]:
        """Every row of this process's chain, oldest first."""
        return list(await self.context.pool.fetch("select * from audit order by n"))


def idempotent() -> dict[str, str]:
    """A key that was never used."""
    return {"Idempotency-Key": str(uuid4())}


async def problem_of(response: ClientResponse) -> tuple[int, str, str | None]:
    """Status, code and field of a refusal, after checking that it is a whole problem document."""
    assert response.content_type == "application/problem+json", await response.text()
    body = await response.json(content_type=None)
    assert body["status"] == response.status
    assert body["type"] == "urn:silogate:problem:" + body["code"]
    assert body["title"]
    assert body["detail"]
    assert body["correlation_id"] == response.headers["Silogate-Correlation-Id"]
    assert response.headers["Cache-Control"] == "no-store"
    return response.status, body["code"], body.get("field")


@asynccontextmanager
async def gateway_schema(servers: Servers) -> AsyncIterator[str]:
    """A database with the gateway's schema for a whole module of tests; dropped afterwards."""
    name = f"edge_{uuid4().hex[:12]}"
    url = urlunsplit(urlsplit(servers.postgres_url)._replace(path=f"/{name}"))
    await _administer(servers, f'create database "{name}"')
    connection = await asyncpg.connect(url, timeout=10)
    try:
        await migrate(connection)
    finally:
        await connection.close()
    yield url
    await _administer(servers, f'drop database "{name}" with (force)')


async def _administer(servers: Servers, statement: str) -> None:
    connection = await asyncpg.connect(servers.postgres_url, timeout=10)
    try:
        await connection.execute(statement, timeout=60)
    finally:
        await connection.close()


@asynccontextmanager
async def running_edge(
    database_url: str,
    folder: Path,
    *,
    kafka: str = "127.0.0.1:1",
    topic: str = "cases.changes.v1",
    live: bool = False,
    options: EdgeOptions | None = None,
    answering: Mapping[str, tuple[LookupDeclaration, Asker]] | None = None,
    **settings: Any,
) -> AsyncIterator[Edge]:
    """The edge with its background work; the Kafka tail only runs when `live` is set.

    `answering` takes the place of the double's lookups.
    """
    options = options or EdgeOptions()
    ring = KeyRing({1: os.urandom(32)}, 1)
    case_type = CaseType(TYPE, orjson.loads(SCHEMA.read_bytes()))
    double = Double(found())
    asked = answering or {name: (declared, double) for name, declared in LOOKUPS.items()}
    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(
            asyncpg.create_pool(
                database_url, min_size=1, max_size=8, timeout=5, command_timeout=5,
                server_settings={"search_path": "gateway"},
            )
        )  # fmt: skip
        registry = CollectorRegistry()
        metrics = EdgeMetrics(registry, "0.0.test")
        keys = ApiKeys(pool)
        tokens = {name: await keys.add(name, scopes) for name, scopes in SCOPES.items()}
        context = Context(
            settings=Settings.model_validate(
                {
                    "database_url": database_url,
                    "redis_url": "redis://127.0.0.1:1/0",
                    "kafka_bootstrap": kafka,
                    "smtp_url": "smtp://127.0.0.1:1",
                    "key_ring": "1:unused",
                    **settings,
                }
            ),
            pool=pool,
            cases=Cases(
                pool, CaseKeys(ring, lambda key: KeyRing({1: key}, 1)), {TYPE: case_type}, topic=topic
            ),
            lookups={name: declared for name, (declared, _) in asked.items()},
            groups={name: asker for name, (_, asker) in asked.items()},
            keys=keys,
            audit=Audit(pool, metrics=metrics, timeout_s=3),
            blobs=Blobs(folder / "blobs"),
            live=Live(pool, kafka, topic, metrics=metrics, heartbeat_s=options.heartbeat_s, queue_limit=20),
            case_types={TYPE: CaseTypeDeclaration(case_type, "A problem with a public toilet", report())},
            integrations={},
            metrics=metrics,
            health=Health(pool, {}, metrics=metrics),
            digest=ring.hmac,
            options=options,
        )  # fmt: skip
        background = [context.audit.run(), context.health.run()] + ([context.live.run()] if live else [])
        tasks = [asyncio.create_task(work) for work in background]
        stack.push_async_callback(_cancelled, tasks)
        public, admin = build_public_app(context), build_admin_app(context)
        public_client = await stack.enter_async_context(TestClient(TestServer(public)))
        admin_client = await stack.enter_async_context(TestClient(TestServer(admin)))
        context.health.start()
        yield Edge(context, double, tokens, public_client, admin_client)


async def _cancelled(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError):
            raise result
