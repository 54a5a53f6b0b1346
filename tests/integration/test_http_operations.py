"""The admin port: health that means something, metrics that keep to their catalogue, a description that is valid."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from openapi_spec_validator import OpenAPIV31SpecValidator
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import cache.metrics
import gateway.telemetry
import streams.effects.metrics
import streams.metrics
import streams.recipients.metrics
from gateway.dev.addresses import Servers
from gateway.health import Health
from gateway.server import build_worker_app, drain
from gateway.telemetry import EdgeMetrics
from tests.integration.edge import TYPE, Edge, gateway_schema, idempotent, report, running_edge

_SCHEMAS = "#/components/schemas/"


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


async def _health(edge: Edge, path: str) -> tuple[int, str]:
    answer = await edge.admin.get(path)
    return answer.status, (await answer.text()).strip()


async def test_a_process_is_ready_when_it_has_started_and_postgres_answers(servers: Servers, tmp_path: Path) -> None:
    """Starting, ready, draining; it lives all the while."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path) as edge:
        health = edge.context.health
        health.started = False
        assert await _health(edge, "/startupz") == (503, "starting")
        assert await _health(edge, "/readyz") == (503, "starting")
        await health.probe("postgres")
        health.start()
        assert await _health(edge, "/startupz") == (200, "started")
        assert await _health(edge, "/readyz") == (200, "ready")
        drain(edge.context)
        assert await _health(edge, "/readyz") == (503, "draining")
        assert await _health(edge, "/livez") == (200, "alive")


async def test_readiness_does_not_hang_on_redis_or_kafka(edge: Edge) -> None:
    """They are reported as down and the process stays ready; Postgres alone counts, and only for a while."""

    async def down() -> None:
        raise ConnectionRefusedError("10.0.0.7:6379")

    now = [1000.0]
    health = Health(
        edge.context.pool,
        {"redis": down, "kafka": down},
        metrics=EdgeMetrics(CollectorRegistry(), "test"),
        clock=lambda: now[0],
    )
    health.start()
    for name in ("postgres", "redis", "kafka"):
        await health.probe(name)
    app = build_worker_app(health, CollectorRegistry())
    async with TestClient(TestServer(app)) as client:
        answer = await client.get("/readyz?verbose")
        body = await answer.json()
        assert (answer.status, body["status"], body["reason"]) == (200, "ready", None)
        assert {name: check["up"] for name, check in body["checks"].items()} == {
            "postgres": True,
            "redis": False,
            "kafka": False,
        }
        assert "10.0.0.7" not in str(body)
        now[0] += 6
        answer = await client.get("/readyz")
        assert (answer.status, (await answer.text()).strip()) == (503, "postgres does not answer")
        assert (await client.get("/openapi.json")).status == 404


_CATALOGUES: tuple[Any, ...] = (
    *gateway.telemetry.CATALOGUE,
    *cache.metrics.CATALOGUE,
    *streams.metrics.CATALOGUE,
    *streams.effects.metrics.CATALOGUE,
    *streams.recipients.metrics.CATALOGUE,
)


async def test_metrics_keep_to_the_catalogues(edge: Edge) -> None:
    """Names, kinds, labels and help of what is served are those of the catalogues: nothing more, nothing less."""
    registry = edge.context.metrics.registry
    cache.metrics.CacheMetrics(registry)
    streams.metrics.StreamMetrics(registry)
    streams.effects.metrics.EffectMetrics(registry)
    streams.recipients.metrics.RecipientMetrics(registry)
    for collector in set(registry._collector_to_names):
        labels = getattr(collector, "_labelnames", ())
        if labels:
            collector.labels(*labels)  # type: ignore[attr-defined]
    answer = await edge.admin.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    served = {
        family.name + ("_total" if family.type == "counter" else ""): (
            family.type,
            family.documentation,
            {name for sample in family.samples for name in sample.labels if name != "le"},
        )
        for family in text_string_to_metric_families(await answer.text())
        if not family.name.endswith("_created")
    }
    assert served == {item.name: (item.kind, item.help, set(item.labels)) for item in _CATALOGUES}
    assert len({item.name for item in _CATALOGUES}) == len(_CATALOGUES)
    assert all(re.fullmatch(r"silogate_[a-z0-9_]+", item.name) and item.help.endswith(".") for item in _CATALOGUES)


async def test_labels_hold_no_ids_and_no_paths(edge: Edge) -> None:
    """Cases are counted under their route's template, strangers' addresses and methods under one value each."""
    case_id = (await edge.create())["id"]
    await edge.ask("GET", f"/v1/cases/{case_id}")
    for number in range(20):
        await edge.ask("GET", f"/guess/{number}")
        await edge.ask("PROPFIND", "/v1/cases")
    await edge.ask("GET", "/v1/lookups/addresses-by-postcode", params={"postcode": "BN15 9JB"})
    text = await (await edge.admin.get("/metrics")).text()
    assert case_id not in text
    assert "guess" not in text
    assert "PROPFIND" not in text
    assert "BN15" not in text
    assert 'silogate_http_requests_total{code="404",method="GET",route="unmatched"} 20.0' in text
    assert 'silogate_http_requests_total{code="405",method="other",route="unmatched"} 20.0' in text
    assert 'route="/v1/cases/{id}"' in text


async def _described(edge: Edge) -> dict[str, Any]:
    answer = await edge.admin.get("/openapi.json")
    document: dict[str, Any] = await answer.json()
    return document


async def test_the_description_is_valid_and_of_this_deployment(edge: Edge) -> None:
    """OpenAPI 3.1 by its own validator; the case type and each lookup are in it."""
    document = await _described(edge)
    OpenAPIV31SpecValidator(document).validate()
    assert document["openapi"].startswith("3.1")
    assert {"PublicToiletProblem", "NewPublicToiletProblem", "Case", "NewCase", "Problem"} <= set(
        document["components"]["schemas"]
    )
    operations = [
        operation for methods in document["paths"].values() for name, operation in methods.items() if name != "servers"
    ]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))
    assert {"askAddressesByPostcode", "askClaimAlreadyOpen"} <= set(ids)


def _validator(document: dict[str, Any], name: str) -> jsonschema_rs.Draft202012Validator:
    return jsonschema_rs.Draft202012Validator({"$ref": _SCHEMAS + name, "components": document["components"]})


async def test_every_example_meets_its_own_schema(edge: Edge) -> None:
    """What the description shows, the description allows."""
    document = await _described(edge)
    checked = 0
    for methods in document["paths"].values():
        for method, operation in methods.items():
            if method == "servers":
                continue
            for part in (operation.get("requestBody", {}), *operation["responses"].values()):
                for content in part.get("content", {}).values():
                    examples = [item["value"] for item in content.get("examples", {}).values()]
                    for example in [*examples, *([content["example"]] if "example" in content else [])]:
                        schema = {**content["schema"], "components": document["components"]}
                        jsonschema_rs.Draft202012Validator(schema).validate(example)
                        checked += 1
    assert checked > 100


async def test_real_answers_meet_the_description(edge: Edge) -> None:
    """The bodies that the edge sends are those that it describes."""
    document = await _described(edge)
    body = report()
    _validator(document, "NewCase").validate(body)
    created = await edge.ask("POST", "/v1/cases", json=body, headers=idempotent())
    _validator(document, "CaseReceipt").validate(await created.json())
    case = await (await edge.ask("GET", created.headers["Location"])).json()
    _validator(document, "Case").validate(case)
    refused = await edge.ask("POST", "/v1/cases", json={"type": TYPE}, headers=idempotent())
    _validator(document, "Problem").validate(await refused.json(content_type=None))
    _validator(document, "LookupList").validate(await (await edge.ask("GET", "/v1/lookups")).json())
    asked = await edge.ask("GET", "/v1/lookups/addresses-by-postcode", params={"postcode": "BN15 9JB"})
    _validator(document, "LookupAnswer").validate(await asked.json())
    assert not _validator(document, "NewCase").is_valid({**body, "status": "closed"})


async def test_people_can_read_the_description(edge: Edge) -> None:
    """One page, no script, every operation with its policy, nothing from elsewhere."""
    answer = await edge.admin.get("/docs")
    text = await answer.text()
    assert (answer.status, answer.content_type) == (200, "text/html")
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    for methods in (await _described(edge))["paths"].values():
        for method, operation in methods.items():
            if method != "servers":
                assert f'id="{operation["operationId"]}"' in text
    assert "<script" not in text
    assert "http://" not in re.sub(r"http://127\.0\.0\.1:\d+", "", text)


async def test_a_request_leaves_one_line_without_its_query(edge: Edge, capsys: pytest.CaptureFixture[str]) -> None:
    """Method, template, status, time and who; not the query, not the body, not the key."""
    import structlog

    from gateway import logs

    logs.configure("json")
    try:
        await edge.ask("GET", "/v1/lookups/addresses-by-postcode", params={"postcode": "BN15 9JB"})
        await edge.ask("GET", "/v1/cases/0b9c3a52-0000-4000-8000-000000000000")
    finally:
        import logging

        logging.getLogger().handlers.clear()
        structlog.reset_defaults()
    out = capsys.readouterr().out
    lines = [orjson.loads(line) for line in out.splitlines()]
    assert [(line["event"], line["route"], line["status"]) for line in lines] == [
        ("request", "/v1/lookups/{name}", 200),
        ("request", "/v1/cases/{id}", 404),
    ]
    assert all(line["correlation_id"] and line["actor"].startswith("key:") and line["ms"] >= 0 for line in lines)
    assert "BN15" not in out
    assert "0b9c3a52" not in out
    assert edge.tokens["form"].rsplit("_", 1)[1] not in out
