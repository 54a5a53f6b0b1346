"""Events on the wire."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import orjson
import pytest
from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
from hypothesis import given
from hypothesis import strategies as st

from streams import events
from streams.errors import Undecodable
from streams.events import EVENT_TYPES, CaseEvent, decode, encode, read_record
from streams.testing import case_event

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=30)
EVENTS = st.builds(
    CaseEvent,
    event_id=st.uuids(),
    type=st.sampled_from(EVENT_TYPES),
    case_id=st.uuids(),
    case_type=NAMES,
    reference=st.just("RAP-7KQ2-93XD"),
    version=st.integers(1, 2**63 - 1),
    at=st.datetimes(timezones=st.just(UTC)),
    origin=st.sampled_from(["form", "officer", "recipient:street-team"]),
    correlation_id=st.uuids().map(str),
    hops=st.integers(0, 9),
    status=NAMES,
    changed=st.lists(NAMES, max_size=3).map(tuple),
    document=st.dictionaries(NAMES, NAMES | st.integers(-(2**63), 2**63 - 1) | st.none() | st.booleans(), max_size=5),
    sealed=st.binary(max_size=100),
)


@given(EVENTS)
def test_what_is_decoded_is_what_was_encoded(event: CaseEvent) -> None:
    """Every event comes back from the wire as it went."""
    assert decode(*encode(event)) == event


def test_the_cloudevents_package_reads_our_records() -> None:
    """Others need no code of ours: the reference library takes the record as a CloudEvent 1.0."""
    event = case_event(3, type="case.noted", origin="recipient:street-team", hops=1)
    key, value, headers = encode(event)
    cloud = from_binary_event(KafkaMessage(headers=dict(headers), key=key, value=value))
    assert cloud.get_specversion() == "1.0"
    assert cloud.get_id() == str(event.event_id)
    assert cloud.get_type() == "uk.silogate.case.noted.v1"
    assert cloud.get_time() == event.at
    assert cloud.get_subject() == event.reference
    assert cloud.get_datacontenttype() == "application/json"
    assert cloud.get_dataschema() == "urn:silogate:case-event:public-toilet-problem:v1"
    assert cloud.get_extension("partitionkey") == str(event.case_id)
    assert cloud.get_extension("sequence") == "0000000000000000003"
    assert cloud.get_extension("correlationid") == event.correlation_id
    data = cloud.get_data()
    assert isinstance(data, dict)
    assert data["document"] == event.document


def test_key_and_headers_name_the_case_and_nobody() -> None:
    """What is personal is neither in the key nor in a header, whatever the document holds."""
    event = case_event(document={"category": "litter", "status": "open", "witness": "Avery Quill"}, sealed=b"Q")
    key, _, headers = encode(event)
    assert UUID(key.decode()) == event.case_id
    assert b"Quill" not in b"".join(text for _, text in headers)


def test_times_travel_in_utc() -> None:
    """An event made in summer time means the same instant to every reader."""
    local = datetime(2026, 7, 1, 12, 0, tzinfo=timezone(timedelta(hours=1)))
    assert decode(*encode(case_event(at=local))).at == datetime(2026, 7, 1, 11, 0, tzinfo=UTC)


def test_unknown_headers_and_fields_change_nothing() -> None:
    """A newer release may add attributes and fields of the same major version without stopping this one."""
    event = case_event()
    key, value, headers = encode(event)
    body = orjson.loads(value) | {"priority": "high"}
    assert decode(key, orjson.dumps(body), [*headers, ("ce_priority", b"high"), ("x-trace", b"\x01")]) == event


@pytest.mark.parametrize(
    ("header", "text", "stage"),
    [
        ("ce_specversion", b"0.3", "envelope"),
        ("ce_type", b"uk.silogate.case.created.v2", "type"),
        ("ce_type", b"uk.silogate.case.vanished.v1", "type"),
        ("ce_type", b"com.example.order.v1", "type"),
        ("ce_id", b"seventeen", "envelope"),
        ("ce_time", b"yesterday", "envelope"),
        ("ce_time", b"2026-11-22T10:00:00", "envelope"),
        ("ce_time", b"0001-01-01T00:00:00+14:00", "envelope"),
        ("ce_time", b"9999-12-31T23:59:59-14:00", "envelope"),
        ("ce_sequence", b"2", "data"),
        ("ce_sequence", b"-1", "envelope"),
        ("ce_hops", b"many", "envelope"),
        ("ce_origin", b"Avery Quill", "envelope"),
        ("ce_subject", b"\xff\xfe", "envelope"),
    ],
)
def test_a_bad_header_is_named(header: str, text: bytes, stage: str) -> None:
    """An unreadable envelope says where it stopped, so that a person can mend it."""
    key, value, headers = encode(case_event())
    with pytest.raises(Undecodable) as caught:
        decode(key, value, [(name, text if name == header else old) for name, old in headers])
    assert caught.value.stage == stage


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("case_id", "5b0c1a7e-3f52-4a56-9a54-0a3b4c5d6e7f"),
        ("type", ""),
        ("version", 0),
        ("version", True),
        ("version", "1; drop table cases"),
        ("status", None),
        ("changed", "status"),
        ("document", []),
        ("sealed", "%%%"),
        ("sealed", "é"),
        ("sealed", None),
    ],
)
def test_a_bad_field_is_named(field: str, value: object) -> None:
    """Unreadable data names its field and never repeats the value."""
    key, raw, headers = encode(case_event())
    body = orjson.loads(raw) | {field: value}
    with pytest.raises(Undecodable) as caught:
        decode(key, orjson.dumps(body), headers)
    assert (caught.value.stage, caught.value.field) == ("data", field)
    assert "drop table" not in str(caught.value)


@pytest.mark.parametrize("value", [None, b"", b"{", b"[1]", b"\xff", b"[" * 5000])
def test_a_value_that_is_no_object_is_undecodable(value: bytes | None) -> None:
    """Tombstones, truncated records and deep nesting are refused like any other bad data."""
    key, _, headers = encode(case_event())
    with pytest.raises(Undecodable):
        decode(key, value, headers)


@pytest.mark.parametrize("key", [None, b"", b"case 42", b"\xff"])
def test_a_key_that_is_no_case_is_undecodable(key: bytes | None) -> None:
    """Without a case's id there is no order to keep, and the envelope says so."""
    _, value, headers = encode(replace(case_event(), version=1))
    with pytest.raises(Undecodable) as caught:
        decode(key, value, headers)
    assert caught.value.field == "key"


def test_reading_a_record_never_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a record does to the decoder, the worker is told the class of the error and goes on to the next."""
    event = case_event()
    assert read_record(*encode(event)) == (event, None)
    assert str(read_record(*encode(event)[:2], [])[1]) == "envelope: ce_specversion is not 1.0"

    def explode(*_: object) -> None:
        raise RuntimeError("Avery Quill")

    monkeypatch.setattr(events, "decode", explode)
    found, problem = read_record(*encode(event))
    assert found is None
    assert str(problem) == "data: cannot be read (RuntimeError)"
