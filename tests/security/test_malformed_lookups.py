"""Whatever stands in whichever parameter of whichever lookup: it is refused by its name, and nobody is asked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from gateway.context import EdgeOptions
from gateway.declarations import LookupDeclaration
from gateway.dev.addresses import Servers
from gateway.integrations import read_folders
from gateway.limits import DEFAULT_RATES, RateClass
from tests.integration.edge import Double, Edge, found, gateway_schema, running_edge

_DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
_LOOKUPS = {
    lookup.name: lookup
    for integration in read_folders(_DEPLOY / "integrations", _DEPLOY / "silos").integrations
    for lookup in integration.lookups
}
_PLACES = [(lookup, parameter) for lookup in _LOOKUPS.values() for parameter in lookup.parameters]
# As JSON; those that are text are sent in the query as well. None of them is a value of any type that is declared.
_MALFORMED: dict[str, Any] = {
    "nothing": "",
    "null": None,
    "spaces": " \t\N{NO-BREAK SPACE}",
    "unseen characters": "\N{ZERO WIDTH SPACE}\N{ZERO WIDTH JOINER}",
    "NUL": "BN15\x00 9JB",
    "the last code point": "\U0010ffff",
    "too long": "9" * 257,
    "very long": "x" * 20_000,
    "an object": {"$ne": ""},
    "a list": ["BN15 9JB"],
    "a truth": True,
    "SQL after the value": "1; drop table address; --",
    "SQL in the value": "' or '1'='1",
    "a key of Redis": "1\r\nFLUSHALL\r\n*",
    "another epoch's key": "silogate:{assets}:lk:x",
    "not a number": "NaN",
    "endless": "-Infinity",
    "beyond every range": "1e308",
    "a number of digits of elsewhere": "\u0663\u0661",
    "a huge number": 10**40,
}
# Text that a type of free text would take, and numbers that a type of numbers would.
_TAKES: dict[str, frozenset[str]] = {
    "prefix": frozenset(
        {"SQL after the value", "SQL in the value", "a key of Redis", "another epoch's key", "not a number", "endless",
         "beyond every range", "a number of digits of elsewhere", "too long"}
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge with every lookup that we ship; what answers them remembers what it was asked."""
    double = Double(found())
    # only what is malformed is refused here
    rates = dict.fromkeys(DEFAULT_RATES, RateClass(per_second=10_000, burst=10_000))
    async with (
        gateway_schema(servers) as url,
        running_edge(
            url,
            tmp_path_factory.mktemp("edge"),
            answering={name: (one, double) for name, one in _LOOKUPS.items()},
            options=EdgeOptions(rates=rates),
        ) as edge,
    ):
        edge.tokens["every"] = await edge.context.keys.add("every", [lookup.scope for lookup in _LOOKUPS.values()])
        edge.double = double
        yield edge


def _wrong(lookup: LookupDeclaration, parameter: str) -> dict[str, Any]:
    kind = lookup.parameters[parameter].type.name
    taken = _TAKES.get(kind, frozenset()) - {"too long"}
    return {label: value for label, value in _MALFORMED.items() if label not in taken}


@pytest.mark.parametrize(("lookup", "parameter"), _PLACES, ids=[f"{one.name}-{name}" for one, name in _PLACES])
async def test_a_malformed_value_is_refused_by_its_name_and_asks_nobody(
    edge: Edge, lookup: LookupDeclaration, parameter: str
) -> None:
    """In a body and in an address: 400 with the parameter as its field, and not a word of the value."""
    sound = {name: one.example for name, one in lookup.parameters.items()}
    for label, value in _wrong(lookup, parameter).items():
        text = json.dumps({**sound, parameter: value})
        headers = {"Content-Type": "application/json"}
        body = await edge.ask("POST", f"/v1/lookups/{lookup.name}", key="every", data=text, headers=headers)
        problem = await body.json(content_type=None)
        assert (body.status, problem["field"]) == (400, parameter), label
        assert problem["code"].startswith(("malformed_", "missing_")), label
        if isinstance(value, str) and len(value) > 3:
            assert value not in await body.text()
        if isinstance(value, str) and not lookup.personal and len(value) < 4_000:
            query = {name: str(given) for name, given in {**sound, parameter: value}.items()}
            address = await edge.ask("GET", f"/v1/lookups/{lookup.name}", key="every", params=query)
            assert (address.status, (await address.json(content_type=None))["field"]) == (400, parameter), label
    assert edge.double.asked == []


@pytest.mark.parametrize("lookup", _LOOKUPS.values(), ids=_LOOKUPS)
async def test_what_is_no_question_asks_nobody(edge: Edge, lookup: LookupDeclaration) -> None:
    """Unknown, repeated and missing parameters, half a surrogate, and a body that is too large."""
    sound = {name: one.example for name, one in lookup.parameters.items()}
    path, first = f"/v1/lookups/{lookup.name}", next(iter(sound))
    headers = {"Content-Type": "application/json"}
    body = orjson.dumps(sound)
    sent: list[tuple[bytes, tuple[int, ...]]] = [
        (orjson.dumps({**sound, "sg1": 1}), (400,)),
        (orjson.dumps({name: value for name, value in sound.items() if name != first}), (400,)),
        (body[:-1] + b',"' + first.encode() + b'":1}', (400,)),
        (b'{"' + first.encode() + b'":"\\ud800"}', (400,)),
        (b'{"' + first.encode() + b'":"\xff"}', (400,)),
        (b'{"' + first.encode() + b'":' + b"[" * 5000 + b"]" * 5000 + b"}", (400,)),
        (b'{"' + first.encode() + b'":"' + b"x" * (300 * 1024) + b'"}', (413,)),
        (body + b"{}", (400,)),
    ]
    for given, expected in sent:
        answer = await edge.ask("POST", path, key="every", data=given, headers=headers)
        assert answer.status in expected, given[:80]
    if not lookup.personal:
        query = [(name, str(value)) for name, value in sound.items()]
        for more in ([(first, "1")], [("sg1", "1")], [("", "1")]):
            answer = await edge.ask("GET", path, key="every", params=query + more)
            assert answer.status == 400
    assert edge.double.asked == []


async def test_a_sound_question_is_asked(edge: Edge) -> None:
    """The examples that we show are taken, so the refusals above are refusals of the values."""
    for lookup in _LOOKUPS.values():
        sound = {name: one.example for name, one in lookup.parameters.items()}
        answer = await edge.ask("POST", f"/v1/lookups/{lookup.name}", key="every", json=sound)
        assert answer.status == 200, await answer.text()
    assert len(edge.double.asked) == len(_LOOKUPS)
