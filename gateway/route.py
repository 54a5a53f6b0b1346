"""What a route promises beside its handler: who may call it, how often, how long it may take, what it leaves behind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
RateClass = Literal["lookup", "read", "write", "upload", "stream", "admin"]


@dataclass(frozen=True, slots=True)
class Policy:
    """Who may call a route.

    `open` needs no key, `key` any valid key, `scope` a key with `scope`, `lookup` a key with the scope that the named
    lookup declares. Open and key-only routes say why in `reason`.
    """

    kind: Literal["open", "key", "scope", "lookup"]
    scope: str | None = None
    reason: str = ""

    def __post_init__(self) -> None:
        if (self.kind == "scope") != (self.scope is not None):
            raise ValueError("a policy of kind `scope`, and no other, names its scope")
        if self.kind in ("open", "key") and not self.reason:
            raise ValueError("a route without a scope says why")


@dataclass(frozen=True, slots=True)
class Example:
    """One header or query parameter in the OpenAPI document."""

    name: str
    description: str
    example: str
    required: bool = False
    place: Literal["header", "query"] = "header"


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `audit` is the action written to the audit log, one row a request; None leaves no row."""

    method: str
    path: str
    handler: Handler
    operation_id: str
    summary: str
    tag: str
    policy: Policy
    rate_class: RateClass
    success: tuple[int, str | None]
    problems: tuple[str, ...] = ()
    request: str | None = None
    headers: tuple[Example, ...] = ()
    audit: str | None = None
    media_type: str = "application/json"
