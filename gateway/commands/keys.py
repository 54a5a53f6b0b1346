"""`silogate keys`: API keys made, listed and revoked from the command line, each change audited."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from uuid import uuid4

import asyncpg
from prometheus_client import CollectorRegistry

from gateway.audit import Audit, AuditUnavailable
from gateway.auth import ApiKeys, InvalidScope, UnnamedKey, key_id
from gateway.commands.opening import said
from gateway.console import as_json, fail, say
from gateway.database import gateway_pool
from gateway.settings import Settings
from gateway.telemetry import EdgeMetrics


async def add(settings: Settings, name: str, scopes: list[str], *, json: bool) -> int:
    """Make a key and print it; refuses an empty name and a scope that no route knows."""
    token = ""
    with said():
        async with gateway_pool(settings, size=1) as pool:
            try:
                token = await ApiKeys(pool).add(name, scopes)
                await _record(pool, "key.add", key_id(token), {"scopes": sorted(set(scopes))})
            except (InvalidScope, UnnamedKey) as error:
                fail(str(error), code=2)
            except AuditUnavailable as error:
                # nobody has seen the secret, so the key opens nothing
                fail(f"the key {key_id(token)} could not be audited ({error}) and is not shown: revoke it")
    if json:
        as_json({"name": name, "scopes": scopes, "key": token})
    else:
        say(f"The key of {name}. It is shown only now:")
        print(token)  # noqa: T201  (the command's data)
    return 0


async def show(settings: Settings, *, json: bool) -> int:
    """List keys without secrets."""
    with said():
        async with gateway_pool(settings, size=1) as pool:
            rows = await ApiKeys(pool).list()
    if json:
        as_json(rows)
    for row in [] if json else rows:
        state = "revoked" if row["revoked_at"] else "active"
        print(f"{row['id']}  {state:8} {row['name']}: {' '.join(row['scopes'])}")  # noqa: T201  (the command's data)
    return 0


async def revoke(settings: Settings, key: str) -> int:
    """Revoke a key; 1 when there is no such active key."""
    with said():
        async with gateway_pool(settings, size=1) as pool:
            if not await ApiKeys(pool).revoke(key):
                fail(f"there is no active key {key}")
            try:
                await _record(pool, "key.revoke", key, {})
            except AuditUnavailable as error:
                fail(f"{key} is revoked, but that could not be audited ({error})")
    say(
        f"{key} is revoked; every gateway that reaches the database refuses it within five seconds, "
        "one that does not within ten minutes"
    )
    return 0


async def _record(pool: asyncpg.Pool, action: str, key: str, detail: dict[str, list[str]]) -> None:
    audit = Audit(pool, metrics=EdgeMetrics(CollectorRegistry(), version("silogate")))
    failure: AuditUnavailable | None = None
    async with asyncio.TaskGroup() as background:
        writer = background.create_task(audit.run())
        try:
            await audit.record(
                actor="cli", action=action, subject=key, outcome="done", correlation_id=str(uuid4()), detail=detail
            )
        except AuditUnavailable as error:
            failure = error  # raised in here, it would leave in a group
        writer.cancel()
    if failure is not None:
        raise failure
