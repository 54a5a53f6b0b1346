"""The shapes of requests and answers as JSON Schema 2020-12, each with an example: parts of the OpenAPI document."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from gateway.declarations import CaseTypeDeclaration
from gateway.problems import CODES, TYPE_PREFIX

_CASE = "6c1f6a1e-3a52-4c26-9c0e-0a5b7f0f8c11"
_TIME = "2026-11-22T18:05:09.123000Z"
_UUID = {"type": "string", "format": "uuid"}
_DATE_TIME = {"type": "string", "format": "date-time"}
_TEXT = {"type": "string"}
_VERSION = {"type": "integer", "minimum": 1}


def _object(properties: Mapping[str, Any], *optional: str, **more: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": dict(properties), **more}


def _listed(**properties: Any) -> dict[str, Any]:
    return {"type": "array", "items": _object(properties)}


_ENVELOPE = {
    "id": _UUID,
    "reference": _TEXT,
    "type": _TEXT,
    "version": _VERSION,
    "created_at": _DATE_TIME,
    "updated_at": _DATE_TIME,
    "erased": {"type": "boolean", "description": "True when what was personal was erased; it is missing then."},
    "attachments": _listed(id=_UUID, sha256=_TEXT, media_type=_TEXT, bytes={"type": "integer"}, created_at=_DATE_TIME),
    "deliveries": _listed(recipient=_TEXT, state={"enum": ["applied", "parked"]}, version=_VERSION, at=_DATE_TIME),
    "effects": _listed(
        purpose=_TEXT,
        sink=_TEXT,
        state={"enum": ["planned", "intent", "unknown", "done", "failed"]},
        at=_DATE_TIME,
    ),
}

_REFUSED = _object(
    {
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "problem": {"$ref": "#/components/schemas/Problem"},
    },
    description="`field` points into the request, such as `/lookups/1/parameters/postcode`.",
)

SCHEMAS: dict[str, dict[str, Any]] = {
    "Problem": _object(
        {
            "type": {"type": "string", "format": "uri-reference"},
            "title": _TEXT,
            "status": {"type": "integer", "minimum": 400, "maximum": 599},
            "code": {"type": "string", "description": "Stable; branch on it."},
            "detail": _TEXT,
            "field": {"type": "string", "description": "The parameter, header or JSON pointer that is at fault."},
            "errors": _listed(field=_TEXT, detail=_TEXT),
            "correlation_id": _TEXT,
        },
        "field",
        "errors",
        description="RFC 9457. Names fields, never personal values.",
    ),
    "LookupList": _object(
        {
            "lookups": _listed(
                name=_TEXT,
                title=_TEXT,
                personal={"type": "boolean"},
                method={"enum": ["GET", "POST"]},
                parameters=_listed(name=_TEXT, type=_TEXT, title=_TEXT, required={"type": "boolean"}),
            )
        }
    ),
    "LookupAnswer": _object(
        {
            "lookup": _TEXT,
            "verdict": {
                "enum": ["found", "not_found", "cannot_tell"],
                "description": "`not_found` is said only when the silo is complete and fresh enough.",
            },
            "reason": {"type": "string", "description": "Why the verdict is `cannot_tell`."},
            "as_of": _object({"token": _TEXT, "time": {"type": ["string", "null"], "format": "date-time"}}),
            "results": {"type": "array", "items": {"type": "object"}},
        },
        "reason",
    ),
    "LookupQuestion": {"type": "object", "description": "The lookup's parameters by name."},
    "LookupBatch": _object(
        {
            "lookups": {
                "type": "array",
                "minItems": 1,
                "maxItems": 20,
                "items": _object(
                    {
                        "lookup": {"type": "string", "description": "The lookup's name."},
                        "parameters": {"type": "object", "description": "The lookup's parameters by name."},
                        "min_as_of": {
                            "type": ["string", "array"],
                            "items": _TEXT,
                            "description": "As `Silogate-Min-As-Of`: a token, or one a silo.",
                        },
                    },
                    "parameters",
                    "min_as_of",
                    additionalProperties=False,
                ),
            }
        },
        additionalProperties=False,
        description="Personal lookups may be among them; each leaves its own audit row and needs its own scope.",
    ),
    "LookupBatchAnswer": _object(
        {
            "answers": {
                "type": "array",
                "description": "In the order of the questions. A refused question takes nothing from the others.",
                "items": {"oneOf": [{"$ref": "#/components/schemas/LookupBatchFound"}, _REFUSED]},
            }
        }
    ),
    "LookupBatchFound": _object(
        {
            "status": {"const": 200},
            "age": {"type": "integer", "minimum": 0, "description": "As the header `Age`."},
            "staleness_bound_ms": {
                "type": ["integer", "null"],
                "description": "As `Silogate-Staleness-Bound-Ms`; null where only a replica's word is known.",
            },
            "answer": {"$ref": "#/components/schemas/LookupAnswer"},
        }
    ),
    "CaseReceipt": _object({"id": _UUID, "reference": _TEXT, "version": _VERSION, "status": _TEXT}),
    "CasePatch": {"type": "object", "description": "A JSON merge patch (RFC 7396) of the case's document."},
    "Note": _object({"text": {"type": "string", "minLength": 1}}, additionalProperties=False),
    "Attachment": _object(
        {"id": _UUID, "sha256": _TEXT, "media_type": _TEXT, "bytes": {"type": "integer", "minimum": 1}}
    ),
    "EventStream": {
        "type": "string",
        "description": "Server-sent events: `id` is the case's version, `data` JSON without personal data.",
    },
    "TypeEventStream": {
        "type": "string",
        "description": "Server-sent events: `id` is an opaque place in the topic, `data` JSON without personal data. "
        "An event `reset` means that some may have been missed.",
    },
    "Text": {"type": "string"},
    "OpenApi": {"type": "object"},
}

_ADDRESS = {"uprn": 900001, "address": "1 Crabtree Lane, Lancing, BN15 9JB", "postcode": "BN15 9JB"}
_EVENT = '{"version":1,"type":"case.created","at":"2026-11-22T18:05:09Z","status":"open","changed":["category"]}'
_ANSWER = {
    "lookup": "addresses-by-postcode",
    "verdict": "found",
    "as_of": {"token": "addresses:5f0c91aa:118", "time": "2026-11-22T18:05:09.123Z"},
    "results": [_ADDRESS],
}
EXAMPLES: dict[str, Any] = {
    "LookupList": {
        "lookups": [
            {
                "name": "addresses-by-postcode",
                "title": "The addresses of one postcode",
                "personal": False,
                "method": "GET",
                "parameters": [{"name": "postcode", "type": "postcode", "title": "Postcode", "required": True}],
            }
        ]
    },
    "LookupAnswer": _ANSWER,
    "LookupBatch": {
        "lookups": [
            {"lookup": "addresses-by-postcode", "parameters": {"postcode": "BN15 9JB"}},
            {"lookup": "asset-by-uprn", "parameters": {"uprn": "60002210"}, "min_as_of": "assets:77a0b1c2:9"},
        ]
    },
    "LookupBatchAnswer": {"answers": [{"status": 200, "age": 0, "staleness_bound_ms": 412, "answer": _ANSWER}]},
    "LookupQuestion": {"postcode": "BN15 9JB"},
    "CaseReceipt": {"id": _CASE, "reference": "RAP-7KQ2-93XD", "version": 1, "status": "open"},
    "CasePatch": {"status": "in_progress"},
    "Note": {"text": "The door is mended, the lock is not."},
    "Attachment": {
        "id": "0f1e2d3c-4b5a-4978-8695-a4b3c2d1e0f1",
        "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "media_type": "image/jpeg",
        "bytes": 184_220,
    },
    "EventStream": f"id: 1\nevent: case.created\ndata: {_EVENT}\n\n",
    "TypeEventStream": "id: AX3RQhYb5pIC9_8\nevent: case.created\n"
    f'data: {{"case_id":"{_CASE}","reference":"RAP-7KQ2-93XD",{_EVENT[1:]}\n\n',
    "Text": "ready\n",
    "OpenApi": {"openapi": "3.1.0"},
}


def problem_example(code: str) -> dict[str, Any]:
    """What a refusal with this code looks like."""
    status, title = CODES[code]
    shown = {"type": TYPE_PREFIX + code, "title": title, "status": status, "code": code, "detail": title + "."}
    return {**shown, "correlation_id": "4b1c0f9e-7a52-4c06-9c0e-0a5b7f0f8c11"}


def new_case_schema(declared: CaseTypeDeclaration, home: str) -> dict[str, Any]:
    """The body of `POST /v1/cases` for a case type: its schema without what the gateway fills in."""
    schema = _embedded(declared, home)
    properties = schema["properties"]
    properties.pop("status", None)
    items = properties.get("notes", {}).get("items", {})
    if "text" in items.get("properties", {}):
        items["properties"] = {"text": items["properties"]["text"]}
    schema["properties"] = {"type": {"const": declared.name}, **properties}
    schema["required"] = ["type", *(name for name in schema.get("required", ()) if name != "status")]
    return schema


def case_schema(declared: CaseTypeDeclaration, home: str) -> dict[str, Any]:
    """The answer of `GET /v1/cases/{id}` for a case type; what is personal is missing once it is erased."""
    schema = _embedded(declared, home)
    schema["properties"] = {**schema["properties"], **_ENVELOPE, "type": {"const": declared.name}}
    schema["required"] = [*_ENVELOPE, "status"]
    schema.pop("additionalProperties", None)
    return schema


def new_case_example(declared: CaseTypeDeclaration) -> dict[str, Any] | None:
    """A body of `POST /v1/cases`: the declaration's own, or the first of the schema's `examples`; or None."""
    examples = declared.type.schema.get("examples") or [None]
    document = dict(declared.example) or examples[0]
    return {**document, "type": declared.name} if isinstance(document, dict) else None


def case_example(declared: CaseTypeDeclaration) -> dict[str, Any] | None:
    """The same case as it is read; None without an example."""
    document = new_case_example(declared)
    if document is None:
        return None
    return {
        **document,
        "id": _CASE,
        "reference": f"{declared.type.prefix}-7KQ2-93XD",
        "type": declared.name,
        "version": 1,
        "created_at": _TIME,
        "updated_at": _TIME,
        "erased": False,
        "status": declared.type.statuses[0],
        "attachments": [],
        "deliveries": [],
        "effects": [],
    }


def _embedded(declared: CaseTypeDeclaration, home: str) -> dict[str, Any]:
    """The schema as a component: its own `$defs` are found from the document's root, and no `$id` moves that root."""
    schema = {name: below for name, below in deepcopy(declared.type.schema).items() if name not in ("$id", "$schema")}
    moved = _moved(schema, home)
    if not isinstance(moved, dict):
        raise TypeError("a case type's schema is an object")
    return moved


def _moved(node: Any, home: str) -> Any:
    if isinstance(node, dict):
        return {
            name: home + below[1:]
            if name == "$ref" and isinstance(below, str) and below.startswith("#/")
            else _moved(below, home)
            for name, below in node.items()
        }
    return [_moved(below, home) for below in node] if isinstance(node, list) else node
