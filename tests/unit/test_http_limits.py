"""Token buckets, gates, and problems."""

from __future__ import annotations

import asyncpg
import orjson
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry, Counter

from cache.silo import SiloUnavailable
from cache.values import VALUE_TYPES, Malformed
from gateway.limits import Buckets, Gate, RateClass
from gateway.problems import CODES, Problem, as_problem, malformed


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_bucket_gives_its_burst_then_its_rate() -> None:
    """A burst passes at once; after it, one request for each token that came back."""
    clock = _Clock()
    buckets = Buckets({"write": RateClass(per_second=2, burst=3)}, clock)
    assert [buckets.take("form", "write") for _ in range(3)] == [0, 0, 0]
    assert buckets.take("form", "write") == pytest.approx(0.5)
    clock.now += 0.5
    assert buckets.take("form", "write") == 0
    assert buckets.take("form", "write") > 0


def test_one_key_does_not_spend_the_tokens_of_another() -> None:
    """Buckets are kept per key and per rate class."""
    buckets = Buckets({"write": RateClass(1, 1), "read": RateClass(1, 1)}, _Clock())
    assert buckets.take("form", "write") == 0
    assert buckets.take("form", "write") > 0
    assert buckets.take("officer", "write") == 0
    assert buckets.take("form", "read") == 0


def test_buckets_of_ever_new_keys_do_not_grow_without_bound() -> None:
    """Ten thousand buckets are kept; the one idle longest goes."""
    buckets = Buckets({"read": RateClass(1, 1)}, _Clock())
    for number in range(10_050):
        buckets.take(f"key{number}", "read")
    assert len(buckets._levels) == 10_000


def test_a_gate_refuses_what_is_too_much_and_opens_again() -> None:
    """One more than the limit is shed with 503 and Retry-After; when one leaves, the next may enter."""
    shed = Counter("shed_total", "Refused.", ["reason"], registry=CollectorRegistry())
    gate = Gate(1, "requests", shed)
    with gate.pass_through():
        with pytest.raises(Problem) as caught, gate.pass_through():
            pass
        assert (caught.value.status, caught.value.headers) == (503, {"Retry-After": "1"})
    with gate.pass_through():
        assert gate.inside == 1
    assert gate.inside == 0
    assert shed.labels("requests")._value.get() == 1


def test_a_problem_document_has_its_code_its_field_and_the_correlation_id() -> None:
    """RFC 9457, with what a client branches on and what a person quotes."""
    body = orjson.loads(Problem("missing_parameter", "It is required.", field="postcode").body("abcdef12"))
    assert body == {
        "type": "urn:silogate:problem:missing_parameter",
        "title": "A parameter is missing",
        "status": 400,
        "code": "missing_parameter",
        "detail": "It is required.",
        "field": "postcode",
        "correlation_id": "abcdef12",
    }


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (SiloUnavailable("assets"), 503, "silo_unavailable"),
        (TimeoutError(), 503, "deadline_exceeded"),
        (ConnectionRefusedError(), 503, "database_unavailable"),
        (asyncpg.ConnectionDoesNotExistError("gone"), 503, "database_unavailable"),
        (asyncpg.AdminShutdownError("stopping"), 503, "database_unavailable"),
        (asyncpg.CannotConnectNowError("starting"), 503, "database_unavailable"),
        (asyncpg.TooManyConnectionsError("full"), 503, "database_unavailable"),
        (asyncpg.ReadOnlySQLTransactionError("standby"), 503, "database_unavailable"),
        (asyncpg.InterfaceError("pool is closing"), 503, "database_unavailable"),
        (asyncpg.InterfaceError("the server expects 2 arguments"), 500, "internal_error"),
        (asyncpg.UndefinedTableError("no such table"), 500, "internal_error"),
        (KeyError("nino"), 500, "internal_error"),
        (web.HTTPNotFound(), 404, "not_found"),
        (web.HTTPMethodNotAllowed("PUT", ["GET"]), 405, "method_not_allowed"),
        (web.HTTPRequestEntityTooLarge(1, 2), 413, "body_too_large"),
    ],
)
def test_an_error_becomes_one_problem_that_gives_no_internals(error: Exception, status: int, code: str) -> None:
    """An outage is 503 with Retry-After, a fault of ours 500, and neither repeats what the driver said."""
    problem = as_problem(error)
    assert (problem.status, problem.code) == (status, code)
    assert ("Retry-After" in problem.headers) == (status == 503)
    assert str(error) not in problem.body("x" * 8).decode() or not str(error)


def test_a_time_out_does_not_say_that_repeating_is_safe() -> None:
    """What timed out may have been committed: only a request with an Idempotency-Key may be repeated unseen."""
    detail = as_problem(TimeoutError()).detail
    assert "not known whether the request took effect" in detail
    assert "Idempotency-Key" in detail


def test_a_malformed_value_is_named_by_parameter_and_never_repeated() -> None:
    """The code says which type it is not; the value, which may be personal, stays out."""
    with pytest.raises(Malformed) as caught:
        VALUE_TYPES["nino"].normalise("QQ12E456C")
    problem = malformed(caught.value, "nino")
    assert (problem.status, problem.code, problem.field) == (400, "malformed_nino", "nino")
    assert b"QQ12E456C" not in problem.body("x" * 8)


def test_every_code_has_a_status_that_fits_a_refusal() -> None:
    """The table holds refusals only."""
    assert all(400 <= status <= 599 and title for status, title in CODES.values())
