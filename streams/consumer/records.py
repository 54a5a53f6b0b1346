"""A record of Kafka: as an item on its way, and as it is kept in Postgres with its headers as JSON and its digest."""

import base64
import hashlib
from collections.abc import Sequence

import orjson
from aiokafka import ConsumerRecord

from streams.consumer.lanes import Item
from streams.events import read_record

Headers = Sequence[tuple[str, bytes | None]]


def item_of(record: ConsumerRecord) -> Item:
    """The record on its way: with its event, or with why it cannot be read."""
    event, problem = read_record(record.key, record.value, record.headers)
    size = len(record.value or b"") + sum(len(name) + len(text or b"") for name, text in record.headers)
    return Item(
        record.partition,
        record.offset,
        record.key,
        record.headers,
        record.value,
        size,
        event,
        problem,
        record.timestamp,
    )


def headers_json(headers: Headers) -> str:
    """As JSON: values in base64, because a broken record may hold any bytes."""
    return orjson.dumps([[storable(name), base64.b64encode(raw or b"").decode()] for name, raw in headers]).decode()


def digest(key: bytes | None, value: bytes | None, headers: Headers) -> bytes:
    """Tells one record at an offset from another: a topic that was made anew begins at offset 0 again.

    Every part is preceded by its length, and one that is absent by none, so that no two records are written alike.
    """
    digested = hashlib.sha256()
    for part in (key, value, *(part for name, raw in headers for part in (name.encode(), raw))):
        digested.update(b"-" if part is None else b"%d:" % len(part))
        digested.update(part or b"")
    return digested.digest()


def storable(text: str) -> str:
    """The text without the one character that Postgres stores in no text."""
    return text.replace("\x00", "�")
