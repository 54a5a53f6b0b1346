"""`silogate asyncapi`: a valid AsyncAPI 3.0 document, and our records are what it says they are."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import orjson
import pytest
from typer.testing import CliRunner

from gateway.cli import main
from streams.asyncapi import Topic, document
from streams.cases.casetype import CaseType
from streams.cases.document import completed
from streams.events import EVENT_TYPES, encode
from streams.testing import case_event

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = json.loads(gzip.decompress((Path(__file__).parent / "asyncapi/3.0.0.json.gz").read_bytes()))
TYPE = "public-toilet-problem"
SCHEMA: dict[str, Any] = json.loads((ROOT / "deploy/integrations/report-a-problem/case.schema.json").read_text())
ENVIRONMENT = {
    "SILOGATE_DATABASE_URL": "postgresql://db/silogate",
    "SILOGATE_REDIS_URL": "redis://redis/0",
    "SILOGATE_KAFKA_BOOTSTRAP": "kafka-1:9092, kafka-2:9092",
    "SILOGATE_SMTP_URL": "smtp://mail",
    "SILOGATE_KEY_RING": "1:unused",
    "SILOGATE_TOPIC_PREFIX": "west.",
    "SILOGATE_TOPIC_PARTITIONS": "6",
    "SILOGATE_INTEGRATIONS": str(ROOT / "deploy/integrations"),
    "SILOGATE_SILOS": str(ROOT / "deploy/silos"),
}


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    """What the command prints of the shipped folders."""
    result = CliRunner().invoke(main, ["asyncapi"], env=ENVIRONMENT)
    assert result.exit_code == 0, result.output
    made: dict[str, Any] = json.loads(result.stdout)
    return made


def _problems(value: Any) -> list[str]:
    return [error.message[:300] for error in jsonschema_rs.Draft7Validator(PUBLISHED, offline=True).iter_errors(value)]


def _fits(described: dict[str, Any], schema: dict[str, Any], value: object) -> list[str]:
    """What is wrong with a value by one schema of the document, whose references lead into the document."""
    whole = {"allOf": [schema], "components": described["components"]}
    return [error.message for error in jsonschema_rs.Draft7Validator(whole, validate_formats=True).iter_errors(value)]


def test_the_shipped_document_is_valid(shipped: dict[str, Any]) -> None:
    """The published schema of AsyncAPI 3.0.0 finds nothing wrong, and finds what is."""
    assert _problems(shipped) == []
    assert _problems(shipped | {"channels": {"x": {"addres": "x"}}}) != []
    channel = shipped["channels"]["cases.changes.v1"]
    assert channel["address"] == "west.cases.changes.v1"
    assert channel["bindings"]["kafka"]["partitions"] == 6
    assert channel["bindings"]["kafka"]["topicConfiguration"]["cleanup.policy"] == ["delete"]
    assert [server["host"] for server in shipped["servers"].values()] == ["kafka-1:9092", "kafka-2:9092"]
    groups = {name.removeprefix("read.") for name in shipped["operations"]} - {"publishChanges"}
    assert groups == {
        "west.silogate.flow.report-a-problem",
        "west.silogate.recipient.contractor",
        "west.silogate.recipient.street-team",
    }


@pytest.mark.parametrize("event_type", EVENT_TYPES)
def test_a_record_is_what_the_document_says(shipped: dict[str, Any], event_type: str) -> None:
    """Headers and value of a real event pass the schemas of its message, and of no other type's."""
    case_type = CaseType(TYPE, SCHEMA)
    whole = completed(case_type, SCHEMA["examples"][0], by="resident", at=datetime.now(UTC))
    assert case_type.validate(whole) == []
    public, _ = case_type.split(whole)
    event = case_event(type=event_type, document=public, status=public["status"], sealed=b"Alex Example")
    _, value, headers = encode(event)
    named = {name: text.decode() for name, text in headers}
    for name, message in shipped["components"]["messages"].items():
        wrong = _fits(shipped, message["headers"], named)
        assert (wrong == []) is (name == f"{TYPE}.{event_type}"), wrong
        assert set(message["headers"]["properties"]) == set(named)
        assert _fits(shipped, message["payload"], orjson.loads(value)) == []
    assert _fits(shipped, shipped["components"]["messages"][name]["payload"], {"case_id": "x"}) != []


def test_what_is_personal_is_not_described(shipped: dict[str, Any]) -> None:
    """The document's schema has the public fields only, and asks for no personal one."""
    described = shipped["components"]["schemas"][f"{TYPE}.event"]["properties"]["document"]
    assert set(described["properties"]) == {"location", "asset", "category", "status"}
    assert described["required"] == ["location", "asset", "category"]
    assert "alex@example.org" not in json.dumps(shipped)


def test_references_of_a_case_type_lead_somewhere() -> None:
    """`$defs` are found at their new place; a nested personal field is left out with its requirement."""
    schema = {
        "title": "A thing",
        "properties": {
            "status": {"enum": ["open"]},
            "size": {"$ref": "#/$defs/size"},
            "owner": {
                "type": "object",
                "required": ["name", "kind"],
                "properties": {"name": {"type": "string", "x-personal": True}, "kind": {"$ref": "#/$defs/size"}},
            },
        },
        "$defs": {"size": {"enum": ["small", "large"]}},
    }
    topic = Topic("cases.changes.v1", 1, 1, 1000)
    made = document(version="1", bootstrap=["k:9092"], topic=topic, case_types={"thing": schema}, groups=[])
    assert _problems(made) == []
    inner = made["components"]["schemas"]["thing.event"]["properties"]["document"]
    assert inner["properties"]["owner"]["required"] == ["kind"]
    assert _fits(made, inner, {"size": "small", "owner": {"kind": "large"}}) == []
    assert _fits(made, inner, {"size": "huge"}) != []


def test_a_broken_folder_is_named(tmp_path: Path) -> None:
    """No document is printed of a deployment that would not start."""
    result = CliRunner().invoke(main, ["asyncapi"], env=ENVIRONMENT | {"SILOGATE_INTEGRATIONS": str(tmp_path)})
    assert result.exit_code == 1
    assert result.stdout == ""
