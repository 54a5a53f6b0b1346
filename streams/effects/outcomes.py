"""What became of an effect, as a CloudEvent for whoever follows cases: written with the effect's state, in one step.

Nothing in it is personal: ids, names that the flow declares, and codes. What a person wrote about it stays here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from typing import Any
from uuid import uuid5

import asyncpg
import orjson

from streams.cases.rows import OUTBOX_CHANNEL, bucket_of

SOURCE = "urn:silogate:effects"
MAJOR = 1

# A code of a sink or of the ledger; anything else may be somebody's own words.
_CODE = re.compile(r"^[A-Za-z0-9_:.-]{1,200}$")
_INSERT = """
insert into outbox (bucket, topic, key, version, headers, value) values ($1, $2, $3, $4, $5, $6)
"""


def encode(row: Mapping[str, Any]) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Return key, value and headers of the Kafka record that carries an outcome; the same outcome gives the same id."""
    case_id, state = str(row["case_id"]), row["state"]
    attributes = {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": str(uuid5(row["effect_id"], f"{row['attempt']}:{state}")),
        "ce_source": SOURCE,
        "ce_type": f"uk.silogate.effect.{state}.v{MAJOR}",
        "ce_time": row["updated_at"].astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "ce_subject": row["reference"],
        "ce_partitionkey": case_id,
        "ce_correlationid": row["correlation_id"],
    }
    value = orjson.dumps(
        {
            "effect_id": str(row["effect_id"]),
            "case_id": case_id,
            "case_version": row["case_version"],
            "reference": row["reference"],
            "sink": row["sink"],
            "purpose": row["purpose"],
            "occurrence": row["occurrence"],
            "attempt": row["attempt"],
            "outcome": state,
            "reason": _code(row["reason"]),
            "provider_reference": _code(row["provider_ref"]),
        }
    )
    return case_id.encode(), value, [(name, text.encode()) for name, text in attributes.items()]


def _code(text: str | None) -> str | None:
    return text if text is not None and _CODE.fullmatch(text) else None


async def publish(connection: asyncpg.pool.PoolConnectionProxy, topic: str, row: Mapping[str, Any]) -> None:
    """Write an outcome for its topic in the caller's transaction, and wake the relays when that commits."""
    key, value, headers = encode(row)
    await connection.execute(
        _INSERT,
        bucket_of(row["case_id"]),
        topic,
        key.decode(),
        row["attempt"],
        orjson.dumps([[name, text.decode()] for name, text in headers]).decode(),
        value,
    )
    await connection.execute("select pg_notify($1, '')", OUTBOX_CHANNEL)
