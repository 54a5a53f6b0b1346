"""One `pool.fetch` a request in aiohttp, where Postgres makes the JSON: the least that asking each time can cost.

https://magicstack.github.io/asyncpg/current/usage.html#connection-pools. Not a row of the bench, but told beside P3.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import asyncpg
from aiohttp import web

from tests.load.peers.origin import PORT, POSTGRES

POOL = web.AppKey("pool", asyncpg.Pool)
# the text that the gateway's own statement wraps around a lookup
_SQL = f"select coalesce(json_agg(row_to_json(r)), '[]')::text as body from ({os.environ['BENCH_SQL']}) r"


async def lookup(request: web.Request) -> web.Response:
    (row,) = await request.app[POOL].fetch(_SQL, request.query["postcode"])
    body = f'{{"lookup":"addresses-of-postcode","results":{row["body"]}}}'
    return web.Response(body=body.encode(), content_type="application/json")


async def pool(app: web.Application) -> AsyncIterator[None]:
    settings = {"search_path": "silo_gazetteer"}
    async with asyncpg.create_pool(POSTGRES, min_size=8, max_size=8, server_settings=settings) as made:
        app[POOL] = made
        yield


if __name__ == "__main__":
    app = web.Application()
    app.cleanup_ctx.append(pool)
    app.router.add_get("/v1/lookups/addresses-of-postcode", lookup)
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)
