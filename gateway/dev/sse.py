"""Reading a stream of server-sent events, as a browser would."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

import aiohttp

_MAX_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the stream; `id` is the last one the stream named. A comment has the event `comment`."""

    id: str
    event: str
    data: str


async def messages(response: aiohttp.ClientResponse) -> AsyncGenerator[Message, None]:
    """Yields messages until the stream ends. Comments come too: they tell that the stream is alive."""
    last_id, event, data = "", "", list[str]()
    async for raw in response.content:
        if len(raw) > _MAX_LINE:
            raise aiohttp.ClientPayloadError("a line of the event stream is too long")
        line = raw.decode().rstrip("\r\n")
        if line.startswith(":"):
            yield Message(last_id, "comment", line[1:].strip())
        elif line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                last_id = value
            elif field == "event":
                event = value
            elif field == "data":
                data.append(value)
        elif data or event:
            yield Message(last_id, event or "message", "\n".join(data))
            event, data = "", []
