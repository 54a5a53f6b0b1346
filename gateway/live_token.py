"""Where a stream over a type of case stands in the topic: the id of its events, opaque to clients.

It holds, for each partition, the offset that comes next and two bytes made from the record before it. An offset alone
would also fit a topic that was deleted and made anew, and would then leave out what was written meanwhile.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import zlib
from collections.abc import Mapping
from typing import NamedTuple

_FORMAT = 1
_TOPIC_BYTES = 6
_MOST_PARTITIONS = 1000
BEGINNING = "0"


class Spot(NamedTuple):
    """A place in one partition. `mark` is of the record before it; 0: that record was not read."""

    offset: int
    mark: int


Spots = Mapping[int, Spot]


class Malformed(ValueError):
    """The text is no token of ours."""


class OtherTopic(Exception):
    """The token is of another topic."""


def mark(key: bytes | None, value: bytes | None) -> int:
    """Two bytes of a record, never 0: another record at the same place very probably has others."""
    return zlib.crc32(value or b"", zlib.crc32(key or b"")) & 0xFFFF or 1


def written(topic: str, spots: Spots) -> str:
    """The token of a position. Even one of 1,000 partitions fits into a header of 8,190 bytes."""
    made = bytearray([_FORMAT]) + _digest(topic)
    for partition in range(max(spots, default=-1) + 1):
        offset, marked = spots.get(partition, Spot(0, 0))
        made += _varint(offset) + marked.to_bytes(2, "big")
    return base64.urlsafe_b64encode(made).rstrip(b"=").decode()


def read(text: str, topic: str) -> dict[int, Spot]:
    """The position in a token; raises Malformed, or OtherTopic."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise Malformed from None
    if len(raw) <= _TOPIC_BYTES or raw[0] != _FORMAT:
        raise Malformed
    spots: dict[int, Spot] = {}
    at = 1 + _TOPIC_BYTES
    while at < len(raw):
        offset, at = _read_varint(raw, at)
        if at + 2 > len(raw) or len(spots) == _MOST_PARTITIONS:
            raise Malformed
        spots[len(spots)] = Spot(offset, int.from_bytes(raw[at : at + 2], "big"))
        at += 2
    if raw[1 : 1 + _TOPIC_BYTES] != _digest(topic):
        raise OtherTopic
    return spots


def _digest(topic: str) -> bytes:
    return hashlib.sha256(topic.encode()).digest()[:_TOPIC_BYTES]


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 0x7F:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    made.append(number)
    return bytes(made)


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while at < len(raw) and shift < 63:
        byte = raw[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
    raise Malformed
