"""A case type's schema may grow; what would lose, refuse or disclose what cases already hold is named and refused."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gateway.cli import main
from gateway.integrations import read_folders
from streams.cases.casetype import pointer
from streams.evolution import breaks, contract

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SHIPPED: dict[str, Any] = json.loads((DEPLOY / "integrations/report-a-problem/case.schema.json").read_text())
SMALL: dict[str, Any] = {
    "type": "object",
    "required": ["colour"],
    "additionalProperties": False,
    "properties": {
        "colour": {"enum": ["red", "blue"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9, "multipleOf": 1},
        "name": {"type": "string", "maxLength": 10, "x-personal": True},
        "bag": {"type": "object"},
        "title": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
        "who": {
            "type": "object",
            "x-personal": True,
            "additionalProperties": False,
            "properties": {"first": {"type": "string"}, "last": {"$ref": "#/$defs/word"}},
        },
    },
    "$defs": {"word": {"type": "string", "minLength": 1}, "unused": {"type": "null"}},
}


def _changed(path: str, value: object) -> dict[str, Any]:
    """SMALL with one place set to another value, or without it when the value is None."""
    made = deepcopy(SMALL)
    *way, last = path.split("/")
    node: Any = made
    for name in way:
        node = node[name]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return made


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("properties/priority", {"type": "string"}),
        ("properties/who/properties/title", {"type": "string"}),
        ("properties/colour/enum", ["red", "blue", "green"]),
        ("properties/count/maximum", 10),
        ("properties/count/maximum", None),
        ("properties/count/minimum", 0),
        ("properties/name/maxLength", 20),
        ("properties/title/maxItems", None),
        ("properties/title/title", "What it is called"),
        ("required", []),
        ("additionalProperties", True),
        ("description", "For people."),
        ("$defs/unused", None),
        ("$defs/word/minLength", None),
        ("properties/bag/x-personal", True),
        ("properties/colour/x-immutable", True),
    ],
)
def test_what_may_follow(path: str, value: object) -> None:
    """Optional fields, wider limits, more values, words for people, more protection."""
    assert breaks(SMALL, _changed(path, value)) == []


@pytest.mark.parametrize(
    ("path", "value", "where", "says"),
    [
        ("properties/title", None, "/properties/title", "is gone"),
        ("properties/colour/enum", ["red"], "/properties/colour/enum", "no longer has blue"),
        ("properties/colour", {"const": "red"}, "/properties/colour/const", "no longer has blue"),
        ("properties/count/type", "string", "/properties/count/type", "was of type integer and is now of type string"),
        ("properties/count/type", ["integer", "null"], "/properties/count/type", "readers of events expect it"),
        ("properties/count/type", None, "/properties/count", "is now of any type"),
        ("properties/count/maximum", 8, "/properties/count/maximum", "was 9 and is now 8"),
        ("properties/count/minimum", 2, "/properties/count/minimum", "was 1 and is now 2"),
        ("properties/count/multipleOf", 2, "/properties/count/multipleOf", "cannot be judged"),
        ("properties/count/enum", [1], "/properties/count/enum", "allows only some values"),
        ("properties/name/minLength", 1, "/properties/name/minLength", "was not there and is now 1"),
        ("properties/name/pattern", "^A", "/properties/name/pattern", "is new"),
        ("properties/name/format", "email", "/properties/name/format", "is new"),
        ("properties/name/x-personal", None, "/properties/name", "was personal"),
        ("properties/who/x-personal", False, "/properties/who/properties/first", "was personal"),
        ("properties/title/items/type", "number", "/properties/title/items/type", "was of type string"),
        ("properties/title/uniqueItems", True, "/properties/title/uniqueItems", "may hold an item twice"),
        ("properties/title/contains", {"const": "x"}, "/properties/title/contains", "cannot be judged"),
        ("properties/bag/properties", {"size": {"type": "string"}}, "/properties/bag/properties/size", "not declared"),
        ("properties/bag/additionalProperties", False, "/properties/bag/additionalProperties", "allows less"),
        ("properties/bag", False, "/properties/bag", "any type"),
        ("required", ["colour", "count"], "/required", "newly asks for count"),
        ("$defs/word/minLength", 2, "/$defs/word/minLength", "was 1 and is now 2"),
        ("allOf", [{"required": ["name"]}], "/allOf", "cannot be judged"),
    ],
)
def test_what_may_not(path: str, value: object, where: str, says: str) -> None:
    """Each break is named by the place in the schema and what it would do."""
    found = {pointer(one.path): one.message for one in breaks(SMALL, _changed(path, value))}
    assert says in found[where], found


def test_a_renamed_field_is_guessed() -> None:
    """The likeliest mistake gets the likeliest explanation."""
    after = _changed("properties/label", SMALL["properties"]["title"])
    del after["properties"]["title"]
    (found,) = breaks(SMALL, after)
    assert "(renamed to label?)" in found.message


def test_words_for_people_are_not_part_of_the_contract() -> None:
    """A field called `title` is one, the title of a field is not."""
    assert contract(_changed("title", "Coloured things")) == contract(SMALL)
    assert "title" in contract(SMALL)["properties"]


_NUMBERS = st.integers(-3, 3)
_SCHEMAS: st.SearchStrategy[dict[str, Any]] = st.recursive(
    st.one_of(
        st.just({"type": "null"}),
        st.fixed_dictionaries({"type": st.just("integer")}, optional={"minimum": _NUMBERS, "maximum": _NUMBERS}),
        st.fixed_dictionaries(
            {"type": st.just("string")}, optional={"minLength": st.integers(0, 2), "maxLength": st.integers(0, 3)}
        ),
        st.fixed_dictionaries({"enum": st.lists(st.sampled_from(["a", "b", 1]), min_size=1, unique=True)}),
    ),
    lambda below: st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": below}, optional={"maxItems": st.integers(0, 2)}),
        st.fixed_dictionaries(
            {"type": st.just("object"), "properties": st.dictionaries(st.sampled_from("xyz"), below, max_size=3)},
            optional={
                "required": st.lists(st.sampled_from("xyz"), max_size=2, unique=True),
                "additionalProperties": st.booleans(),
            },
        ),
    ),
    max_leaves=4,
)
_DOCUMENTS = st.recursive(
    st.none() | _NUMBERS | st.sampled_from(["", "a", "b", "abc"]),
    lambda below: st.lists(below, max_size=2) | st.dictionaries(st.sampled_from("xyz"), below, max_size=3),
    max_leaves=4,
)


@UNHURRIED
@given(st.data())
def test_what_was_valid_stays_valid(data: st.DataObject) -> None:
    """No document of the earlier schema is refused by one that was found to follow it."""
    before = data.draw(_SCHEMAS)
    after = data.draw(st.just(before) | _SCHEMAS)
    document = data.draw(_DOCUMENTS)
    if not breaks(before, after) and jsonschema_rs.is_valid(before, document):
        assert jsonschema_rs.is_valid(after, document)


@pytest.fixture
def deploy(tmp_path: Path) -> Path:
    """A copy of the shipped folders, whose case type has been accepted."""
    for name in ("integrations", "silos"):
        shutil.copytree(DEPLOY / name, tmp_path / name)
    return tmp_path


def _rewrite(deploy: Path, old: str, new: str) -> None:
    path = deploy / "integrations/report-a-problem/case.schema.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _check(deploy: Path, *more: str) -> tuple[int, str]:
    silos = str(deploy / "silos")
    result = CliRunner().invoke(main, ["check", str(deploy / "integrations"), "--silos", silos, "--json", *more])
    return result.exit_code, result.stdout


def test_a_break_is_named_by_file_line_and_field(deploy: Path) -> None:
    """And nothing starts with it: what `check` refuses, `serve` and `work` refuse."""
    _rewrite(deploy, '"maxLength": 2000', '"maxLength": 500')
    (found,) = read_folders(deploy / "integrations", deploy / "silos").problems
    assert found.path.name == "case.schema.json"
    assert found.path.read_text().splitlines()[found.line - 1].strip().startswith('"text": {')
    assert found.field == "/properties/notes/items/properties/text/maxLength"
    assert "was 2000 and is now 500" in found.message
    code, text = _check(deploy, "--accept")
    assert code == 1
    assert json.loads(text)["accepted"] == []
    assert _check(deploy)[0] == 1


def test_what_may_follow_is_asked_for_once(deploy: Path) -> None:
    """The check fails until the change is accepted; from then on the new field is part of the contract."""
    _rewrite(deploy, '"status": {', '"urgent": {"type": "boolean"},\n    "status": {')
    assert read_folders(deploy / "integrations", deploy / "silos").problems == []
    code, text = _check(deploy)
    assert code == 1
    assert "`silogate check --accept` takes them in" in text
    assert _check(deploy, "--accept")[0] == 0
    assert _check(deploy)[0] == 0
    _rewrite(deploy, '"urgent": {"type": "boolean"},\n', "")
    code, text = _check(deploy, "--accept")
    assert code == 1
    assert "/properties/urgent" in text


def test_another_name_is_another_case_type(deploy: Path) -> None:
    """A change that breaks is made under a new name, whose lock is written anew."""
    lock = deploy / "integrations/report-a-problem/case.schema.lock.json"
    kept = json.loads(lock.read_text())
    assert kept == {"case_type": "public-toilet-problem", "schema": contract(SHIPPED)}
    lock.write_text(json.dumps(kept | {"case_type": "toilet-problem"}))
    assert "has no case.schema.lock.json of the case type" in _check(deploy)[1]
    assert _check(deploy, "--accept")[0] == 0
    assert json.loads(lock.read_text()) == kept


@pytest.mark.parametrize("text", ["", "[]", '{"case_type": 1, "schema": {}}', "[" * 100_000])
def test_a_spoilt_lock_is_a_mistake(deploy: Path, text: str) -> None:
    """A lock that cannot be read protects nothing, so it stops everything."""
    (deploy / "integrations/report-a-problem/case.schema.lock.json").write_text(text)
    (found,) = read_folders(deploy / "integrations", deploy / "silos").problems
    assert "restore it" in found.message
