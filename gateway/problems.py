"""Every way to refuse a request: one table of codes, one body (RFC 9457), one place where errors become answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import asyncpg
import orjson
from aiohttp import web

from cache.silo import SiloUnavailable
from cache.values import Malformed

MEDIA_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:silogate:problem:"

# code → status and title. A code is part of the interface: clients branch on it, so it never changes its meaning.
CODES: Mapping[str, tuple[int, str]] = MappingProxyType(
    {
        "malformed_json": (400, "The body is not JSON"),
        "duplicate_key": (400, "An object in the body names a field twice"),
        "too_deep": (400, "The body is nested too deeply"),
        "not_an_object": (400, "The body is not a JSON object"),
        "missing_parameter": (400, "A parameter is missing"),
        "malformed_parameter": (400, "A parameter is malformed"),
        "unknown_parameter": (400, "A parameter is not one of this lookup's"),
        "repeated_parameter": (400, "A parameter is given more than once"),
        "missing_idempotency_key": (400, "The Idempotency-Key header is missing"),
        "malformed_idempotency_key": (400, "The Idempotency-Key header is malformed"),
        "malformed_if_match": (400, "The If-Match header is malformed"),
        "malformed_as_of": (400, "The Silogate-Min-As-Of header is malformed"),
        "malformed_last_event_id": (400, "The Last-Event-ID header is malformed"),
        "bad_request": (400, "The request cannot be understood"),
        "unauthenticated": (401, "A valid API key is required"),
        "forbidden": (403, "The API key may not do this"),
        "not_found": (404, "There is nothing at this address"),
        "unknown_lookup": (404, "There is no such lookup"),
        "unknown_case": (404, "There is no such case"),
        "unknown_attachment": (404, "There is no such attachment"),
        "method_not_allowed": (405, "The method is not allowed here"),
        "personal_lookup": (405, "A personal lookup is asked by POST"),
        "case_erased": (410, "The personal part of this case was erased"),
        "version_conflict": (412, "The case has changed since"),
        "body_too_large": (413, "The body is too large"),
        "unsupported_media_type": (415, "The media type is not accepted here"),
        "expectation_failed": (417, "The Expect header cannot be met"),
        "invalid_document": (422, "The document does not meet its schema"),
        "unknown_case_type": (422, "There is no such case type"),
        "immutable_field": (422, "A field that cannot change would change"),
        "idempotency_key_reused": (422, "The Idempotency-Key was used with another body"),
        "not_what_it_says": (422, "The attachment is not what it says it is"),
        "missing_if_match": (428, "The If-Match header is required"),
        "rate_limited": (429, "Too many requests for this API key"),
        "client_closed": (499, "The client went away"),
        "internal_error": (500, "Something went wrong on our side"),
        "overloaded": (503, "Too many requests at once"),
        "deadline_exceeded": (503, "No answer in time"),
        "silo_unavailable": (503, "The data source cannot answer"),
        "database_unavailable": (503, "The database cannot be reached"),
        "events_unavailable": (503, "The events cannot be read"),
        "storage_unavailable": (503, "The attachment store cannot be reached"),
        "audit_unavailable": (503, "The audit log cannot be written"),
        "gateway_shut": (503, "Nothing can be changed until the gateway is recovered"),
        "draining": (503, "This process is stopping"),
    }
)

# Said where the work may have been committed before the answer was lost. A note that is sent twice is there twice.
IN_DOUBT = (
    "It is not known whether the request took effect: one with an Idempotency-Key may be repeated, "
    "for any other read the case first."
)
_RETRY = MappingProxyType({"Retry-After": "1"})
_HTTP_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    413: "body_too_large",
    415: "unsupported_media_type",
    417: "expectation_failed",
}
# The database is there or will be soon: the same request may well succeed in a moment.
_DATABASE_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.IdleSessionTimeoutError,
    asyncpg.InsufficientResourcesError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.LockNotAvailableError,
    asyncpg.QueryCanceledError,
    asyncpg.TransactionRollbackError,
    asyncpg.InternalClientError,  # what asyncpg 0.32 makes of some connections that are cut
    OSError,
)


# What the database says to each change while it knows less than Kafka does (streams/sql/0002_consumer.sql).
_SHUT = "SG001"


class Problem(Exception):
    """A refusal. `detail` is for people and names no personal value; `field` is a parameter, header or JSON pointer."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        field: str | None = None,
        headers: Mapping[str, str] | None = None,
        errors: Sequence[Mapping[str, str]] = (),
        status: int | None = None,
        title: str | None = None,
    ) -> None:
        super().__init__(code)
        known_status, known_title = CODES.get(code, (status or 500, title or code))
        self.status = status or known_status
        self.title = title or known_title
        self.code = code
        self.detail = detail
        self.field = field
        self.headers = dict(headers or {})
        self.errors = list(errors)

    def body(self, correlation_id: str) -> bytes:
        """The problem document (RFC 9457)."""
        document: dict[str, object] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title,
            "status": self.status,
            "code": self.code,
            "detail": self.detail,
        }
        if self.field is not None:
            document["field"] = self.field
        if self.errors:
            document["errors"] = self.errors
        document["correlation_id"] = correlation_id
        return orjson.dumps(document)

    def response(self, correlation_id: str) -> web.Response:
        return web.Response(
            status=self.status,
            body=self.body(correlation_id),
            headers={**self.headers, "Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"},
        )


def malformed(error: Malformed, field: str) -> Problem:
    """The refusal of a value that its type's normaliser did not take."""
    code = error.code if error.code.startswith("malformed_") else "malformed_parameter"
    return Problem(code, str(error), field=field, status=400, title=CODES["malformed_parameter"][1])


def as_problem(error: Exception) -> Problem:
    """The answer to an error that reached the edge; what is not known here is `internal_error` and says no more."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, web.HTTPException):
        return _of_http(error)
    if isinstance(error, SiloUnavailable):
        return Problem(
            "silo_unavailable", "Nothing could answer before the deadline. Try again shortly.", headers=_RETRY
        )
    # asyncio.TimeoutError is an OSError as well, so it is told apart first.
    if isinstance(error, asyncio.TimeoutError):
        return Problem("deadline_exceeded", f"The request took too long. {IN_DOUBT}", headers=_RETRY)
    if isinstance(error, asyncpg.PostgresError) and error.sqlstate == _SHUT:
        # not the database's own words: the reason is for operators
        detail = "The gateway's database was set back. Cases can be read; nothing is taken until an operator has acted."
        return Problem("gateway_shut", detail, headers={"Retry-After": "60"})
    if isinstance(error, _DATABASE_AWAY) or _is_closed_pool(error):
        return Problem("database_unavailable", "The database cannot be reached. Try again shortly.", headers=_RETRY)
    return Problem("internal_error", "Something went wrong on our side. Quote the correlation id when you report it.")


def _of_http(error: web.HTTPException) -> Problem:
    code = _HTTP_CODES.get(error.status, "bad_request" if error.status < 500 else "internal_error")
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return Problem(code, CODES[code][1] + ".", headers=headers)


def _is_closed_pool(error: Exception) -> bool:
    # asyncpg raises the same class for a closed connection and for a mistake in the call; only the first is an outage.
    return isinstance(error, asyncpg.InterfaceError) and "clos" in str(error)
