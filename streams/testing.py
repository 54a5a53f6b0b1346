"""What tests of streams need, and of what is built on it: a real cipher without a key ring, and readable events."""

import os
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from streams.cases.keys import CaseKeys
from streams.events import CaseEvent

_NONCE = 12


class WrongSeal(Exception):
    """The bytes were sealed with another key, for another place, or were changed."""


class PlainKeySealer:
    """AES-256-GCM under one key that the caller holds."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, plain: bytes, *, bound_to: bytes) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._cipher.encrypt(nonce, plain, bound_to)

    def open(self, sealed: bytes, *, bound_to: bytes) -> bytes:
        try:
            return self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], bound_to)
        except (InvalidTag, ValueError) as error:
            raise WrongSeal from error


def case_keys() -> CaseKeys:
    """Case keys under a ring that lives as long as the test."""
    return CaseKeys(PlainKeySealer(AESGCM.generate_key(256)), PlainKeySealer)


def case_event(version: int = 1, *, case_id: UUID | None = None, **changed: Any) -> CaseEvent:
    """An event about litter at a public toilet; any field can be given."""
    event = CaseEvent(
        event_id=uuid4(),
        type="case.created" if version == 1 else "case.updated",
        case_id=case_id or uuid4(),
        case_type="public-toilet-problem",
        reference="RAP-7KQ2-93XD",
        version=version,
        at=datetime(2026, 11, 22, 9, 30, version % 60, tzinfo=UTC),
        origin="form",
        correlation_id="0f8fad5b-d9cb-469f-a165-70867728950e",
        hops=0,
        status="open",
        changed=("status",),
        document={"category": "litter", "status": "open", "asset": {"uprn": 60001449}},
        sealed=b"sealed elsewhere",
    )
    return replace(event, **changed)


CASE_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "x-reference-prefix": "RAP",
    "additionalProperties": False,
    "required": ["submitter", "location", "category", "status"],
    "properties": {
        "submitter": {
            "type": "object",
            "x-personal": True,
            "additionalProperties": False,
            "required": ["name", "email"],
            "properties": {
                "name": {"type": "string", "minLength": 1, "maxLength": 200},
                "email": {"type": "string", "format": "email", "maxLength": 256},
                "telephone": {"type": "string", "maxLength": 30},
            },
        },
        "location": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "easting": {"type": "number", "minimum": 0, "maximum": 700000},
                "northing": {"type": "number", "minimum": 0, "maximum": 1300000},
                "postcode": {"type": "string", "maxLength": 10},
            },
        },
        "asset": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "uprn": {"type": "integer", "minimum": 1, "x-immutable": True},
                "name": {"type": "string", "maxLength": 200},
            },
        },
        "category": {"enum": ["litter", "dog fouling", "broken", "other"]},
        "status": {"enum": ["open", "in progress", "done", "no action"]},
        "notes": {
            "type": "array",
            "x-personal": True,
            "maxItems": 100,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["id", "at", "by", "text"],
                "properties": {
                    "id": {"type": "string"},
                    "at": {"type": "string", "format": "date-time"},
                    "by": {"type": "string"},
                    "text": {"type": "string", "minLength": 1, "maxLength": 4000},
                },
            },
        },
    },
}
