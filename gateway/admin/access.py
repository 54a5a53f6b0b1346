"""Who may see the operator's pages: whoever holds an API key with the scope `admin:read`, for a working day.

The key is typed once. The browser keeps it sealed in a cookie that only this deployment opens, so a key that is revoked
ends its sessions too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from aiohttp import web

from gateway.admin.tokens import Tokens
from gateway.auth import ApiKeys, Principal, Unauthenticated

SCOPE = "admin:read"
COOKIE = "silogate_admin"
LIFETIME_S = 8 * 3600
OPERATOR: web.RequestKey[Principal] = web.RequestKey("operator", Principal)

_PURPOSE = "admin session"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Sessions:
    """Opens and closes sessions. `secret` is the same in every process of the deployment."""

    def __init__(self, keys: ApiKeys, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._tokens = Tokens(secret)
        self._clock = clock

    async def open(self, key: str) -> tuple[Principal, str]:
        """Who holds the key and the cookie of the session; raises Unauthenticated without the scope."""
        principal = await self._operator(key)
        return principal, self._tokens.seal(_PURPOSE, json.dumps([key, self._clock() + LIFETIME_S]))

    async def operator(self, cookie: str | None) -> Principal | None:
        """The operator of a session; None when there is none, it is over, or its key does no longer serve."""
        text = self._tokens.open(_PURPOSE, cookie) if cookie else None
        if text is None:
            return None
        key, until = json.loads(text)
        if self._clock() >= until:
            return None
        try:
            return await self._operator(key)
        except Unauthenticated:
            return None

    async def _operator(self, key: str) -> Principal:
        principal = await self._keys.principal(f"Bearer {key.strip()}")
        if not principal.may(SCOPE):
            raise Unauthenticated("scope")
        return principal


def set_session(request: web.Request, response: web.StreamResponse, cookie: str) -> None:
    response.set_cookie(
        COOKIE, cookie, max_age=LIFETIME_S, path="/admin", httponly=True, samesite="Strict", secure=request.secure
    )


def drop_session(response: web.StreamResponse) -> None:
    response.del_cookie(COOKIE, path="/admin", httponly=True, samesite="Strict")


def from_this_site(request: web.Request) -> bool:
    """Whether a form was sent by one of these pages. A browser says so in one way or the other."""
    if site := request.headers.get("Sec-Fetch-Site"):
        return site in ("same-origin", "none")
    origin = request.headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == request.host
