"""A worker for one batch: reads it from standard input, arms a failpoint, applies it, and says what was not applied."""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

import asyncpg
from prometheus_client import CollectorRegistry

from streams import failpoints
from streams.cases.keys import CaseKeys
from streams.events import CaseEvent, decode, encode
from streams.mapping.compile import Mapping
from streams.mapping.declaration import RecipientDeclaration
from streams.recipients.database import RecipientDatabase
from streams.recipients.metrics import RecipientMetrics
from streams.recipients.postgres import PostgresRecipient
from streams.testing import PlainKeySealer
from tests.integration.recipient_world import CASE_TYPE, FOLDER, World, fence


def order(world: World, recipient: str, events: list[CaseEvent], failpoint: str, journal: str) -> bytes:
    """What a worker needs to apply these events and die at the failpoint."""
    records = []
    for event in events:
        key, value, headers = encode(event)
        records.append([key.decode(), value.decode(), [[name, text.decode()] for name, text in headers]])
    return json.dumps(
        {
            "url": world.url,
            "remote_url": world.remote_url,
            "ring_key": base64.b64encode(world.ring_key).decode(),
            "recipient": recipient,
            "records": records,
            "failpoint": failpoint,
            "journal": journal,
        }
    ).encode()


async def carry_out(ordered: dict[str, Any]) -> int:
    """Applies the ordered events; the number that was not applied."""
    events = [
        decode(key.encode(), value.encode(), [(name, text.encode()) for name, text in headers])
        for key, value, headers in ordered["records"]
    ]
    name = ordered["recipient"]
    declaration = RecipientDeclaration.parse(FOLDER / "recipients" / f"{name}.yaml")
    keys = CaseKeys(PlainKeySealer(base64.b64decode(ordered["ring_key"])), PlainKeySealer)
    database = RecipientDatabase(ordered["remote_url"], Mapping.compile(declaration, CASE_TYPE))
    async with asyncpg.create_pool(
        ordered["url"], min_size=1, max_size=2, server_settings={"search_path": "gateway"}
    ) as pool:
        recipient = PostgresRecipient(
            declaration, database, keys=keys, gateway_pool=pool, metrics=RecipientMetrics(CollectorRegistry())
        )
        if ordered["failpoint"]:
            failpoints.arm(ordered["failpoint"], ordered["journal"])
        errors = await recipient.apply_each(events, fence(name))
        await database.close()
    return len(errors)


if __name__ == "__main__":
    sys.exit(asyncio.run(carry_out(json.load(sys.stdin))))
