"""`silogate keys`: API keys made, listed and revoked from the command line, each change audited."""

from __future__ import annotations

from gateway.auth import ApiKeys
from gateway.console import as_json, fail, say
from gateway.database import gateway_pool
from gateway.settings import Settings

SCOPES = ("lookups:", "cases:read", "cases:write", "events:read", "admin:read")


async def add(settings: Settings, name: str, scopes: list[str], *, json: bool) -> int:
    """Make a key and print it; refuses a scope that no route knows."""
    for scope in scopes:
        if scope not in SCOPES[1:] and not (scope.startswith("lookups:") and len(scope) > len("lookups:")):
            fail(f"{scope!r} is not a scope; scopes are lookups:<name>, lookups:* and {', '.join(SCOPES[1:])}", code=2)
    async with gateway_pool(settings, size=1) as pool:
        token = await ApiKeys(pool).add(name, scopes)
    if json:
        as_json({"name": name, "scopes": scopes, "key": token})
    else:
        say(f"The key of {name}. It is shown only now:")
        print(token)  # noqa: T201  (the command's data)
    return 0


async def show(settings: Settings, *, json: bool) -> int:
    """List keys without secrets."""
    async with gateway_pool(settings, size=1) as pool:
        rows = await ApiKeys(pool).list()
    if json:
        as_json(rows)
    for row in [] if json else rows:
        state = "revoked" if row["revoked_at"] else "active"
        print(f"{row['id']}  {state:8} {row['name']}: {' '.join(row['scopes'])}")  # noqa: T201  (the command's data)
    return 0


async def revoke(settings: Settings, key_id: str) -> int:
    """Revoke a key; 1 when there is no such active key."""
    async with gateway_pool(settings, size=1) as pool:
        if not await ApiKeys(pool).revoke(key_id):
            fail(f"there is no active key {key_id}")
    say(f"{key_id} is revoked; every gateway refuses it within five seconds")
    return 0
