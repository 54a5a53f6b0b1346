"""Bodies: what counts as a JSON object, and what is refused before anything reads it."""

from __future__ import annotations

import contextlib
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import MAX_DEPTH, parse_object, shown_name
from gateway.problems import Problem

_DEEP_ENOUGH = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
_TOO_DEEP = b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "malformed_json"),
        (b'{"category":', "malformed_json"),
        (b'{"easting":1e400}', "malformed_json"),
        (b'{"easting":NaN}', "malformed_json"),
        (b'{"name":"\\ud800"}', "malformed_json"),
        (b'{"name":"\xff"}', "malformed_json"),
        (b"[]", "not_an_object"),
        (b'"litter"', "not_an_object"),
        (b"null", "not_an_object"),
        (_TOO_DEEP, "too_deep"),
        (b"[" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
        (b'{"category":"litter","category":"blocked"}', "duplicate_key"),
        (b'{"asset":{"uprn":"1","uprn":"2"}}', "duplicate_key"),
        (b'{"notes":[{"text":"a","\\u0074ext":"b"}]}', "duplicate_key"),
    ],
)
def test_what_is_no_sound_object_is_refused_by_its_own_code(body: bytes, code: str) -> None:
    """Bad JSON, doubled fields, too much depth and anything but an object are 400 with a code of their own."""
    with pytest.raises(Problem) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.code) == (400, code)


def test_a_doubled_field_is_named_when_its_name_is_harmless() -> None:
    """The field at fault is named; a name that could be anything from outside is not repeated."""
    with pytest.raises(Problem) as caught:
        parse_object(b'{"category":"litter","category":"litter"}')
    assert caught.value.field == "category"
    with pytest.raises(Problem) as caught:
        parse_object(b'{"Mrs Pat Example":1,"Mrs Pat Example":2}')
    assert caught.value.field is None


def test_the_deepest_allowed_object_is_taken() -> None:
    """The limit is a limit, not an approximation."""
    assert parse_object(_DEEP_ENOUGH)["a"]


_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda below: st.lists(below, max_size=4) | st.dictionaries(st.text(max_size=8), below, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(max_size=8), _VALUES, max_size=4))
def test_every_sound_object_is_taken_unchanged(value: dict[str, Any]) -> None:
    """Whatever another program writes as one JSON object comes in as it was."""
    try:
        body = orjson.dumps(value)
    except TypeError:
        return
    assert parse_object(body) == orjson.loads(body)


@given(st.binary(max_size=200))
def test_no_bytes_raise_anything_but_a_problem(body: bytes) -> None:
    """A body of any bytes is either an object or a refusal."""
    with contextlib.suppress(Problem):
        assert isinstance(parse_object(body), dict)


@pytest.mark.parametrize("name", ["", "a b", "Ő", "x" * 65, "a\n", "<script>"])
def test_a_name_that_could_be_anything_is_not_repeated(name: str) -> None:
    """Only what looks like a field's name is put into an answer."""
    assert shown_name(name) is None
