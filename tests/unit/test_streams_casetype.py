"""Case types: what is personal, what may change, and what is wrong with a document."""

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.cases.casetype import CaseType, InvalidCaseType
from streams.cases.document import merge_patch, problems_of
from streams.testing import CASE_SCHEMA

CASE_TYPE = CaseType("public-toilet-problem", CASE_SCHEMA)
NUL_NOTE = {"id": "n1", "at": "2026-11-22T10:00:00Z", "by": "form", "text": "Quill\x00"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=3), below, max_size=3),
    max_leaves=12,
)


def report(**changed: Any) -> dict[str, Any]:
    document: dict[str, Any] = {
        "submitter": {"name": "Avery Quill", "email": "avery@example.org"},
        "location": {"easting": 521000.5, "northing": 105500, "postcode": "BN15 9JB"},
        "asset": {"uprn": 60001449, "name": "Beach Green"},
        "category": "litter",
        "status": "open",
        "notes": [],
    }
    return document | changed


def test_personal_parts_leave_the_public_document() -> None:
    """Submitter and notes are sealed, everything else is not, and joining gives the whole again."""
    whole = report(notes=[{"id": "n1", "at": "2026-11-22T10:00:00Z", "by": "form", "text": "needle on the floor"}])
    public, personal = CASE_TYPE.split(whole)
    assert set(personal) == {"submitter", "notes"}
    assert "Quill" not in str(public)
    assert CASE_TYPE.join(public, personal) == whole


def test_what_the_schema_does_not_declare_is_personal() -> None:
    """A field that somebody forgot to declare is sealed rather than published, at any depth."""
    public, personal = CASE_TYPE.split(report(location={"postcode": "BN15 9JB", "door": "Quill"}, witness="Quill"))
    assert public["location"] == {"postcode": "BN15 9JB"}
    assert (personal["location"], personal["witness"]) == ({"door": "Quill"}, "Quill")


@given(JSON)
def test_split_and_join_lose_nothing(value: Any) -> None:
    """Whatever a document holds, its two parts make it again."""
    whole = report(location={"postcode": "BN15 9JB", "extra": value}, category=value, witness=value)
    before = deepcopy(whole)
    assert CASE_TYPE.join(*CASE_TYPE.split(whole)) == before == whole


def test_prefix_statuses_and_marks_come_from_the_schema() -> None:
    """The schema alone says how references begin, which statuses there are and what is protected."""
    assert CASE_TYPE.prefix == "RAP"
    assert CASE_TYPE.statuses == ("open", "in progress", "done", "no action")
    assert ("submitter",) in CASE_TYPE.personal
    assert ("asset", "uprn") in CASE_TYPE.immutable


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"category": "graffiti"}, "/category"),
        ({"status": "eaten"}, "/status"),
        ({"submitter": {"name": "Avery Quill"}}, "/submitter/email"),
        ({"submitter": {"name": "x" * 300, "email": "avery@example.org"}}, "/submitter/name"),
        ({"submitter": {"name": "Quill", "email": "Quill at home"}}, "/submitter/email"),
        ({"location": {"easting": -1}}, "/location/easting"),
        ({"location": "Quill's garden"}, "/location"),
        ({"colour": "blue"}, "/colour"),
        ({"Avery Quill, 3 Acacia Avenue": 1}, ""),
        ({"submitter": {"name": "Quill", "email": "q@example.org", "Avery Quill": 1}}, "/submitter"),
        ({"category": "litter", "notes": [NUL_NOTE]}, "/notes/0/text"),
    ],
)
def test_a_problem_names_its_field_and_never_the_value(change: dict[str, Any], pointer: str) -> None:
    """Error texts reach logs and browsers, so they say where and what rule, not what was typed."""
    problems = problems_of(CASE_TYPE, report(**change))
    assert pointer in [problem.pointer for problem in problems]
    assert "Quill" not in str(problems)


def test_a_name_that_is_not_repeated_is_a_field_of_what_holds_it() -> None:
    """The sentence is true of the place it names: the submitter is a field of this case type."""
    wrong = report(submitter={"name": "Quill", "email": "q@example.org", "3 Acacia Avenue": 1})
    (problem,) = problems_of(CASE_TYPE, wrong)
    assert (problem.pointer, problem.message) == ("/submitter", "holds a field that this case type does not have")


def test_a_sound_document_has_no_problems() -> None:
    """The example document meets its schema."""
    assert problems_of(CASE_TYPE, report()) == []


def test_a_document_too_deep_for_json_is_refused() -> None:
    """Nesting beyond what can be written is a problem with the document, not a crash."""
    deep: dict[str, Any] = {}
    for _ in range(2000):
        deep = {"location": deep}
    assert problems_of(CASE_TYPE, deep)


def test_changed_names_fields_not_values() -> None:
    """Events say which declared fields changed; an undeclared one is not named."""
    after = report(category="other", location={"postcode": "BN15 9JA", "Quill": 1}, Quill=1)
    assert CASE_TYPE.changed(report(), after) == (
        "category", "location", "location.easting", "location.northing", "location.postcode", "other",
    )  # fmt: skip


def test_an_immutable_field_stays_once_set() -> None:
    """It may be added later, but neither replaced nor removed."""
    assert CASE_TYPE.broken_immutable(report(), report(asset={"uprn": 1})) == "/asset/uprn"
    assert CASE_TYPE.broken_immutable(report(), {"status": "open"}) == "/asset/uprn"
    assert CASE_TYPE.broken_immutable(report(asset={}), report()) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"type": "nonsense"},
        {"properties": {"status": {"type": "string"}}},
        {"properties": {"status": {"enum": []}}},
        {"properties": {"status": {"enum": ["open"], "x-personal": True}}},
        {"properties": {"status": {"enum": ["open"]}}, "x-reference-prefix": "rap"},
        {"properties": {"status": {"enum": ["open"]}, "notes": {"items": {"x-personal": True}}}},
        {"properties": {"status": {"enum": ["open"]}}, "allOf": [{"properties": {"name": {"x-personal": True}}}]},
        {"properties": {"status": {"enum": ["open"]}, "a": {"$ref": "https://example.org/schema.json"}}},
    ],
)
def test_a_schema_that_would_not_protect_is_refused(broken: dict[str, Any]) -> None:
    """A mark that would have no effect, a missing status or a remote reference stops the start, not a resident."""
    with pytest.raises(InvalidCaseType):
        CaseType("broken", broken)


@pytest.mark.parametrize(
    ("mark", "value", "says"),
    [
        ("x-personal", "yes", "is true or false, without quotes"),
        ("x-personal", "true", "is true or false, without quotes"),
        ("x-personal", 1, "is true or false, without quotes"),
        ("x-immutable", None, "is true or false, without quotes"),
        ("x-Personal", True, "is not a word of case types"),
        ("X-personal", True, "is not a word of case types"),
        ("x-private", True, "is not a word of case types"),
    ],
)
def test_a_mark_that_marks_nothing_is_named(mark: str, value: Any, says: str) -> None:
    """JSON Schema overlooks a misspelt or mistyped mark, and the field would be public: the place is said instead."""
    schema = {"properties": {"status": {"enum": ["open"]}, "a": {"properties": {"b": {mark: value}}}}}
    with pytest.raises(InvalidCaseType, match=says) as caught:
        CaseType("broken", schema)
    assert caught.value.where == f"/properties/a/properties/b/{mark}"


def test_names_and_data_are_not_marks() -> None:
    """A property may be called x-position, and an example may hold anything: only keywords are words of the schema."""
    schema = {
        "properties": {"status": {"enum": ["open"]}, "x-position": {"x-personal": False, "default": {"x-y": 1}}},
        "dependentRequired": {"x-position": ["status"]},
        "examples": [{"x-position": 1}],
    }
    assert CaseType("sound", schema).personal == ()


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_merge_patch_follows_rfc_7396(target: Any, patch: Any, result: Any) -> None:
    """The examples of the RFC's appendix, and the target is left as it was."""
    before = deepcopy(target)
    assert merge_patch(target, patch) == result
    assert target == before
