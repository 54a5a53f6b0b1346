"""The journey that `make demo CHECK=1` walks: a report from the postcode to the recipient and back, by HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import aiohttp

from gateway.dev import synthetic
from gateway.dev.browser import walk_in_browser
from gateway.dev.desks import CONTRACTOR, STREET_TEAM, Desk
from gateway.dev.mailbox import find_mail
from gateway.dev.running import Running, png
from gateway.dev.sse import messages
from gateway.dev.steps import StepFailed, Steps, until

CORRELATION = "Silogate-Correlation-Id"
_SOON = aiohttp.ClientTimeout(total=15)
_STREAM = aiohttp.ClientTimeout(total=60, sock_read=45)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: Any


async def walk(running: Running, steps: Steps) -> None:
    """Walks the whole journey; raises StepFailed at the first step that was not seen."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http:
        await Walker(running, steps, http).walk()
    await walk_in_browser(running, steps)
    steps.say(f"\nEvery step was seen: {steps.seen}")


class Walker:
    """One visitor who plays every part, by HTTP only."""

    def __init__(self, running: Running, steps: Steps, http: aiohttp.ClientSession) -> None:
        self._running = running
        self._steps = steps
        self._http = http
        self._correlation_id = str(uuid4())

    async def walk(self) -> None:
        self._steps.say("\nThe journey, by HTTP")
        toilet = await self._find_toilet()
        await self._ask_about_claims()
        case = await self._report(toilet)
        await self._arrives(case["reference"], STREET_TEAM, CONTRACTOR)
        await self._mail_comes_once(case["reference"])
        await self._status_comes_back(case)
        await self._no_second_mail(case["reference"])
        await self._operator_sees(case["reference"])
        await self._metrics()

    async def _find_toilet(self) -> dict[str, Any]:
        async with self._steps.step("the addresses of a postcode") as notes:
            found = await self._found("addresses-by-postcode", postcode=synthetic.EXAMPLE_POSTCODE)
            notes.append(f"{len(found)} in {synthetic.EXAMPLE_POSTCODE}")
        async with self._steps.step("the toilets nearest to one of them") as notes:
            home = found[0]
            near = await self._found("assets-near", easting=home["easting"], northing=home["northing"], metres=3000)
            notes.append(f"{near[0]['name'].title()}, {near[0]['metres']} m")
        async with self._steps.step("nobody has reported a problem there"):
            answer = await self._lookup("asset-already-reported", uprn=near[0]["uprn"])
            _expect(answer.body["verdict"], "not_found")
        return dict(near[0])

    async def _ask_about_claims(self) -> None:
        person = next(row for row in synthetic.claims() if row["STATUS"] == "open")
        known = {"nino": person["NI_NUMBER"], "date_of_birth": person["DATE_OF_BIRTH"]}
        async with self._steps.step("a claim already open is found, another is not"):
            answer = await self._ask_personally("claim-already-open", known)
            _expect(answer.body["verdict"], "found")
            nobody = {"nino": "QQ999999A", "date_of_birth": "1980-01-31"}
            _expect((await self._ask_personally("claim-already-open", nobody)).body["verdict"], "not_found")
        async with self._steps.step("what the council knows fills a form, for the key that may ask only"):
            answer = await self._ask_personally("known-details", known)
            _expect(answer.body["results"][0]["surname"], person["SURNAME"])
            refused = await self._call("POST", "/v1/lookups/known-details", self._running.website_key, json=known)
            _expect((refused.status, refused.headers["Content-Type"]), (403, "application/problem+json"))

    async def _report(self, toilet: Mapping[str, Any]) -> dict[str, Any]:
        document = _document(toilet, "dog-fouling")
        key = str(uuid4())
        async with self._steps.step("the report becomes a case") as notes:
            sent = await self._submit(document, key)
            _expect(sent.status, 201)
            case = dict(sent.body)
            notes.append(case["reference"])
        async with self._steps.step("sending it again makes no second one"):
            again = await self._submit(document, key)
            _expect((again.status, again.body["id"]), (201, case["id"]))
            other = await self._submit(document | {"category": "litter"}, key)
            _expect(other.status, 422)
        async with self._steps.step("the photo is stored, a text that says it is one is not"):
            path = f"/v1/cases/{case['id']}/attachments"
            key, headers = self._running.website_key, {"Content-Type": "image/png"}
            _expect((await self._call("POST", path, key, data=png(), headers=headers)).status, 201)
            refused = await self._call("POST", path, key, data=b"not a photo", headers=headers)
            _expect(refused.headers["Content-Type"], "application/problem+json")
        async with self._steps.step("the next resident is told that it has been reported"):
            reported = await self._found("asset-already-reported", uprn=toilet["uprn"])
            _expect(reported[0]["reference"], case["reference"])
        return case

    async def _arrives(self, reference: str, there: Desk, not_there: Desk) -> None:
        async with self._steps.step(f"it is in the database of the {there.name}, and only there") as notes:
            row = await until("the row", lambda: self._running.screens.find(there, reference))
            notes.append(f"{row['kind']}, {row['status']}")
            _expect(await self._running.screens.find(not_there, reference), None)

    async def _mail_comes_once(self, reference: str) -> None:
        async with self._steps.step("the confirmation is in the mailbox, once") as notes:
            mail = await until("the mail", lambda: find_mail(self._running.maildir, reference))
            notes.append(mail.subject)

    async def _no_second_mail(self, reference: str) -> None:
        async with self._steps.step("three versions later there still is one confirmation"):
            await find_mail(self._running.maildir, reference)

    async def _status_comes_back(self, case: Mapping[str, Any]) -> None:
        path = f"/v1/cases/{case['id']}"
        for theirs, ours in (("doing", "in_progress"), ("done", "fixed")):
            async with self._steps.step(f"the team sets “{theirs}”: the event stream says “{ours}”, so does the case"):
                row = await self._running.screens.find(STREET_TEAM, case["reference"])
                if row is None or not await self._running.screens.set_status(STREET_TEAM, row["id"], theirs):
                    raise StepFailed("the row is gone")
                await self._streamed(f"{path}/events", ours)
                read = await self._call("GET", path, self._running.website_key)
                _expect(read.body["status"], ours)

    async def _streamed(self, path: str, status: str) -> None:
        headers = self._headers(self._running.website_key) | {"Last-Event-ID": "0"}
        async with self._http.get(self._running.gateway + path, headers=headers, timeout=_STREAM) as response:
            _expect(response.status, 200)
            async with asyncio.timeout(30), aclosing(messages(response)) as stream:
                async for message in stream:
                    if f'"status":"{status}"' in message.data.replace(" ", ""):
                        return
        raise StepFailed(f"the stream ended without {status}")

    async def _operator_sees(self, reference: str) -> None:
        admin = f"{self._running.admin}/admin"
        async with self._steps.step("the operator's page is closed to strangers, open to the operator"):
            async with self._http.get(f"{admin}/", allow_redirects=False, timeout=_SOON) as response:
                _expect(response.headers.get("Location"), "/admin/login")
            key = {"key": self._running.operator_key}
            async with self._http.post(f"{admin}/login", data=key, timeout=_SOON) as response:
                _expect((response.status, response.url.path), (200, "/admin/"))
        async with self._steps.step("by correlation id it shows what flowed where") as notes:
            asked = {"q": self._correlation_id}
            async with self._http.get(f"{admin}/flow", params=asked, timeout=_SOON) as response:
                text = await response.text()
            for seen in (
                reference,
                "Case created: version 1",
                "Version 1 published",
                "street-team has version",
                "Polled back from street-team",
                "Done: confirmation by",
            ):
                if seen not in text:
                    raise StepFailed(f"the page does not show “{seen}”")
            if "Exempla" in text or "resident@example.org" in text:
                raise StepFailed("the page shows personal data")
            notes.append(f"{len(re.findall('moments__one', text))} moments")

    async def _metrics(self) -> None:
        async with self._steps.step("metrics of both processes") as notes:
            for name, url in (("admin", self._running.admin), ("worker", self._running.worker)):
                async with self._http.get(f"{url}/metrics", timeout=_SOON) as response:
                    families = re.findall(r"^# TYPE (silogate_\w+)", await response.text(), re.MULTILINE)
                if not families:
                    raise StepFailed(f"no metric of ours at {url}/metrics")
                notes.append(f"{len(families)} of the {'gateway' if name == 'admin' else name}")

    async def _submit(self, document: Mapping[str, Any], key: str) -> Answer:
        headers = {"Idempotency-Key": key}
        return await self._call("POST", "/v1/cases", self._running.website_key, json=document, headers=headers)

    async def _found(self, name: str, **parameters: object) -> list[dict[str, Any]]:
        async def found() -> list[dict[str, Any]] | None:
            answer = await self._lookup(name, **parameters)
            return answer.body["results"] if answer.status == 200 and answer.body["verdict"] == "found" else None

        return await until(f"an answer of {name}", found, timeout_s=15)

    async def _lookup(self, name: str, **parameters: object) -> Answer:
        query = {key: str(value) for key, value in parameters.items()}
        return await self._call("GET", f"/v1/lookups/{name}", self._running.website_key, params=query)

    async def _ask_personally(self, name: str, parameters: Mapping[str, str]) -> Answer:
        path = f"/v1/lookups/{name}"
        return await self._call("POST", path, self._running.benefits_key, json=dict(parameters))

    async def _call(
        self, method: str, path: str, key: str, *, headers: Mapping[str, str] | None = None, **sent: Any
    ) -> Answer:
        headers = self._headers(key) | dict(headers or {})
        url = self._running.gateway + path
        async with self._http.request(method, url, headers=headers, timeout=_SOON, **sent) as response:
            return Answer(response.status, response.headers, await response.json(content_type=None))

    def _headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {key}", CORRELATION: self._correlation_id}


def _document(toilet: Mapping[str, Any], category: str) -> dict[str, Any]:
    return {
        "type": "public-toilet-problem",
        "submitter": {"name": "Exempla Samplethorpe", "email": "resident@example.org"},
        "location": {name: toilet[name] for name in ("easting", "northing", "uprn")},
        "asset": {"uprn": toilet["uprn"], "name": toilet["name"]},
        "category": category,
        "notes": [{"text": "By the entrance on the beach side."}],
    }


def _expect(seen: object, wanted: object) -> None:
    if seen != wanted:
        raise StepFailed(f"expected {wanted!r}, saw {seen!r}")
