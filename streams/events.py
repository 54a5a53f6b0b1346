"""Case events as CloudEvents 1.0 in Kafka's binary mode: attributes in headers, the case in the value.

The key is the case's id, so one case's events stay in one partition. Neither key nor headers carry personal data: what
is personal travels in `sealed`, under the case's own key.
"""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote
from uuid import UUID

import orjson

from streams.errors import Undecodable

EVENT_TYPES = ("case.created", "case.updated", "case.noted", "case.attached")
MAJOR = 1
SOURCE = "urn:silogate:cases"

_TYPE = re.compile(r"^uk\.silogate\.(case\.[a-z]+)\.v(\d{1,4})$")
_ORIGIN = re.compile(r"^[a-z][a-z0-9_-]*(:[a-z0-9_-]+)?$")
_MAX_HOPS = 32767
# How often a change may be the consequence of another: recipient to recipient, or effect to case. Beyond it is a loop.
HOP_LIMIT = 3


class HopLimit(Exception):
    """The change is the consequence of so many others that nobody but a loop would make it: it is not made."""


@dataclass(frozen=True, slots=True)
class CaseEvent:
    """One change of one case: the whole case as it is after the change, and where the change came from."""

    event_id: UUID
    type: str
    case_id: UUID
    case_type: str
    reference: str
    version: int
    at: datetime
    origin: str
    correlation_id: str
    hops: int
    status: str
    changed: tuple[str, ...]
    document: dict[str, Any]
    sealed: bytes


def cloud_type(event_type: str) -> str:
    """What `ce_type` says of an event of ours."""
    return f"uk.silogate.{event_type}.v{MAJOR}"


def data_schema(case_type: str) -> str:
    """What `ce_dataschema` says: the name of the value's schema, which `silogate asyncapi` describes.

    It changes with the major version and with the case type: within one name the schema only grows.
    """
    return f"urn:silogate:case-event:{quote(case_type, safe='')}:v{MAJOR}"


def encode(event: CaseEvent) -> tuple[bytes, bytes, list[tuple[str, bytes]]]:
    """Key, value and headers of the Kafka record that carries the event."""
    key = str(event.case_id).encode()
    attributes = {
        "content-type": "application/json",
        "ce_specversion": "1.0",
        "ce_id": str(event.event_id),
        "ce_source": SOURCE,
        "ce_type": cloud_type(event.type),
        "ce_dataschema": data_schema(event.case_type),
        "ce_time": event.at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "ce_subject": event.reference,
        "ce_partitionkey": str(event.case_id),
        # CloudEvents compares sequences as text
        "ce_sequence": f"{event.version:019d}",
        "ce_casetype": event.case_type,
        "ce_origin": event.origin,
        "ce_correlationid": event.correlation_id,
        "ce_hops": str(event.hops),
    }
    value = orjson.dumps(
        {
            "case_id": str(event.case_id),
            "reference": event.reference,
            "type": event.case_type,
            "version": event.version,
            "status": event.status,
            "changed": list(event.changed),
            "document": event.document,
            "sealed": base64.b64encode(event.sealed).decode(),
        }
    )
    return key, value, [(name, text.encode()) for name, text in attributes.items()]


def decode(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]) -> CaseEvent:
    """The event a record carries; raises Undecodable. Attributes and fields it does not know are left alone."""
    attributes = _attributes(headers)
    event_type = _event_type(attributes)
    case_id = case_of(key)
    if case_id is None:
        raise Undecodable("envelope", "key", "is not a case's id")
    body = _body(value)
    if _text(body, "case_id") != str(case_id):
        raise Undecodable("data", "case_id", "is not the record's key")
    version = _integer("data", "version", body.get("version"), 1, 2**63 - 1)
    if version != _integer("envelope", "ce_sequence", attributes.get("ce_sequence"), 1, 2**63 - 1):
        raise Undecodable("data", "version", "is not the version in ce_sequence")
    document = body.get("document")
    if not isinstance(document, dict):
        raise Undecodable("data", "document", "is not an object")
    return CaseEvent(
        event_id=_uuid("envelope", "ce_id", attributes.get("ce_id", "")),
        type=event_type,
        case_id=case_id,
        case_type=_text(body, "type"),
        reference=_text(body, "reference"),
        version=version,
        at=_time(attributes.get("ce_time", "")),
        origin=_origin(attributes.get("ce_origin", "")),
        correlation_id=attributes.get("ce_correlationid", ""),
        hops=_integer("envelope", "ce_hops", attributes.get("ce_hops", "0"), 0, _MAX_HOPS),
        status=_text(body, "status"),
        changed=_texts(body.get("changed")),
        document=document,
        sealed=_sealed(body.get("sealed")),
    )


def read_record(
    key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]]
) -> tuple[CaseEvent | None, Undecodable | None]:
    """The event a record carries, or why it cannot be read. Raises nothing, whatever the record holds."""
    try:
        return decode(key, value, headers), None
    except Undecodable as problem:
        return None, problem
    # One record must never stop the worker at every restart. Only the class is told: the text may quote the record.
    except Exception as error:  # noqa: BLE001
        return None, Undecodable("data", None, f"cannot be read ({type(error).__name__})")


def case_of(key: bytes | None) -> UUID | None:
    """The case a record's key names, in the one spelling that we write: another would lie in another partition."""
    try:
        case_id = UUID((key or b"").decode("ascii"))
    except ValueError:
        return None
    return case_id if str(case_id).encode() == key else None


def _attributes(headers: Sequence[tuple[str, bytes]]) -> dict[str, str]:
    attributes: dict[str, str] = {}
    for name, raw in headers:
        try:
            attributes.setdefault(name.lower(), (raw or b"").decode())
        except UnicodeDecodeError:
            raise Undecodable("envelope", "headers", "hold bytes that are not UTF-8") from None
    if attributes.get("ce_specversion") != "1.0":
        raise Undecodable("envelope", "ce_specversion", "is not 1.0")
    return attributes


def _event_type(attributes: dict[str, str]) -> str:
    match = _TYPE.match(attributes.get("ce_type", ""))
    if match is None:
        raise Undecodable("type", "ce_type", "is not a case event")
    if int(match[2]) != MAJOR:
        raise Undecodable("type", "ce_type", f"has major version {int(match[2])}; this release reads {MAJOR}")
    if match[1] not in EVENT_TYPES:
        raise Undecodable("type", "ce_type", "is a case event that this release does not know")
    return match[1]


def _body(value: bytes | None) -> dict[str, Any]:
    try:
        body = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        raise Undecodable("data", None, "the value is not JSON") from None
    if not isinstance(body, dict):
        raise Undecodable("data", None, "the value is not a JSON object")
    return body


def _uuid(stage: str, field: str, text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise Undecodable(stage, field, "is not a UUID") from None


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise Undecodable("data", field, "is not a text")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Undecodable("data", "changed", "is not a list of texts")
    return tuple(value)


def _integer(stage: str, field: str, value: object, least: int, most: int) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Undecodable(stage, field, f"is not a whole number from {least}")
    return value


def _time(text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Undecodable("envelope", "ce_time", "is not a time") from None
    if at.tzinfo is None:
        raise Undecodable("envelope", "ce_time", "has no time zone")
    try:
        return at.astimezone(UTC)
    except OverflowError:
        # a time of its own zone that lies outside the years 1 to 9999 in UTC
        raise Undecodable("envelope", "ce_time", "is not a time") from None


def _origin(text: str) -> str:
    if not _ORIGIN.match(text):
        raise Undecodable("envelope", "ce_origin", "is not an origin")
    return text


def _sealed(value: object) -> bytes:
    if not isinstance(value, str):
        raise Undecodable("data", "sealed", "is not a text")
    try:
        return base64.b64decode(value, validate=True)
    except ValueError:
        # binascii.Error is one; a letter outside ASCII raises the plain kind
        raise Undecodable("data", "sealed", "is not base64") from None
