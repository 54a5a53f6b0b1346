"""While the gateway's database knows less than Kafka does, cases are read and nothing is changed, with the reason."""

from __future__ import annotations

from pathlib import Path

from gateway.dev.addresses import Database
from tests.integration.edge import idempotent, problem_of, report, running_edge


async def test_a_shut_gateway_takes_nothing_and_says_so(gateway_database: Database, tmp_path: Path) -> None:
    """503 with its own code for each change, the case as it was, and everything as ever once it is open again."""
    async with running_edge(gateway_database.url, tmp_path) as edge:
        case = f"/v1/cases/{(await edge.create())['id']}"
        pool, first = edge.context.pool, idempotent()
        await pool.execute("insert into shut (reason, detail) values ('Kafka knows versions of RAP-7KQ2-93XD', '{}')")
        refusals = [
            await edge.ask("POST", "/v1/cases", json=report(), headers=first),
            await edge.ask("PATCH", case, json={"status": "fixed"}, headers={"If-Match": '"1"'}),
            await edge.ask("POST", case + "/notes", json={"text": "Seen."}),
        ]
        for refused in refusals:
            assert await problem_of(refused) == (503, "gateway_shut", None)
            assert refused.headers["Retry-After"] == "60"
            assert "RAP-7KQ2" not in await refused.text()
        read = await edge.ask("GET", case)
        assert (read.status, (await read.json())["version"]) == (200, 1)
        outcomes = [row["outcome"] for row in await edge.audit_rows()]
        assert outcomes.count("gateway_shut") == 3
        await pool.execute("delete from shut")
        again = await edge.ask("POST", "/v1/cases", json=report(), headers=first)
        assert again.status == 201
