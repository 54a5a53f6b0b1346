"""The gateway's HTTP contract with switches, for what the form must do when the real one is slow to be broken."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

from aiohttp import web

KEY = "sg_form00000000_" + "k" * 43
ADDRESSES = {
    "BN59 1AA": [
        {
            "uprn": "900001",
            "address": "1 Crabtree Lane, Lancing, BN59 1AA",
            "postcode": "BN59 1AA",
            "easting": 518200.0,
            "northing": 104700.0,
        },
        {
            "uprn": "900002",
            "address": "3 Crabtree Lane, Lancing, BN59 1AA",
            "postcode": "BN59 1AA",
            "easting": 518210.0,
            "northing": 104705.0,
        },
    ]
}
TOILETS = [
    ("Beach Green", "60001449", "Beach Green, Brighton Road, Lancing", 518072.0, 103649.0),
    ("Monks Recreation Ground", "60002210", "Monks Recreation Ground, Crabtree Lane, Lancing", 518225.0, 104730.0),
    ("Middle Street", "60014163", "Middle Street, Shoreham-by-Sea", 521515.0, 105083.0),
]


@dataclass
class Double:
    """What the double was asked, and how it is to misbehave."""

    down: set[str] = field(default_factory=set)
    cannot_tell: set[str] = field(default_factory=set)
    refuse_photo: bool = False
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    photos: dict[str, bytes] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    reported: list[dict[str, Any]] = field(default_factory=list)
    correlation_ids: list[str | None] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def set_status(self, case_id: str, status: str) -> None:
        """What a poller does when a recipient changed a status."""
        async with self.changed:
            self.cases[case_id]["status"] = status
            self._happened(case_id, "case.updated", ["status"])
            self.changed.notify_all()

    def _happened(self, case_id: str, kind: str, changed: list[str]) -> None:
        case = self.cases[case_id]
        case["version"] = len(self.events[case_id]) + 1
        at = datetime.now(UTC).isoformat()
        self.events[case_id].append(
            {"version": case["version"], "type": kind, "at": at, "status": case["status"], "changed": changed}
        )

    def application(self) -> web.Application:
        app = web.Application(client_max_size=16 * 1024**2)
        app.add_routes(
            [
                web.get("/v1/lookups/{name}", self._lookup),
                web.post("/v1/cases", self._create),
                web.get("/v1/cases/{id}", self._read),
                web.post("/v1/cases/{id}/attachments", self._attach),
                web.get("/v1/cases/{id}/events", self._stream),
            ]
        )
        return app

    def _admit(self, request: web.Request, what: str) -> None:
        self.correlation_ids.append(request.headers.get("Silogate-Correlation-Id"))
        self.asked.append(request.path_qs)
        if request.headers.get("Authorization") != f"Bearer {KEY}":
            raise web.HTTPUnauthorized
        if what in self.down or "everything" in self.down:
            raise web.HTTPServiceUnavailable

    async def _lookup(self, request: web.Request) -> web.Response:
        name, query = request.match_info["name"], request.query
        self._admit(request, name)
        results: list[dict[str, Any]] = []
        if name in self.cannot_tell:
            return web.json_response({"lookup": name, "verdict": "cannot_tell", "results": []})
        if name == "addresses-by-postcode":
            results = ADDRESSES.get(query["postcode"], [])
        elif name == "assets-near":
            results = _near(float(query["easting"]), float(query["northing"]), float(query["metres"]))
        elif name == "asset-already-reported":
            results = self.reported
        return web.json_response({"lookup": name, "verdict": "found" if results else "not_found", "results": results})

    async def _create(self, request: web.Request) -> web.Response:
        self._admit(request, "cases")
        key = request.headers["Idempotency-Key"]
        if key not in self.keys:
            case_id = str(uuid4())
            self.keys[key] = case_id
            document = await request.json()
            self.cases[case_id] = document | {"id": case_id, "reference": f"RAP-7KQ2-93X{len(self.cases)}"}
            self.cases[case_id]["status"] = "open"
            self.events[case_id] = []
            self._happened(case_id, "case.created", [])
        case = self.cases[self.keys[key]]
        return web.json_response({name: case[name] for name in ("id", "reference", "version", "status")}, status=201)

    async def _read(self, request: web.Request) -> web.Response:
        self._admit(request, "cases")
        case = self.cases.get(request.match_info["id"])
        if case is None:
            return web.json_response({"code": "unknown_case", "field": None}, status=404)
        return web.json_response(case)

    async def _attach(self, request: web.Request) -> web.Response:
        self._admit(request, "attachments")
        if self.refuse_photo:
            return web.json_response({"code": "not_an_image", "field": "body"}, status=415)
        self.photos[request.match_info["id"]] = await request.read()
        self._happened(request.match_info["id"], "case.attached", ["attachments"])
        return web.json_response({"id": str(uuid4()), "media_type": request.content_type}, status=201)

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self._admit(request, "events")
        events = self.events[request.match_info["id"]]
        seen = int(request.headers.get("Last-Event-ID", "0"))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b": beat\n\n")
        while True:
            for event in events[seen:]:
                text = f"id: {event['version']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
                await response.write(text.encode())
            seen = len(events)
            async with self.changed:
                while len(events) == seen:
                    await self.changed.wait()


def _near(easting: float, northing: float, metres: float) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [
        {"uprn": uprn, "name": name, "street_address": street, "easting": east, "northing": north}
        | {"metres": ((east - easting) ** 2 + (north - northing) ** 2) ** 0.5}
        for name, uprn, street, east, north in TOILETS
    ]
    return sorted((one for one in found if one["metres"] <= metres), key=lambda one: one["metres"])
