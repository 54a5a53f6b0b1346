"""Lookups by HTTP: the answer's bytes and headers, and every way of asking wrongly."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache.answer import AsOf
from cache.silo import SiloUnavailable
from gateway.dev.addresses import Servers
from tests.integration.edge import NINO, Edge, found, gateway_schema, problem_of, running_edge

ADDRESSES = "/v1/lookups/addresses-by-postcode"
NEAR = "/v1/lookups/assets-near"
CLAIM = "/v1/lookups/claim-already-open"
QUESTION = {"nino": NINO, "date_of_birth": "31/01/1980"}


@pytest.fixture(scope="module")
async def module_edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with (
        gateway_schema(servers) as url,
        running_edge(url, tmp_path_factory.mktemp("edge"), lookup_timeout=1.0) as edge,
    ):
        yield edge


@pytest.fixture
def edge(module_edge: Edge) -> Edge:
    """The same with a double that has been asked nothing yet."""
    module_edge.double.answer_with, module_edge.double.error, module_edge.double.delay_s = found(), None, 0.0
    module_edge.double.asked.clear()
    return module_edge


async def test_an_answer_is_the_stored_bytes_in_their_envelope(edge: Edge) -> None:
    """Results go out byte for byte; verdict and as-of are joined to them."""
    edge.double.answer_with = found(results=b'[{"uprn":900001.0,  "address":"1 Crabtree Lane"}]')
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "bn159jb"})
    assert answer.status == 200
    assert await answer.read() == (
        b'{"lookup":"addresses-by-postcode","verdict":"found",'
        b'"as_of":{"token":"addresses:5f0c91aa:118","time":"2026-11-22T18:05:09.123Z"},'
        b'"results":[{"uprn":900001.0,  "address":"1 Crabtree Lane"}]}'
    )
    assert edge.double.asked == [{"postcode": "BN15 9JB"}]


async def test_an_answer_says_how_new_it_is(edge: Edge) -> None:
    """Age, cache status, as-of, bound and cache policy are headers."""
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"})
    expected = {
        "Age": "0",
        "Cache-Control": "private, max-age=60",
        "Cache-Status": "Silogate; hit",
        "Content-Type": "application/json",
        "ETag": 'W/"9b1c4e0d7a2f6835"',
        "Silogate-As-Of": "addresses:5f0c91aa:118",
        "Silogate-Staleness-Bound-Ms": "412",
        "Vary": "Authorization",
        "X-Content-Type-Options": "nosniff",
    }
    assert {name: answer.headers.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [("miss", "Silogate; fwd=uri-miss"), ("stale", "Silogate; hit; detail=stale"), ("bypass", "Silogate; fwd=bypass")],
)
async def test_cache_status_says_how_the_cache_was_used(edge: Edge, source: str, expected: str) -> None:
    """RFC 9211, for each way an answer can come about."""
    edge.double.answer_with = found(source=source, age_s=7.9, staleness_bound_ms=None)
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"})
    assert (answer.headers["Cache-Status"], answer.headers["Age"]) == (expected, "7")
    assert "Silogate-Staleness-Bound-Ms" not in answer.headers


@pytest.mark.parametrize("header", ['W/"9b1c4e0d7a2f6835"', '"9b1c4e0d7a2f6835"', 'W/"0", W/"9b1c4e0d7a2f6835"', "*"])
async def test_a_client_that_holds_the_answer_gets_304(edge: Edge, header: str) -> None:
    """Weak comparison, lists and the star; the headers come without a body."""
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"}, headers={"If-None-Match": header})
    assert (answer.status, await answer.read()) == (304, b"")
    assert answer.headers["ETag"] == 'W/"9b1c4e0d7a2f6835"'
    assert answer.headers["Silogate-As-Of"] == "addresses:5f0c91aa:118"


async def test_another_etag_gets_the_answer(edge: Edge) -> None:
    """An ETag of something else is no reason for 304."""
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"}, headers={"If-None-Match": 'W/"0"'})
    assert answer.status == 200


async def test_a_doubtful_answer_says_why(edge: Edge) -> None:
    """`cannot_tell` carries its reason, and no client keeps it."""
    edge.double.answer_with = found(verdict="cannot_tell", results=b"[]", reason="too_old", age_s=float("inf"))
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"})
    body = await answer.json()
    assert (answer.headers["Cache-Control"], answer.headers["Age"]) == ("no-store", "2147483647")
    assert (body["verdict"], body["reason"], body["results"]) == ("cannot_tell", "too_old", [])


async def test_an_optional_parameter_may_be_left_out(edge: Edge) -> None:
    """It reaches the silo as null; numbers come from the query as text."""
    answer = await edge.ask("GET", NEAR, params={"easting": "518225", "northing": "104730.5"})
    assert answer.status == 200
    assert edge.double.asked == [{"easting": 518225.0, "northing": 104730.5, "uprn": None}]


@pytest.mark.parametrize(
    ("path", "query", "expected"),
    [
        ("/v1/lookups/bin-days", "", (404, "unknown_lookup", "name")),
        (ADDRESSES, "", (400, "missing_parameter", "postcode")),
        (ADDRESSES, "postcode=", (400, "missing_parameter", "postcode")),
        (ADDRESSES, "postcode=BN15", (400, "malformed_postcode", "postcode")),
        (ADDRESSES, "postcode=BN15+9JB&town=Lancing", (400, "unknown_parameter", "town")),
        (ADDRESSES, "postcode=BN15+9JB&%3Cb%3E=1", (400, "unknown_parameter", None)),
        (ADDRESSES, "postcode=BN15+9JB&postcode=BN15+9JA", (400, "repeated_parameter", "postcode")),
        (ADDRESSES, "postcode=" + "B" * 300, (400, "malformed_postcode", "postcode")),
        (ADDRESSES, "postcode=BN15%009JB", (400, "malformed_postcode", "postcode")),
        (NEAR, "easting=x&northing=1", (400, "malformed_easting", "easting")),
        (NEAR, "easting=1e999&northing=1", (400, "malformed_easting", "easting")),
        (NEAR, "easting=700001&northing=1", (400, "malformed_easting", "easting")),
    ],
)
async def test_a_wrong_question_is_named_and_never_asked(
    edge: Edge, path: str, query: str, expected: tuple[int, str, str | None]
) -> None:
    """Unknown lookup, missing, malformed, unknown and repeated parameters each have their code and field."""
    assert await problem_of(await edge.ask("GET", f"{path}?{query}")) == expected
    assert edge.double.asked == []


async def test_a_client_may_ask_to_be_no_older_than_before(edge: Edge) -> None:
    """The token of an earlier answer is passed on; anything else is refused."""
    asked = {"postcode": "BN15 9JB"}
    token = {"Silogate-Min-As-Of": "addresses:5f0c91aa:119"}
    assert (await edge.ask("GET", ADDRESSES, headers=token, params=asked)).status == 200
    assert edge.double.min_as_of == AsOf("addresses", "5f0c91aa", 119)
    for header in ("addresses", "claims:5f0c91aa:119", "addresses:5f0c91aa:-1", "a:b:c:d"):
        answer = await edge.ask("GET", ADDRESSES, headers={"Silogate-Min-As-Of": header}, params=asked)
        assert await problem_of(answer) == (400, "malformed_as_of", "Silogate-Min-As-Of")


async def test_a_silo_that_cannot_answer_is_503_with_retry_after(edge: Edge) -> None:
    """Nothing could answer before the deadline."""
    edge.double.error = SiloUnavailable("addresses")
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"})
    assert await problem_of(answer) == (503, "silo_unavailable", None)
    assert answer.headers["Retry-After"] == "1"


async def test_one_deadline_bounds_the_whole_request(edge: Edge) -> None:
    """The lookup is told how much time is left, and is left behind when it takes longer."""
    edge.double.delay_s = 30
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"})
    assert await problem_of(answer) == (503, "deadline_exceeded", None)
    assert 0.5 < edge.double.timeout_s < 1.0


async def test_a_fault_of_ours_gives_nothing_away(edge: Edge) -> None:
    """500 with a correlation id, and not a word of what went wrong."""
    edge.double.error = RuntimeError("relation claims.claim does not exist at 10.0.0.5")
    answer = await edge.ask("GET", ADDRESSES, params={"postcode": "BN15 9JB"})
    text = await answer.text()
    assert await problem_of(answer) == (500, "internal_error", None)
    assert "claims" not in text
    assert "10.0.0.5" not in text


async def test_a_personal_lookup_is_asked_in_the_body_only(edge: Edge) -> None:
    """POST answers and may not be stored; GET is 405 with the way to do it, and asks nothing."""
    answer = await edge.ask("POST", CLAIM, json=QUESTION, key="personal")
    assert answer.status == 200
    assert answer.headers["Cache-Control"] == "private, no-store"
    assert "ETag" not in answer.headers
    assert edge.double.asked[0]["nino"] == NINO
    edge.double.asked.clear()
    answer = await edge.ask("GET", CLAIM, params=QUESTION, key="personal")
    assert await problem_of(answer) == (405, "personal_lookup", "name")
    assert answer.headers["Allow"] == "POST"
    assert NINO not in await answer.text()
    assert edge.double.asked == []


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"json": {}}, (400, "missing_parameter", "nino")),
        ({"json": {**QUESTION, "nino": "QQ12345"}}, (400, "malformed_nino", "nino")),
        ({"json": {**QUESTION, "nino": 7}}, (400, "malformed_nino", "nino")),
        ({"json": {**QUESTION, "nino": {"$ne": ""}}}, (400, "malformed_nino", "nino")),
        ({"json": {**QUESTION, "date_of_birth": "1980-02-31"}}, (400, "malformed_date", "date_of_birth")),
        ({"json": {**QUESTION, "surname": "Quill"}}, (400, "unknown_parameter", "surname")),
        ({"json": [QUESTION]}, (400, "not_an_object", "")),
        ({"data": b"nino=QQ123456C"}, (415, "unsupported_media_type", "Content-Type")),
    ],
)
async def test_a_wrong_personal_question_is_named_and_not_repeated(
    edge: Edge, sent: dict[str, Any], expected: tuple[int, str, str | None]
) -> None:
    """The field is named, its value is not."""
    answer = await edge.ask("POST", CLAIM, key="personal", **sent)
    assert await problem_of(answer) == expected
    assert NINO not in await answer.text()
    assert edge.double.asked == []


async def test_a_public_lookup_may_be_asked_in_the_body_too(edge: Edge) -> None:
    """A client that prefers POST is answered alike."""
    answer = await edge.ask("POST", ADDRESSES, json={"postcode": "BN15 9JB"})
    assert (await answer.json())["verdict"] == "found"


async def test_the_list_shows_what_this_key_may_ask(edge: Edge) -> None:
    """The wildcard opens public lookups; a personal one must be named; a key without scopes sees an empty list."""
    names = {}
    for key in ("form", "personal", "nothing"):
        body = await (await edge.ask("GET", "/v1/lookups", key=key)).json()
        names[key] = {item["name"]: item["method"] for item in body["lookups"]}
    assert names == {
        "form": {"addresses-by-postcode": "GET", "assets-near": "GET"},
        "personal": {"claim-already-open": "POST"},
        "nothing": {},
    }
