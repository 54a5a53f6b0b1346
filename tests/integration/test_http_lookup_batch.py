"""Several lookups in one request: asked together, each with its own answer, refusal, token and audit row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError

from cache.answer import Answer, AsOf
from cache.silo import SiloUnavailable
from gateway.api.lookup_batch import MOST_LOOKUPS
from gateway.audit import AuditUnavailable, Row
from gateway.context import EdgeOptions
from gateway.dev.addresses import Servers
from gateway.limits import DEFAULT_RATES, RateClass
from gateway.schemas import SCHEMAS
from tests.integration.edge import LOOKUPS, NINO, Edge, found, gateway_schema, problem_of, running_edge

PATH = "/v1/lookups:batch"
ADDRESSES = {"lookup": "addresses-by-postcode", "parameters": {"postcode": "bn159jb"}}
NEAR = {"lookup": "assets-near", "parameters": {"easting": 518225, "northing": 104730}}
CLAIM = {"lookup": "claim-already-open", "parameters": {"nino": NINO, "date_of_birth": "1980-01-31"}}


class Together:
    """Answers when as many are asked as were expected, and not before."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.min_as_of: list[AsOf | None] = []
        self.expected = 1
        self.error: Exception | None = None
        self.delay_s = 0.0
        self._all = asyncio.Event()

    async def answer(self, parameters: Mapping[str, Any], *, timeout_s: float, min_as_of: AsOf | None = None) -> Answer:
        self.asked.append(dict(parameters))
        self.min_as_of.append(min_as_of)
        if len(self.asked) >= self.expected:
            self._all.set()
        await asyncio.wait_for(self._all.wait(), 5)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return found(results=b'[{"uprn":900001.0,  "address":"1 Crabtree Lane"}]')


@pytest.fixture(scope="module")
async def module_edge(
    servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Edge, dict[str, Together]]]:
    """The edge with one double a lookup, over a database of this module's own."""
    doubles = {name: Together() for name in LOOKUPS}
    async with (
        gateway_schema(servers) as url,
        running_edge(
            url,
            tmp_path_factory.mktemp("edge"),
            lookup_timeout=1.0,
            answering={name: (declared, doubles[name]) for name, declared in LOOKUPS.items()},
        ) as edge,
    ):
        yield edge, doubles


@pytest.fixture
def doubles(module_edge: tuple[Edge, dict[str, Together]]) -> dict[str, Together]:
    """The doubles, asked nothing yet."""
    for double in module_edge[1].values():
        double.__init__()  # type: ignore[misc]
    return module_edge[1]


@pytest.fixture
def edge(module_edge: tuple[Edge, dict[str, Together]], doubles: dict[str, Together]) -> Edge:
    """The edge over doubles that were asked nothing yet."""
    assert doubles
    return module_edge[0]


async def _key(edge: Edge, *scopes: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {await edge.context.keys.add('batch', scopes)}"}


async def _ask(edge: Edge, *questions: object, headers: dict[str, str] | None = None) -> list[dict[str, Any]]:
    answer = await edge.ask("POST", PATH, json={"lookups": questions}, headers=headers or {})
    assert answer.status == 200, await answer.text()
    assert answer.headers["Cache-Control"] == "no-store"
    answers: list[dict[str, Any]] = (await answer.json())["answers"]
    assert len(answers) == len(questions)
    return answers


async def test_questions_are_asked_together_and_answered_in_their_order(
    edge: Edge, doubles: dict[str, Together]
) -> None:
    """No question waits for the one before it, and the results go out byte for byte."""
    doubles["addresses-by-postcode"].expected = 2
    body = {"lookups": [ADDRESSES, NEAR, ADDRESSES]}
    answer = await edge.ask("POST", PATH, json=body)
    text = (await answer.read()).decode()
    assert text.count('"results":[{"uprn":900001.0,  "address":"1 Crabtree Lane"}]') == 3
    answers = (await answer.json())["answers"]
    assert [one["answer"]["lookup"] for one in answers] == [
        "addresses-by-postcode",
        "assets-near",
        "addresses-by-postcode",
    ]
    assert answers[0] == {
        "status": 200,
        "age": 0,
        "staleness_bound_ms": 412,
        "answer": {
            "lookup": "addresses-by-postcode",
            "verdict": "found",
            "as_of": {"token": "addresses:5f0c91aa:118", "time": "2026-11-22T18:05:09.123Z"},
            "results": [{"uprn": 900001, "address": "1 Crabtree Lane"}],
        },
    }
    assert doubles["addresses-by-postcode"].asked == [{"postcode": "BN15 9JB"}] * 2


async def test_each_question_is_refused_for_itself(edge: Edge, doubles: dict[str, Together]) -> None:
    """By a pointer into the request; what is well asked is answered beside it."""
    doubles["assets-near"].error = SiloUnavailable("town")
    answers = await _ask(
        edge,
        {"lookup": "bin-days"},
        {"lookup": "addresses-by-postcode", "parameters": {"postcode": "BN15"}},
        {"lookup": "addresses-by-postcode"},
        {"lookup": "addresses-by-postcode", "parameters": {"postcode": "BN15 9JB", "town": "Lancing"}},
        {"lookup": "addresses-by-postcode", "parameters": {"postcode": "BN15 9JB", "Avery Quill": 1}},
        CLAIM,
        NEAR,
        {**ADDRESSES, "min_as_of": "town"},
        ADDRESSES,
    )
    said = [(one["status"], one["problem"]["code"], one["problem"].get("field")) for one in answers[:8]]
    assert said == [
        (404, "unknown_lookup", "/lookups/0/lookup"),
        (400, "malformed_postcode", "/lookups/1/parameters/postcode"),
        (400, "missing_parameter", "/lookups/2/parameters/postcode"),
        (400, "unknown_parameter", "/lookups/3/parameters/town"),
        (400, "unknown_parameter", "/lookups/4/parameters"),
        (403, "forbidden", "/lookups/5/lookup"),
        (503, "silo_unavailable", None),
        (400, "malformed_as_of", "/lookups/7/min_as_of"),
    ]
    for one in answers[:8]:
        assert one["problem"]["type"] == "urn:silogate:problem:" + one["problem"]["code"]
        assert one["problem"]["correlation_id"]
    assert answers[8]["answer"]["verdict"] == "found"
    assert "Quill" not in str(answers)
    assert NINO not in str(answers)
    assert doubles["claim-already-open"].asked == []
    assert len(doubles["addresses-by-postcode"].asked) == 1


async def test_every_personal_question_leaves_its_own_audit_row(edge: Edge, doubles: dict[str, Together]) -> None:
    """One a question, whatever became of it; public ones leave none, and a batch without them none at all."""
    personal = await _key(edge, "lookups:claim-already-open", "lookups:addresses-by-postcode")
    before = len(await edge.audit_rows())
    await _ask(edge, ADDRESSES, headers=personal)
    assert len(await edge.audit_rows()) == before
    again = {**CLAIM, "parameters": {"nino": "qq 76 54 32 a", "date_of_birth": "31/01/1980"}}
    wrong = {**CLAIM, "parameters": {"nino": "nonsense", "date_of_birth": "31/01/1980"}}
    await _ask(edge, CLAIM, ADDRESSES, again, wrong, NEAR, headers=personal)
    doubles["claim-already-open"].error = SiloUnavailable("claims")
    await _ask(edge, CLAIM, headers=personal)
    await _ask(edge, CLAIM)
    rows = (await edge.audit_rows())[before:]
    assert sorted((row["action"], row["outcome"]) for row in rows[:3]) == [
        ("lookup.claim-already-open", "found"),
        ("lookup.claim-already-open", "found"),
        ("lookup.claim-already-open", "malformed_nino"),
    ]
    assert [row["outcome"] for row in rows[3:]] == ["silo_unavailable", "forbidden"]
    assert len({row["correlation_id"] for row in rows[:3]}) == 1
    subjects = {row["subject"] for row in rows if row["outcome"] in ("found", "silo_unavailable")}
    assert len(subjects) == 1
    assert subjects != {"-"}
    assert NINO not in str([tuple(row) for row in rows])


async def test_no_personal_answer_goes_out_without_its_row(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the audit log cannot be written; the public question beside it is answered."""

    async def unwritten(**_: object) -> None:
        raise AuditUnavailable("the database is away")

    personal = await _key(edge, "lookups:claim-already-open", "lookups:addresses-by-postcode")
    monkeypatch.setattr(edge.context.audit, "record", unwritten)
    answers = await _ask(edge, CLAIM, ADDRESSES, headers=personal)
    assert (answers[0]["status"], answers[0]["problem"]["code"]) == (503, "audit_unavailable")
    assert "answer" not in answers[0]
    assert answers[1]["answer"]["verdict"] == "found"


async def test_the_wildcard_opens_no_personal_question_in_a_batch_either(edge: Edge) -> None:
    """The refusal is the same whether the silo has something or not."""
    answers = await _ask(edge, CLAIM, headers=await _key(edge, "lookups:*"))
    assert [(one["status"], one["problem"]["code"]) for one in answers] == [(403, "forbidden")]


async def test_one_deadline_bounds_all_of_them(edge: Edge, doubles: dict[str, Together]) -> None:
    """A lookup that takes too long costs the others nothing, and leaves its audit row all the same."""
    personal = await _key(edge, "lookups:claim-already-open", "lookups:*")
    doubles["claim-already-open"].delay_s = 30
    before = len(await edge.audit_rows())
    started = time.monotonic()
    answers = await _ask(edge, CLAIM, ADDRESSES, headers=personal)
    assert time.monotonic() - started < 1.5
    assert (answers[0]["status"], answers[0]["problem"]["code"]) == (503, "deadline_exceeded")
    assert answers[1]["answer"]["verdict"] == "found"
    assert [row["outcome"] for row in (await edge.audit_rows())[before:]] == ["deadline_exceeded"]


async def test_a_fault_of_ours_is_one_questions_and_gives_nothing_away(
    edge: Edge, doubles: dict[str, Together]
) -> None:
    """Even what nobody expected leaves the other answers alone."""
    doubles["assets-near"].error = RuntimeError("relation claims.claim does not exist at 10.0.0.5")
    answers = await _ask(edge, NEAR, ADDRESSES)
    assert (answers[0]["status"], answers[0]["problem"]["code"]) == (500, "internal_error")
    assert "claims" not in str(answers)
    assert answers[1]["status"] == 200


async def test_each_question_takes_the_token_of_its_own_silo(edge: Edge, doubles: dict[str, Together]) -> None:
    """One token, or all that the client holds; two of one silo, or only others', are refused."""
    held = ["addresses:5f0c91aa:119", "assets:77a0b1c2:4"]
    await _ask(edge, {**ADDRESSES, "min_as_of": held}, {**NEAR, "min_as_of": held}, {**ADDRESSES, "min_as_of": held[0]})
    assert doubles["addresses-by-postcode"].min_as_of == [AsOf("addresses", "5f0c91aa", 119)] * 2
    assert doubles["assets-near"].min_as_of == [AsOf("assets", "77a0b1c2", 4)]
    answers = await _ask(
        edge,
        {**ADDRESSES, "min_as_of": held[1]},
        {**ADDRESSES, "min_as_of": [held[0], "addresses:5f0c91aa:120"]},
        {**ADDRESSES, "min_as_of": [held[0], "nonsense"]},
    )
    assert {one["problem"]["code"] for one in answers} == {"malformed_as_of"}


WRONG: list[tuple[Any, tuple[int, str, str | None]]] = [
    ({}, (422, "invalid_document", "/lookups")),
    ({"lookups": []}, (422, "invalid_document", "/lookups")),
    ({"lookups": [ADDRESSES] * (MOST_LOOKUPS + 1)}, (422, "invalid_document", "/lookups")),
    ({"lookups": {"0": ADDRESSES}}, (422, "invalid_document", "/lookups")),
    ({"lookups": [ADDRESSES], "timeout": 1}, (422, "invalid_document", "/timeout")),
    ({"lookups": [ADDRESSES], "Avery Quill": 1}, (422, "invalid_document", "")),
    ({"lookups": [ADDRESSES, "addresses"]}, (422, "invalid_document", "/lookups/1")),
    ({"lookups": [{"parameters": {}}]}, (422, "invalid_document", "/lookups/0/lookup")),
    ({"lookups": [{**ADDRESSES, "parameters": []}]}, (422, "invalid_document", "/lookups/0/parameters")),
    ({"lookups": [{**ADDRESSES, "postcode": "BN15 9JB"}]}, (422, "invalid_document", "/lookups/0/postcode")),
    ({"lookups": [{**ADDRESSES, "min_as_of": 7}]}, (422, "invalid_document", "/lookups/0/min_as_of")),
    ({"lookups": [{**ADDRESSES, "min_as_of": ["a:b:1"] * 21}]}, (422, "invalid_document", "/lookups/0/min_as_of")),
    ([ADDRESSES], (400, "not_an_object", "")),
]


@pytest.mark.parametrize(("body", "expected"), WRONG)
async def test_a_request_that_is_no_list_of_questions_asks_nothing(
    edge: Edge, doubles: dict[str, Together], body: Any, expected: tuple[int, str, str | None]
) -> None:
    """The place is named, and not a single one of its questions is asked."""
    assert await problem_of(await edge.ask("POST", PATH, json=body)) == expected
    assert not [double for double in doubles.values() if double.asked]


def test_the_described_limit_is_the_one_that_is_kept() -> None:
    """The description's number of questions is that of the code."""
    assert SCHEMAS["LookupBatch"]["properties"]["lookups"]["maxItems"] == MOST_LOOKUPS


async def test_each_question_takes_from_the_rate_of_its_lookup(servers: Servers, tmp_path: Path) -> None:
    """One request cannot ask what a key may not ask one by one, and a strict lookup leaves the others their rate."""
    strict = replace(LOOKUPS["claim-already-open"], rate="strict")
    doubles = {name: Together() for name in LOOKUPS}
    answering = {name: (declared, doubles[name]) for name, declared in LOOKUPS.items()}
    answering["claim-already-open"] = strict, doubles["claim-already-open"]
    rates = {**DEFAULT_RATES, "strict": RateClass(per_second=0.001, burst=3)}
    async with (
        gateway_schema(servers) as url,
        running_edge(url, tmp_path, options=EdgeOptions(rates=rates), answering=answering) as edge,
    ):
        personal = await _key(edge, "lookups:claim-already-open", "lookups:*")
        single = await edge.public.post("/v1/lookups/claim-already-open", json=CLAIM["parameters"], headers=personal)
        assert single.status == 200
        answers = await _ask(edge, *[CLAIM] * 4, ADDRESSES, headers=personal)
        assert [one["status"] for one in answers] == [200, 200, 429, 429, 200]
        assert answers[2]["problem"]["code"] == "rate_limited"
        refused = await edge.public.post("/v1/lookups/claim-already-open", json=CLAIM["parameters"], headers=personal)
        assert await problem_of(refused) == (429, "rate_limited", None)
        assert edge.metric("silogate_http_rate_limited_total", rate_class="strict") == 3
        assert (
            await edge.public.get("/v1/lookups/addresses-by-postcode?postcode=BN15+9JB", headers=personal)
        ).status == 200


async def test_a_refused_key_writes_no_more_into_the_audit_log_than_its_rate(servers: Servers, tmp_path: Path) -> None:
    """A key without the scope spends tokens too, and a question for which there was none leaves no row."""
    claims = replace(LOOKUPS["claim-already-open"], rate="strict")
    answering = {"claim-already-open": (claims, Together())}
    rates = {**DEFAULT_RATES, "strict": RateClass(per_second=0.001, burst=3)}
    async with (
        gateway_schema(servers) as url,
        running_edge(url, tmp_path, options=EdgeOptions(rates=rates), answering=answering) as edge,
    ):
        stranger = await _key(edge)
        codes = [one["problem"]["code"] for one in await _ask(edge, *[CLAIM] * 5, headers=stranger)]
        assert codes == ["forbidden"] * 3 + ["rate_limited"] * 2
        await _ask(edge, *[CLAIM] * MOST_LOOKUPS, headers=stranger)
        assert [row["outcome"] for row in await edge.audit_rows()] == ["forbidden"] * 3
        permitted = await _key(edge, "lookups:claim-already-open")
        await _ask(edge, *[CLAIM] * 5, headers=permitted)
        assert [row["outcome"] for row in await edge.audit_rows()] == ["forbidden"] * 3 + ["found"] * 3


class _Held:
    """The database holds every commit of the audit log while the gate is shut."""

    def __init__(self, edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = asyncio.Event()
        self._commit = edge.context.audit._commit
        monkeypatch.setattr(edge.context.audit, "_commit", self.commit)

    async def commit(self, rows: list[Row]) -> None:
        await self.gate.wait()
        await self._commit(rows)


async def _rows_after(edge: Edge, before: int, expected: int) -> list[Any]:
    async with asyncio.timeout(10):
        while len(rows := (await edge.audit_rows())[before:]) < expected:
            await asyncio.sleep(0.02)
    return rows


async def test_a_slow_audit_log_takes_only_the_answer_whose_row_it_holds(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The public question beside it is answered before the deadline; the row is written later, and once."""
    personal = await _key(edge, "lookups:claim-already-open", "lookups:*")
    before = len(await edge.audit_rows())
    held = _Held(edge, monkeypatch)
    answers = await _ask(edge, ADDRESSES, CLAIM, headers=personal)
    held.gate.set()
    assert answers[0]["answer"]["verdict"] == "found"
    assert (answers[1]["status"], answers[1]["problem"]["code"]) == (503, "audit_unavailable")
    assert "answer" not in answers[1]
    await _ask(edge, CLAIM, headers=personal)
    assert [row["outcome"] for row in await _rows_after(edge, before, 2)] == ["found", "found"]


async def test_a_question_that_is_cut_off_leaves_its_row(edge: Edge, doubles: dict[str, Together]) -> None:
    """As when a process ends before it is answered: one row for each personal question, none for the public one."""
    personal = await _key(edge, "lookups:claim-already-open", "lookups:*")
    before = len(await edge.audit_rows())
    doubles["claim-already-open"].expected = 3
    asked = asyncio.create_task(
        edge.ask("POST", PATH, json={"lookups": [CLAIM, ADDRESSES, CLAIM]}, headers=personal), name="asked"
    )
    await until_asked(doubles["claim-already-open"], 2)
    edge.cut_off()
    with pytest.raises(ClientError):
        await asked
    rows = await _rows_after(edge, before, 2)
    assert [(row["action"], row["outcome"]) for row in rows] == [("lookup.claim-already-open", "cancelled")] * 2
    assert len({row["subject"] for row in rows} - {"-"}) == 1
    await _ask(edge, CLAIM, headers=personal)
    assert [row["outcome"] for row in await _rows_after(edge, before, 3)] == ["cancelled", "cancelled", "found"]


async def test_a_question_that_is_cut_off_while_its_row_is_written_leaves_no_second_one(
    edge: Edge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row that says what was found stands."""
    personal = await _key(edge, "lookups:claim-already-open")
    before = len(await edge.audit_rows())
    held = _Held(edge, monkeypatch)
    asked = asyncio.create_task(edge.ask("POST", PATH, json={"lookups": [CLAIM]}, headers=personal))
    async with asyncio.timeout(10):
        while not edge.metric("silogate_audit_queue") and not asked.done():
            await asyncio.sleep(0)
    edge.cut_off()
    with pytest.raises(ClientError):
        await asked
    held.gate.set()
    await _ask(edge, CLAIM, headers=personal)
    assert [row["outcome"] for row in await _rows_after(edge, before, 2)] == ["found", "found"]


async def until_asked(double: Together, times: int) -> None:
    """Waits until the double has that many questions before it."""
    async with asyncio.timeout(10):
        while len(double.asked) < times:
            await asyncio.sleep(0.01)
