"""The gateway as a council's website sees it: HTTP with an API key that the browser never learns."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aiohttp

from gateway.dev.sse import Message, messages

CORRELATION = "Silogate-Correlation-Id"
_ANSWER = aiohttp.ClientTimeout(total=8)
_UPLOAD = aiohttp.ClientTimeout(total=30)
# The gateway sends a comment every 15 s; three missed ones are a dead stream.
_STREAM = aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=45)


class GatewayDown(Exception):
    """The gateway could not be reached, was too slow, or said that it cannot answer now. Trying again may help."""


class Refused(Exception):
    """The gateway said no to this request: `code` and `field` as its problem document names them."""

    def __init__(self, status: int, code: str, field: str | None) -> None:
        super().__init__(f"{status} {code}")
        self.status = status
        self.code = code
        self.field = field


@dataclass(frozen=True, slots=True)
class LookupAnswer:
    """`verdict` is found, not_found or cannot_tell; results may be there whatever it is."""

    verdict: str
    results: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class NewCase:
    id: UUID
    reference: str
    status: str


class Gateway:
    """One council website's client; `http` outlives it."""

    def __init__(self, http: aiohttp.ClientSession, url: str, api_key: str) -> None:
        self._http = http
        self._url = url.rstrip("/")
        self._authorization = f"Bearer {api_key}"

    async def lookup(self, name: str, correlation_id: str, **parameters: object) -> LookupAnswer:
        """Asks a lookup that is not personal. Raises GatewayDown or Refused."""
        query = {key: str(value) for key, value in parameters.items()}
        answer = await self._json("GET", f"/v1/lookups/{name}", correlation_id, params=query)
        return LookupAnswer(verdict=answer["verdict"], results=answer["results"])

    async def create_case(self, document: Mapping[str, Any], *, idempotency_key: str, correlation_id: str) -> NewCase:
        """Sends a case; the same key and document give the same case. Raises GatewayDown or Refused."""
        answer = await self._json(
            "POST", "/v1/cases", correlation_id, json=document, headers={"Idempotency-Key": idempotency_key}
        )
        return NewCase(UUID(answer["id"]), answer["reference"], answer["status"])

    async def attach(self, case_id: UUID, image: bytes, media_type: str, correlation_id: str) -> None:
        """Adds a photo to a case. Raises GatewayDown or Refused."""
        await self._json(
            "POST",
            f"/v1/cases/{case_id}/attachments",
            correlation_id,
            data=image,
            headers={"Content-Type": media_type},
            within=_UPLOAD,
        )

    async def case(self, case_id: UUID, correlation_id: str) -> dict[str, Any]:
        """The case as it is now. Raises GatewayDown or Refused."""
        return await self._json("GET", f"/v1/cases/{case_id}", correlation_id)

    async def history(self, case_id: UUID, version: int, correlation_id: str) -> list[Message]:
        """What happened to a case up to `version`, oldest first: the beginning of its event stream."""
        happened = []
        try:
            async with self.events(case_id, "0", correlation_id, within=_ANSWER) as stream:
                async for message in stream:
                    if message.event != "comment":
                        happened.append(message)
                    if message.id == str(version):
                        break
        except (aiohttp.ClientError, TimeoutError) as error:
            raise GatewayDown from error
        return happened

    @asynccontextmanager
    async def events(
        self, case_id: UUID, last_event_id: str, correlation_id: str, *, within: aiohttp.ClientTimeout = _STREAM
    ) -> AsyncIterator[AsyncIterator[Message]]:
        """A case's event stream from after `last_event_id` on. Raises GatewayDown or Refused when it does not open."""
        headers = self._headers(correlation_id) | {"Accept": "text/event-stream", "Last-Event-ID": last_event_id}
        try:
            response = await self._http.get(
                f"{self._url}/v1/cases/{case_id}/events", headers=headers, timeout=within, allow_redirects=False
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            raise GatewayDown from error
        async with response:
            await _raise_for(response)
            yield messages(response)

    def _headers(self, correlation_id: str) -> dict[str, str]:
        return {"Authorization": self._authorization, CORRELATION: correlation_id}

    async def _json(
        self,
        method: str,
        path: str,
        correlation_id: str,
        *,
        headers: Mapping[str, str] | None = None,
        within: aiohttp.ClientTimeout = _ANSWER,
        **sent: Any,
    ) -> dict[str, Any]:
        headers = {**self._headers(correlation_id), **(headers or {})}
        try:
            async with self._http.request(
                method, self._url + path, headers=headers, timeout=within, allow_redirects=False, **sent
            ) as response:
                await _raise_for(response)
                answer = await response.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise GatewayDown from error
        if not isinstance(answer, dict):
            raise GatewayDown("an answer that is not a JSON object")
        return answer


async def _raise_for(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    if response.status == 429 or response.status >= 500:
        raise GatewayDown(f"status {response.status}")
    try:
        problem = await response.json(content_type=None)
        code, field = str(problem.get("code")), problem.get("field")
    except (ValueError, AttributeError):
        code, field = "unreadable", None
    raise Refused(response.status, code, field)
