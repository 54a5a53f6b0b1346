"""Photos by HTTP: taken when they are what they say, kept once, given back as nothing else."""

from __future__ import annotations

import hashlib
import io
from collections.abc import AsyncIterator
from uuid import uuid4

import pytest

from gateway.dev.addresses import Servers
from tests.integration.edge import Edge, gateway_schema, problem_of, running_edge
from tests.unit.test_http_images import EXTENDED, LOSSY, jpeg, png

PNG = {"Content-Type": "image/png"}


@pytest.fixture(scope="module")
async def edge(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    """The edge over a database of this module's own."""
    async with gateway_schema(servers) as url, running_edge(url, tmp_path_factory.mktemp("edge")) as edge:
        yield edge


@pytest.fixture
async def case_path(edge: Edge) -> str:
    """The address of a new case."""
    return f"/v1/cases/{(await edge.create())['id']}"


@pytest.mark.parametrize(
    ("content", "media_type"),
    [(png(), "image/png"), (jpeg(), "image/jpeg"), (LOSSY, "image/webp"), (EXTENDED, "image/webp")],
)
async def test_a_photo_is_kept_by_its_content_and_given_back(
    edge: Edge, case_path: str, content: bytes, media_type: str
) -> None:
    """201 with the hash; the case lists it; the same bytes come back, unsniffable and only as a download."""
    answer = await edge.ask("POST", f"{case_path}/attachments", data=content, headers={"Content-Type": media_type})
    receipt = await answer.json()
    assert answer.status == 201
    assert {key: receipt[key] for key in ("sha256", "media_type", "bytes")} == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "media_type": media_type,
        "bytes": len(content),
    }
    case = await (await edge.ask("GET", case_path)).json()
    assert (case["version"], [item["id"] for item in case["attachments"]]) == (2, [receipt["id"]])

    back = await edge.ask("GET", answer.headers["Location"])
    assert (back.status, await back.read(), back.content_type) == (200, content, media_type)
    assert back.headers["X-Content-Type-Options"] == "nosniff"
    assert back.headers["Content-Disposition"].startswith("attachment;")
    assert "sandbox" in back.headers["Content-Security-Policy"]
    assert back.headers["Cache-Control"] == "no-store"


async def test_the_same_photo_twice_is_one_attachment(edge: Edge, case_path: str) -> None:
    """A repeated upload changes nothing."""
    first, second = [
        await (await edge.ask("POST", f"{case_path}/attachments", data=png(), headers=PNG)).json() for _ in range(2)
    ]
    assert first == second
    assert (await (await edge.ask("GET", case_path)).json())["version"] == 2


@pytest.mark.parametrize(
    ("content", "media_type", "expected"),
    [
        (png(), "image/gif", (415, "unsupported_media_type", "Content-Type")),
        (png(), "image/svg+xml", (415, "unsupported_media_type", "Content-Type")),
        (png(), "application/octet-stream", (415, "unsupported_media_type", "Content-Type")),
        (png(), "image/jpeg", (422, "not_what_it_says", "Content-Type")),
        (b"<script>alert(1)</script>", "image/png", (422, "not_what_it_says", "Content-Type")),
        (b"", "image/png", (422, "not_what_it_says", "Content-Type")),
        (png()[:20], "image/png", (422, "not_what_it_says", "Content-Type")),
        (png(60_000, 60_000), "image/png", (422, "not_what_it_says", "")),
    ],
)
async def test_what_is_not_what_it_says_is_refused(
    edge: Edge, case_path: str, content: bytes, media_type: str, expected: tuple[int, str, str]
) -> None:
    """The declared type must be ours, and the bytes must be of it; nothing is stored."""
    before = len(list((edge.context.blobs._folder).rglob("*")))
    answer = await edge.ask("POST", f"{case_path}/attachments", data=content, headers={"Content-Type": media_type})
    assert await problem_of(answer) == expected
    assert (await (await edge.ask("GET", case_path)).json())["version"] == 1
    assert len(list((edge.context.blobs._folder).rglob("*"))) == before


async def test_a_photo_over_its_cap_is_refused(edge: Edge, case_path: str) -> None:
    """8 MiB and not a byte more."""
    content = io.BytesIO(png() + bytes(8 * 1024 * 1024))
    answer = await edge.ask("POST", f"{case_path}/attachments", data=content, headers=PNG)
    assert await problem_of(answer) == (413, "body_too_large", "")


async def test_a_refused_upload_is_never_sent(edge: Edge, case_path: str) -> None:
    """A client that waits for 100 Continue hears the refusal instead."""
    sent = 0

    async def counted() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(64):
            sent += 65_536
            yield bytes(65_536)

    answer = await edge.ask(
        "POST", f"{case_path}/attachments", data=counted(), headers={"Content-Type": "text/html"}, expect100=True
    )
    assert await problem_of(answer) == (415, "unsupported_media_type", "Content-Type")
    assert sent == 0
    accepted = await edge.ask("POST", f"{case_path}/attachments", data=png(), headers=PNG, expect100=True)
    assert accepted.status == 201


async def test_an_attachment_is_read_through_its_own_case_only(edge: Edge, case_path: str) -> None:
    """Another case, an unknown id and no id at all are the same 404."""
    added = await edge.ask("POST", f"{case_path}/attachments", data=png(), headers=PNG)
    attachment = (await added.json())["id"]
    other = f"/v1/cases/{(await edge.create())['id']}"
    for path in (
        f"{other}/attachments/{attachment}",
        f"{case_path}/attachments/{uuid4()}",
        f"{case_path}/attachments/x",
    ):
        assert await problem_of(await edge.ask("GET", path)) == (404, "unknown_attachment", "attachment")


async def test_a_store_that_is_away_is_503(edge: Edge, case_path: str) -> None:
    """A missing or full disk refuses the upload; the case stays as it was."""
    folder = edge.context.blobs._folder
    folder.mkdir(parents=True, exist_ok=True)
    away = folder.with_name("away")
    folder.rename(away)
    folder.write_text("a file where the folder was")
    try:
        answer = await edge.ask(
            "POST", f"{case_path}/attachments", data=jpeg(1, 1), headers={"Content-Type": "image/jpeg"}
        )
        assert await problem_of(answer) == (503, "storage_unavailable", None)
        assert answer.headers["Retry-After"] == "5"
    finally:
        folder.unlink()
        away.rename(folder)
    assert (await (await edge.ask("GET", case_path)).json())["version"] == 1
