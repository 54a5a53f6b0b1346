"""FastAPI with fastapi-cache2's decorator and its Redis backend, on uvicorn.

https://github.com/long2ice/fastapi-cache#quick-start (uvicorn's line a request is turned off, which favours it)
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi_cache import FastAPICache
from fastapi_cache.backends.redis import RedisBackend
from fastapi_cache.decorator import cache
from redis import asyncio as aioredis

from tests.load.peers.origin import PORT, REDIS, answers

_ORIGIN = answers()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    redis = aioredis.from_url(REDIS)
    FastAPICache.init(RedisBackend(redis), prefix="fastapi-cache")
    yield


app = FastAPI(lifespan=lifespan)


@app.get("/v1/lookups/addresses-of-postcode")
@cache(expire=6 * 3600)
async def lookup(postcode: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(_ORIGIN[postcode])
    return answer


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=PORT, access_log=False, log_level="warning")
