"""Overload and outages by HTTP: honest refusals while something is away, and answers again as soon as it is back."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from gateway.context import EdgeOptions
from gateway.dev.addresses import Database
from gateway.dev.stack import Stack
from gateway.limits import RateClass
from tests.integration.edge import Client, found, idempotent, problem_of, report, running_edge

ADDRESSES = "/v1/lookups/addresses-by-postcode?postcode=BN15+9JB"


async def test_a_restart_of_postgres_is_503_then_recovery(
    gateway_database: Database, tmp_path: Path, stack: Stack
) -> None:
    """Writes are refused with Retry-After while it is away, readiness follows, and one key still makes one case."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        case_id = (await edge.create())["id"]
        assert await _ready(edge.admin) == 200
        await stack.control("postgres", "stop")
        try:
            headers = idempotent()
            for path in ("/v1/cases", f"/v1/cases/{case_id}", f"/v1/cases/{case_id}/events"):
                if path == "/v1/cases":
                    answer = await edge.ask("POST", path, json=report(), headers=headers)
                else:
                    answer = await edge.ask("GET", path)
                status, code, _ = await problem_of(answer)
                assert (status, code) in ((503, "database_unavailable"), (503, "audit_unavailable")), path
                assert answer.headers["Retry-After"] == "1"
            await _until_ready(edge.admin, 503)
            # the key's snapshot is too old by now: nobody gets in on it
            answer = await edge.ask("GET", ADDRESSES)
            assert answer.status in (200, 503)
        finally:
            await stack.control("postgres", "start")
        await _until_ready(edge.admin, 200)
        deadline = time.monotonic() + 10
        while (answer := await edge.ask("POST", "/v1/cases", json=report(), headers=headers)).status == 503:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
        assert answer.status == 201
        again = await edge.ask("POST", "/v1/cases", json=report(), headers=headers)
        assert (again.status, again.headers["Idempotency-Replayed"]) == (201, "true")
        assert await edge.context.pool.fetchval("select count(*) from cases") == 2


async def _ready(admin: Client) -> int:
    return (await admin.get("/readyz")).status


async def _until_ready(admin: Client, status: int) -> None:
    async with asyncio.timeout(30):
        while await _ready(admin) != status:
            await asyncio.sleep(0.05)


async def test_what_is_too_much_at_once_is_shed_at_once(gateway_database: Database, tmp_path: Path) -> None:
    """Beyond the limit 503 with Retry-After, quickly; what is inside is answered; then all is as before."""
    async with running_edge(gateway_database.url, tmp_path, max_in_flight=3) as edge:
        assert (await edge.ask("GET", ADDRESSES)).status == 200
        edge.double.delay_s = 0.5
        started = time.perf_counter()
        answers = [asyncio.create_task(edge.ask("GET", ADDRESSES)) for _ in range(12)]
        shed = [answer for answer in await asyncio.gather(*answers) if answer.status == 503]
        assert len(shed) == 9
        assert {await problem_of(answer) for answer in shed} == {(503, "overloaded", None)}
        assert {answer.headers["Retry-After"] for answer in shed} == {"1"}
        assert time.perf_counter() - started < 5
        edge.double.delay_s = 0
        assert (await edge.ask("GET", ADDRESSES)).status == 200
        assert edge.metric("silogate_http_shed_total", reason="requests") == 9
        assert edge.metric("silogate_http_in_flight") == 0


async def test_a_key_that_asks_too_often_waits_and_no_other_does(gateway_database: Database, tmp_path: Path) -> None:
    """429 with Retry-After for the one; the other is answered."""
    slow = {"lookup": RateClass(per_second=0.5, burst=2)}
    options = EdgeOptions(rates={**EdgeOptions().rates, **slow})
    async with running_edge(gateway_database.url, tmp_path, options=options) as edge:
        edge.double.answer_with = found()
        statuses = [(await edge.ask("GET", ADDRESSES)).status for _ in range(3)]
        assert statuses == [200, 200, 429]
        answer = await edge.ask("GET", ADDRESSES)
        assert await problem_of(answer) == (429, "rate_limited", None)
        assert int(answer.headers["Retry-After"]) in (1, 2)
        assert (await edge.ask("GET", ADDRESSES, key="lookups")).status == 200
        assert (await edge.ask("GET", "/v1/lookups")).status == 200


async def test_a_hung_key_store_lets_nobody_in(gateway_database: Database, tmp_path: Path) -> None:
    """When keys cannot be checked the answer is 503, not 200 and not 401."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        await edge.context.pool.execute("alter table api_key rename to api_key_away")
        answer = await edge.ask("GET", ADDRESSES)
        assert await problem_of(answer) == (500, "internal_error", None)
        await edge.context.pool.execute("alter table api_key_away rename to api_key")
        async with edge.context.pool.acquire() as connection, connection.transaction():
            await connection.execute("lock table api_key in access exclusive mode")
            answer = await edge.ask("GET", ADDRESSES)
            assert await problem_of(answer) == (503, "deadline_exceeded", None)
        assert (await edge.ask("GET", ADDRESSES)).status == 200
