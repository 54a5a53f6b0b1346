"""Every address this process serves, with its policy. What is not in these tables cannot be reached."""

from __future__ import annotations

from gateway.api import attachments, cases, live, live_types, lookup_batch, lookups, operations
from gateway.images import MEDIA_TYPES
from gateway.lookup import MIN_AS_OF
from gateway.route import Example, Handler, Policy, Route

_CASES_READ = Policy("scope", "cases:read")
_CASES_WRITE = Policy("scope", "cases:write")
_LOOKUP = Policy("lookup")
_ADMIN = Policy("open", reason="the admin port is reached from the operator's network only")

_OF_BODY = ("malformed_json", "duplicate_key", "too_deep", "not_an_object", "body_too_large", "unsupported_media_type")
_OF_LOOKUP = (
    "missing_parameter",
    "malformed_parameter",
    "unknown_parameter",
    "malformed_as_of",
    "unknown_lookup",
    "silo_unavailable",
    "deadline_exceeded",
)
_OF_DATABASE = ("database_unavailable", "deadline_exceeded", "audit_unavailable")
_OF_CHANGES = (*_OF_DATABASE, "gateway_shut")

_MIN_AS_OF = Example(MIN_AS_OF, "The answer must be at least as new as this earlier one.", "assets:5f0c91aa:118")
_IF_MATCH = Example("If-Match", "The version that was read, in quotes.", '"1"', required=True)
_IF_NONE_MATCH = Example("If-None-Match", "The ETag of the answer that the client holds.", 'W/"9b1c4e0d7a2f6835"')
_IDEMPOTENCY_KEY = Example(
    "Idempotency-Key", "One key a case, made by the caller.", "3f0f1c9e-6d0a-4f2b-8a51-0b5a3a1d2c77", required=True
)
_LAST_EVENT_ID = Example("Last-Event-ID", "The last version that the client has seen.", "2")
_TOKEN = Example(
    "Last-Event-ID", "The id of the last event that the client has seen; 0: all that is kept.", "AX3RQhYb5pIC9_8"
)
_CASE_TYPE = Example("type", "The case type.", "public-toilet-problem", required=True, place="query")

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/v1/lookups",
        lookups.list_lookups,
        operation_id="listLookups",
        summary="List the lookups that this key may ask",
        tag="Lookups",
        policy=Policy("key", reason="it lists only what the key's own scopes open"),
        rate_class="read",
        success=(200, "LookupList"),
    ),
    Route(
        "GET",
        "/v1/lookups/{name}",
        lookups.get_lookup,
        operation_id="getLookup",
        summary="Ask a lookup that is not personal",
        tag="Lookups",
        policy=_LOOKUP,
        rate_class="lookup",
        success=(200, "LookupAnswer"),
        problems=(*_OF_LOOKUP, "repeated_parameter", "personal_lookup"),
        headers=(_MIN_AS_OF, _IF_NONE_MATCH),
    ),
    Route(
        "POST",
        "/v1/lookups/{name}",
        lookups.post_lookup,
        operation_id="postLookup",
        summary="Ask any lookup, its parameters in the body",
        tag="Lookups",
        policy=_LOOKUP,
        rate_class="lookup",
        success=(200, "LookupAnswer"),
        problems=(*_OF_LOOKUP, *_OF_BODY, "audit_unavailable"),
        request="LookupQuestion",
        headers=(_MIN_AS_OF,),
    ),
    Route(
        "POST",
        "/v1/lookups:batch",
        lookup_batch.post_lookup_batch,
        operation_id="postLookupBatch",
        summary=f"Ask up to {lookup_batch.MOST_LOOKUPS} lookups together",
        tag="Lookups",
        policy=Policy("key", reason="each question in it needs the scope of the lookup that it asks"),
        rate_class="lookup",
        success=(200, "LookupBatchAnswer"),
        problems=(*_OF_BODY, "invalid_document", "deadline_exceeded"),
        request="LookupBatch",
    ),
    Route(
        "POST",
        "/v1/cases",
        cases.create_case,
        operation_id="createCase",
        summary="Make a case",
        tag="Cases",
        policy=_CASES_WRITE,
        rate_class="write",
        success=(201, "CaseReceipt"),
        problems=(
            *_OF_BODY,
            *_OF_CHANGES,
            "missing_idempotency_key",
            "malformed_idempotency_key",
            "idempotency_key_reused",
            "unknown_case_type",
            "invalid_document",
        ),
        request="NewCase",
        headers=(_IDEMPOTENCY_KEY,),
        audit="case.create",
    ),
    Route(
        "GET",
        "/v1/cases/{id}",
        cases.get_case,
        operation_id="getCase",
        summary="Read a case, and where it went",
        tag="Cases",
        policy=_CASES_READ,
        rate_class="read",
        success=(200, "Case"),
        problems=(*_OF_DATABASE, "unknown_case"),
        audit="case.read",
    ),
    Route(
        "PATCH",
        "/v1/cases/{id}",
        cases.change_case,
        operation_id="changeCase",
        summary="Change a case that has not changed since it was read",
        tag="Cases",
        policy=_CASES_WRITE,
        rate_class="write",
        success=(200, "CaseReceipt"),
        problems=(
            *_OF_BODY,
            *_OF_CHANGES,
            "unknown_case",
            "missing_if_match",
            "malformed_if_match",
            "version_conflict",
            "immutable_field",
            "invalid_document",
            "case_erased",
        ),
        request="CasePatch",
        headers=(_IF_MATCH,),
        audit="case.change",
    ),
    Route(
        "POST",
        "/v1/cases/{id}/notes",
        cases.add_note,
        operation_id="addNote",
        summary="Add a note to a case",
        tag="Cases",
        policy=_CASES_WRITE,
        rate_class="write",
        success=(201, "CaseReceipt"),
        problems=(*_OF_BODY, *_OF_CHANGES, "unknown_case", "invalid_document", "case_erased"),
        request="Note",
        audit="case.note",
    ),
    Route(
        "POST",
        "/v1/cases/{id}/attachments",
        attachments.add_attachment,
        operation_id="addAttachment",
        summary="Add a photo to a case",
        tag="Attachments",
        policy=_CASES_WRITE,
        rate_class="upload",
        success=(201, "Attachment"),
        problems=(
            *_OF_CHANGES,
            "unknown_case",
            "case_erased",
            "unsupported_media_type",
            "body_too_large",
            "not_what_it_says",
            "storage_unavailable",
        ),
        request="image",
        audit="case.attach",
    ),
    Route(
        "GET",
        "/v1/cases/{id}/attachments/{attachment}",
        attachments.get_attachment,
        operation_id="getAttachment",
        summary="Read a photo of a case",
        tag="Attachments",
        policy=_CASES_READ,
        rate_class="read",
        success=(200, "image"),
        problems=(*_OF_DATABASE, "unknown_case", "unknown_attachment", "storage_unavailable"),
        audit="attachment.read",
        media_type=MEDIA_TYPES[0],
    ),
    Route(
        "GET",
        "/v1/cases/{id}/events",
        live.watch_case,
        operation_id="watchCase",
        summary="Follow a case: its history, then its changes as they happen",
        tag="Cases",
        policy=Policy("scope", "events:read"),
        rate_class="stream",
        success=(200, "EventStream"),
        problems=(*_OF_DATABASE, "unknown_case", "malformed_last_event_id"),
        headers=(_LAST_EVENT_ID,),
        audit="case.watch",
        media_type="text/event-stream",
    ),
    Route(
        "GET",
        "/v1/events",
        live_types.watch_types,
        operation_id="watchCases",
        summary="Follow all cases of a type: from where the client was, then their changes as they happen",
        tag="Cases",
        policy=Policy("scope", "events:all"),
        rate_class="stream",
        success=(200, "TypeEventStream"),
        problems=(
            "missing_parameter",
            "unknown_parameter",
            "repeated_parameter",
            "unknown_case_type",
            "malformed_last_event_id",
            "events_unavailable",
            "audit_unavailable",
            "deadline_exceeded",
        ),
        headers=(_CASE_TYPE, _TOKEN),
        audit="case.watch_type",
        media_type="text/event-stream",
    ),
)


def _admin(
    path: str,
    handler: Handler,
    operation_id: str,
    summary: str,
    *,
    schema: str = "Text",
    media_type: str = "text/plain",
) -> Route:
    return Route(
        "GET",
        path,
        handler,
        operation_id=operation_id,
        summary=summary,
        tag="Admin",
        policy=_ADMIN,
        rate_class="admin",
        success=(200, schema),
        media_type=media_type,
    )


HEALTH_ROUTES: tuple[Route, ...] = (
    _admin("/livez", operations.livez, "getLivez", "Whether the process runs"),
    _admin("/readyz", operations.readyz, "getReadyz", "Whether the process can serve"),
    _admin("/startupz", operations.startupz, "getStartupz", "Whether the process has started"),
    _admin("/metrics", operations.metrics, "getMetrics", "Metrics in Prometheus' text format"),
)
ADMIN_ROUTES: tuple[Route, ...] = (
    *HEALTH_ROUTES,
    _admin(
        "/openapi.json",
        operations.openapi_json,
        "getOpenApi",
        "This description",
        schema="OpenApi",
        media_type="application/json",
    ),
    _admin("/docs", operations.docs, "getDocs", "This description for people", media_type="text/html"),
)
