"""The AsyncAPI 3.0 document of a deployment: its topics, what is in their records, and which groups read them.

It is made from what the deployment declares, so it cannot drift. A payload's schema is the part of the case type that
is not personal, beside one field with the sealed rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from streams.events import EVENT_TYPES, SOURCE, cloud_type, data_schema

_BINDING = "0.5.0"  # of Kafka's bindings; each object of them names it
_TEXT = {"type": "string"}
_CASE_ID = {"type": "string", "format": "uuid", "description": "The case's id."}
_HEADERS: dict[str, Any] = {
    "content-type": {"const": "application/json"},
    "ce_specversion": {"const": "1.0"},
    "ce_id": {"type": "string", "format": "uuid", "description": "The event's id; the same one comes again at times."},
    "ce_source": {"const": SOURCE},
    "ce_type": {**_TEXT, "description": "What happened. Another major version is another contract."},
    "ce_dataschema": {**_TEXT, "description": "The name of the value's schema. Within one name it only grows."},
    "ce_time": {"type": "string", "format": "date-time", "description": "When it was committed, in UTC."},
    "ce_subject": {**_TEXT, "description": "The reference that the resident has."},
    "ce_partitionkey": _CASE_ID,
    "ce_sequence": {
        "type": "string",
        "pattern": "^[0-9]{19}$",
        "description": "The case's version: 1, 2, 3 … without a gap, with zeros before it.",
    },
    "ce_casetype": _TEXT,
    "ce_origin": {**_TEXT, "description": "Who made the change: form, officer, recipient:NAME."},
    "ce_correlationid": {**_TEXT, "description": "Follows one request through everything it causes."},
    "ce_hops": {"type": "string", "pattern": "^[0-9]+$", "description": "How many changes caused this one."},
}


@dataclass(frozen=True, slots=True)
class Topic:
    """The topic of case events, as it is made."""

    name: str
    partitions: int
    replicas: int
    retention_ms: int


def document(
    *,
    version: str,
    bootstrap: Sequence[str],
    topic: Topic,
    case_types: Mapping[str, Mapping[str, Any]],
    groups: Iterable[str],
) -> dict[str, Any]:
    """The whole document. `case_types` are JSON Schemas by name, `groups` the consumer groups of the topic."""
    messages = dict(_messages(case_types))
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Silogate",
            "version": version,
            "description": "What happens to cases, as CloudEvents 1.0 in Kafka's binary mode.",
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "servers": {
            f"broker{number}": {"host": host, "protocol": "kafka", "bindings": {"kafka": {"bindingVersion": _BINDING}}}
            for number, host in enumerate(bootstrap, 1)
        },
        "channels": {"cases.changes.v1": _channel(topic, messages)},
        "operations": dict(_operations(groups)),
        "components": {
            "messages": messages,
            "schemas": {_component(name): _payload(name, schema) for name, schema in case_types.items()},
        },
    }


def _channel(topic: Topic, messages: Iterable[str]) -> dict[str, Any]:
    return {
        "address": topic.name,
        "title": "Changes of cases",
        "description": "One record a change, the whole case in it. A case's records are in one partition, in the order "
        "of its versions. A record may come more than once: leave out a version that is not above the last.",
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "replicas": topic.replicas,
                "topicConfiguration": {"cleanup.policy": ["delete"], "retention.ms": topic.retention_ms},
                "bindingVersion": _BINDING,
            }
        },
    }


def _operations(groups: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    channel = {"$ref": "#/channels/cases.changes.v1"}
    yield "publishChanges", {"action": "send", "channel": channel, "title": "The outbox relays publish what happened"}
    for group in groups:
        bindings = {"kafka": {"groupId": {"type": "string", "enum": [group]}, "bindingVersion": _BINDING}}
        yield f"read.{group}", {"action": "receive", "channel": channel, "bindings": bindings}


def _messages(case_types: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for case_type, schema in case_types.items():
        for event_type in EVENT_TYPES:
            named = {
                "ce_type": {"const": cloud_type(event_type)},
                "ce_dataschema": {"const": data_schema(case_type)},
                "ce_casetype": {"const": case_type},
            }
            yield (
                f"{case_type}.{event_type}",
                {
                    "name": cloud_type(event_type),
                    "title": f"{schema.get('title', case_type)}: {event_type}",
                    "contentType": "application/json",
                    "correlationId": {"location": "$message.header#/ce_correlationid"},
                    "headers": _object(_HEADERS | named),
                    "payload": {"$ref": "#/components/schemas/" + _component(case_type)},
                    "bindings": {"kafka": {"key": _CASE_ID, "bindingVersion": _BINDING}},
                },
            )


def _payload(case_type: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return _object(
        {
            "case_id": _CASE_ID,
            "reference": _TEXT,
            "type": {"const": case_type},
            "version": {"type": "integer", "minimum": 1},
            "status": deepcopy(schema.get("properties", {}).get("status", _TEXT)),
            "changed": {
                "type": "array",
                "items": _TEXT,
                "description": "Dotted names of the fields that changed, the personal ones too; never a value.",
            },
            "document": _public(schema, f"#/components/schemas/{_component(case_type)}/properties/document"),
            "sealed": {
                "type": "string",
                "contentEncoding": "base64",
                "description": "What is personal, under a key of this case alone; of no use after it was erased.",
            },
        }
    )


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """An object that has at least these fields: a reader leaves alone what it does not know."""
    return {"type": "object", "required": list(properties), "properties": dict(properties)}


def _public(schema: Mapping[str, Any], home: str) -> dict[str, Any]:
    """The case type without what is personal, its references led to where it stands now."""
    made = _moved(_opened(schema), home)
    if not isinstance(made, dict):
        raise TypeError("a case type's schema is an object")
    for word in ("$id", "$schema", "examples"):
        made.pop(word, None)
    return made


def _opened(schema: Mapping[str, Any]) -> dict[str, Any]:
    made = deepcopy(dict(schema))
    fields = made.get("properties")
    if not isinstance(fields, dict):
        return made
    sealed = {name for name, below in fields.items() if isinstance(below, dict) and below.get("x-personal") is True}
    made["properties"] = {
        name: _opened(below) if isinstance(below, dict) else below
        for name, below in fields.items()
        if name not in sealed
    }
    if "required" in made:
        made["required"] = [name for name in made["required"] if name not in sealed]
    return made


def _moved(node: Any, home: str) -> Any:
    if isinstance(node, dict):
        return {
            name: home + below[1:] if name == "$ref" and isinstance(below, str) else _moved(below, home)
            for name, below in node.items()
        }
    return [_moved(below, home) for below in node] if isinstance(node, list) else node


def _component(case_type: str) -> str:
    return f"{case_type}.event"
