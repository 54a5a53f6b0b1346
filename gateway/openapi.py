"""The OpenAPI 3.1 document: made from the route tables and from what this deployment declares, so it cannot drift."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from gateway.declarations import CaseTypeDeclaration, LookupDeclaration
from gateway.images import MEDIA_TYPES
from gateway.problems import CODES, MEDIA_TYPE
from gateway.route import Example, Route
from gateway.routes import ADMIN_ROUTES, ROUTES
from gateway.schemas import (
    EXAMPLES,
    SCHEMAS,
    case_example,
    case_schema,
    new_case_example,
    new_case_schema,
    problem_example,
)

_HOME = "#/components/schemas/"
_ALWAYS = ("internal_error", "overloaded")
_WITH_KEY = ("unauthenticated", "rate_limited")
_ANSWER_HEADERS = {
    "Silogate-Correlation-Id": "The id under which the request appears in logs, history and audit.",
}
_LOOKUP_HEADERS = {
    "Age": "Seconds since the answer was known to be current.",
    "Cache-Status": "How the cache was used (RFC 9211).",
    "Silogate-As-Of": "The position in the silo's change log that the answer is at least as new as.",
    "Silogate-Staleness-Bound-Ms": "No change older than this is missing from the answer.",
}


def release() -> str:
    """The running release, as packaged."""
    try:
        return version("silogate")
    except PackageNotFoundError:
        return "0+source"


def document(lookups: Mapping[str, LookupDeclaration], case_types: Mapping[str, CaseTypeDeclaration]) -> dict[str, Any]:
    """The whole description of this deployment's interface."""
    components = dict(SCHEMAS) | _case_components(case_types)
    examples = EXAMPLES | _case_examples(case_types)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, examples)
    for lookup in lookups.values():
        route = next(item for item in ROUTES if item.operation_id == ("postLookup" if lookup.personal else "getLookup"))
        path = route.path.replace("{name}", lookup.name)
        paths[path] = {route.method.lower(): _lookup_operation(route, lookup)}
    for route in ADMIN_ROUTES:
        paths[route.path] = {
            "servers": [{"url": "http://127.0.0.1:8081", "description": "The admin port"}],
            route.method.lower(): _operation(route, examples),
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Silogate",
            "version": release(),
            "description": "Lookups, cases and effects between a council's forms and the systems behind them.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/", "description": "The public port"}],
        "tags": [{"name": name} for name in sorted({route.tag for route in (*ROUTES, *ADMIN_ROUTES)})],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "apiKey": {"type": "http", "scheme": "bearer", "description": "An API key: `sg_<id>_<secret>`."}
            },
        },
    }


def _case_components(case_types: Mapping[str, CaseTypeDeclaration]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for declared in case_types.values():
        for prefix, schema_of in (("New", new_case_schema), ("", case_schema)):
            name = prefix + _pascal(declared.name)
            made[name] = schema_of(declared, _HOME + name)
    names = [_pascal(name) for name in case_types]
    made["Case"] = {"anyOf": [_reference(name) for name in names]} if names else {"type": "object"}
    made["NewCase"] = {"anyOf": [_reference("New" + name) for name in names]} if names else {"type": "object"}
    return made


def _case_examples(case_types: Mapping[str, CaseTypeDeclaration]) -> dict[str, Any]:
    declared = next(iter(case_types.values()), None)
    if declared is None:
        return {}
    made = {"Case": case_example(declared), "NewCase": new_case_example(declared)}
    return {name: example for name, example in made.items() if example is not None}


def _operation(route: Route, examples: Mapping[str, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.operation_id,
        "summary": route.summary,
        "tags": [route.tag],
        "security": [] if route.policy.kind == "open" else [{"apiKey": []}],
        "x-rate-class": route.rate_class,
        "x-policy": route.policy.scope or route.policy.reason or "the scope that the lookup declares",
        "parameters": [*_path_parameters(route), *(_header(item) for item in route.headers)],
        "responses": _responses(route, examples),
    }
    if route.request is not None:
        operation["requestBody"] = _request(route, examples)
    return operation


def _path_parameters(route: Route) -> Iterable[dict[str, Any]]:
    for name in re.findall(r"\{(\w+)\}", route.path):
        schema = {"type": "string"} if name == "name" else {"type": "string", "format": "uuid"}
        example = "addresses-by-postcode" if name == "name" else EXAMPLES["CaseReceipt"]["id"]
        yield {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def _header(item: Example) -> dict[str, Any]:
    return {
        "name": item.name,
        "in": item.place,
        "required": item.required,
        "description": item.description,
        "schema": {"type": "string"},
        "example": item.example,
    }


def _request(route: Route, examples: Mapping[str, Any]) -> dict[str, Any]:
    if route.request == "image":
        content: dict[str, Any] = {name: {} for name in MEDIA_TYPES}
    else:
        name = route.request or ""
        body = _content(name, examples)
        content = {"application/json": body}
        if route.method == "PATCH":
            content = {"application/merge-patch+json": body, **content}
    return {"required": True, "content": content}


def _responses(route: Route, examples: Mapping[str, Any]) -> dict[str, Any]:
    status, schema = route.success
    responses = {str(status): _answer(route, schema, examples)}
    if route.operation_id in ("getReadyz", "getStartupz"):
        content = {route.media_type: {"schema": _reference("Text"), "example": "draining\n"}}
        responses["503"] = {"description": "Not yet, or no longer", "content": content}
    if route.operation_id == "getLookup":
        responses["304"] = {"description": "The client's answer is still the answer"}
    for code_status, codes in sorted(_by_status(_codes(route)).items()):
        if str(code_status) not in responses:
            responses[str(code_status)] = _refusal(codes)
    return responses


def _answer(route: Route, schema: str | None, examples: Mapping[str, Any]) -> dict[str, Any]:
    headers = dict(_ANSWER_HEADERS) | (_LOOKUP_HEADERS if route.policy.kind == "lookup" else {})
    answer: dict[str, Any] = {
        "description": route.summary,
        "headers": {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in (headers.items() if route.tag != "Admin" else ())
        },
    }
    if schema == "image":
        answer["content"] = {name: {} for name in MEDIA_TYPES}
    elif schema is not None:
        answer["content"] = {route.media_type: _content(schema, examples)}
    return answer


def _codes(route: Route) -> list[str]:
    always = _ALWAYS if route.tag != "Admin" else ("internal_error",)
    with_key = _WITH_KEY if route.policy.kind != "open" else ()
    scoped = ("forbidden",) if route.policy.kind in ("scope", "lookup") else ()
    return list(dict.fromkeys((*route.problems, *with_key, *scoped, *always)))


def _by_status(codes: Iterable[str]) -> dict[int, list[str]]:
    grouped: dict[int, list[str]] = {}
    for code in codes:
        grouped.setdefault(CODES[code][0], []).append(code)
    return grouped


def _refusal(codes: list[str]) -> dict[str, Any]:
    return {
        "description": "; ".join(f"`{code}`: {CODES[code][1]}" for code in codes),
        "content": {
            MEDIA_TYPE: {
                "schema": _reference("Problem"),
                "examples": {code: {"value": problem_example(code)} for code in codes},
            }
        },
    }


def _lookup_operation(route: Route, lookup: LookupDeclaration) -> dict[str, Any]:
    row = {name: EXAMPLES["LookupAnswer"]["results"][0].get(name) for name in lookup.definition.columns}
    answer = {**EXAMPLES["LookupAnswer"], "lookup": lookup.name, "results": [row]}
    operation = _operation(route, {**EXAMPLES, "LookupAnswer": answer})
    operation["operationId"] = "ask" + _pascal(lookup.name)
    operation["summary"] = lookup.title
    operation["x-policy"] = lookup.scope
    operation["x-rate-class"] = lookup.rate
    columns = {"type": "object", "properties": {name: {} for name in lookup.definition.columns}}
    content = operation["responses"]["200"]["content"][route.media_type]
    content["schema"] = {
        "allOf": [_reference("LookupAnswer"), {"properties": {"results": {"type": "array", "items": columns}}}]
    }
    operation["parameters"] = [item for item in operation["parameters"] if item["in"] != "path"]
    if lookup.personal:
        operation["requestBody"] = {"required": True, "content": {"application/json": _question(lookup)}}
    else:
        operation["parameters"] += [_query_parameter(lookup, name) for name in lookup.parameters]
    return operation


def _query_parameter(lookup: LookupDeclaration, name: str) -> dict[str, Any]:
    parameter = lookup.parameters[name]
    return {
        "name": name,
        "in": "query",
        "required": parameter.required,
        "description": parameter.title,
        "schema": dict(parameter.type.json_schema),
        "example": parameter.example,
    }


def _question(lookup: LookupDeclaration) -> dict[str, Any]:
    properties = {
        name: {**parameter.type.json_schema, "title": parameter.title} for name, parameter in lookup.parameters.items()
    }
    return {
        "schema": {
            "type": "object",
            "properties": properties,
            "required": [name for name, parameter in lookup.parameters.items() if parameter.required],
            "additionalProperties": False,
        },
        "example": {name: parameter.example for name, parameter in lookup.parameters.items()},
    }


def _content(name: str, examples: Mapping[str, Any]) -> dict[str, Any]:
    """A body by its schema; only a deployment without case types has bodies without an example."""
    return {"schema": _reference(name)} | ({"example": examples[name]} if name in examples else {})


def _reference(name: str) -> dict[str, str]:
    return {"$ref": _HOME + name}


def _pascal(name: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[^a-zA-Z0-9]+", name))
