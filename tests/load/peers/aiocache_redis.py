"""aiocache's RedisCache with its default serialiser, JSON, before an origin; in aiohttp.

https://aiocache.aio-libs.org/en/v0.12.2/caches.html and https://aiocache.aio-libs.org/en/v0.12.2/serializers.html
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from aiocache import Cache
from aiocache.serializers import JsonSerializer
from aiohttp import web

from tests.load.peers.origin import PORT, REDIS, answers

_WHERE = urlsplit(REDIS)
_ORIGIN = answers()
cache = Cache(
    Cache.REDIS,
    endpoint=_WHERE.hostname,
    port=_WHERE.port,
    db=int(_WHERE.path[1:]),
    namespace="main",
    serializer=JsonSerializer(),
)


async def lookup(request: web.Request) -> web.Response:
    postcode = request.query["postcode"]
    answer = await cache.get(postcode)
    if answer is None:
        answer = json.loads(_ORIGIN[postcode])
        await cache.set(postcode, answer, ttl=6 * 3600)
    return web.json_response(answer)


if __name__ == "__main__":
    app = web.Application()
    app.router.add_get("/v1/lookups/addresses-of-postcode", lookup)
    web.run_app(app, host="127.0.0.1", port=PORT, access_log=None, print=None)
