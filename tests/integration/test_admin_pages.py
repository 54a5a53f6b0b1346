"""The operator's pages over a real database: who gets in, what they show, and what they never show."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import pytest
from yarl import URL

from tests.integration import operator_rows as rows
from tests.integration.broken_forms import BROKEN_FORMS
from tests.integration.operator_pages import Operator, busy, operator, pool

__all__ = ["busy", "operator", "pool"]

PAGES = ("/admin/", "/admin/flow", "/admin/cases", "/admin/parked", "/admin/effects", "/admin/rejects", "/admin/audit")


async def test_strangers_see_the_login_page_only(operator: Operator) -> None:
    """Without a session every page leads to the login page, and that page needs nothing."""
    for path in PAGES:
        async with operator.http.get(operator.url + path, allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/admin/login")
    assert "Sign in" in await operator.read("/admin/login")


@pytest.mark.parametrize("path", ["/admin/static/../pages.py", "/admin/static/%2e%2e/pages.py", "/admin/static/../"])
async def test_style_is_all_that_strangers_read_of_the_disk(operator: Operator, path: str) -> None:
    """The open static folder cannot be left."""
    async with operator.http.get(URL(operator.url + path, encoded=True), allow_redirects=False) as answer:
        assert answer.status in (303, 403, 404)


async def test_session_cookie_is_kept_to_the_pages(operator: Operator) -> None:
    """The cookie is HttpOnly, SameSite=Strict and bound to /admin; it does not show the key; signing in is audited."""
    response = await operator.sign_in()
    cookie = response.headers["Set-Cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict", "Path=/admin", "Max-Age=28800"))
    assert operator.key not in cookie
    assert [action for action, _ in operator.context.audit.actions] == ["admin.login"]


async def test_a_key_without_the_scope_opens_nothing(operator: Operator) -> None:
    """Only `admin:read` opens the pages; the refusal does not say whether the key exists."""
    website = await operator.context.keys.add("website", ["cases:read", "lookups:*"])
    refused = await operator.sign_in(website)
    unknown = await operator.sign_in("sg_aaaaaaaaaaaa_" + "x" * 43)
    assert refused.status == unknown.status == 400
    assert "Set-Cookie" not in refused.headers
    assert "scope admin:read" in await refused.text()
    assert operator.context.audit.actions == []


async def test_revoking_a_key_ends_its_sessions(operator: Operator) -> None:
    """A session lives no longer than its key."""
    await operator.sign_in()
    await operator.read("/admin/")
    await operator.context.keys.revoke(operator.key.split("_")[1])
    await operator.read("/admin/", status=303)


async def test_another_website_cannot_sign_an_operator_in_or_out(operator: Operator) -> None:
    """Forms sent from elsewhere are refused, whichever way the browser says so."""
    assert (await operator.sign_in(**{"Sec-Fetch-Site": "cross-site"})).status == 403
    assert (await operator.sign_in(Origin="https://elsewhere.example")).status == 403
    assert (await operator.sign_in(Origin=operator.url)).status == 303


async def test_signing_out_ends_the_session(operator: Operator) -> None:
    """After signing out the pages are closed again."""
    await operator.sign_in()
    await operator.http.post(f"{operator.url}/admin/logout", allow_redirects=False)
    await operator.read("/admin/", status=303)


async def test_every_page_keeps_itself_to_itself(busy: Operator) -> None:
    """No cache, no frame, no inline script, no index."""
    for path in PAGES:
        async with busy.http.get(busy.url + path) as response:
            text = await response.text()
            assert response.headers["Cache-Control"] == "no-store"
            policy = response.headers["Content-Security-Policy"]
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert "noindex" in response.headers["X-Robots-Tag"]
            assert "<script>" not in text
            assert "style=" not in text
            assert "onclick" not in text


async def test_no_page_shows_what_is_sealed(busy: Operator) -> None:
    """Neither the sealed columns nor what they hold appear anywhere."""
    asked = ("/admin/flow?q=" + what for what in (rows.LITTER_CORRELATION, "RAP-0000-BLCK"))
    for path in (*PAGES, *asked):
        text = await busy.read(path)
        assert "Alex" not in text
        assert "alex@" not in text
        assert "sealed:" not in text


async def test_overview_counts_what_is_there(busy: Operator) -> None:
    """Cases by status, what waits, effects by state, each silo's last load."""
    text = " ".join((await busy.read("/admin/")).split())
    for figure, label in (("1", "in progress"), ("1", "parked cases"), ("1", "effects unknown"), ("1", "effects done")):
        assert f'<span class="counts__number">{figure}</span>' in text
        assert label in text
    assert "unpublished events, the oldest for" in text
    assert "street-team" in text
    assert ">assets</th>" in text
    assert 'href="/admin/rejects#assets">1</a>' in text
    assert "never loaded" in text


@pytest.mark.parametrize("asked", [rows.LITTER_CORRELATION, "RAP-7KQ2-93XD", "rap-7kq2-93xd", str(rows.LITTER)])
async def test_one_timeline_from_request_to_recipient_and_back(busy: Operator, asked: str) -> None:
    """Whatever a case is asked by, its moments come in the order in which they happened."""
    text = await busy.read("/admin/flow?q=" + asked)
    titles = (
        "Case created: version 1",
        "Version 1 published",
        "Planned: confirmation by smtp",
        "street-team has version 1",
        "Attempt 1: confirmation by smtp",
        "Done: confirmation by smtp",
        "Polled back from street-team: version 2, status in_progress",
        "Version 2 published",
    )
    places = [text.index(title) for title in titles]
    assert places == sorted(places)
    assert "effect.attempt" in text
    assert "duty officer (key:" in text
    assert "RAP-0000-BLCK" not in text


async def test_an_unknown_effect_says_what_would_resolve_it(busy: Operator) -> None:
    """Unknown is said plainly, with where to look, on the timeline and in the list."""
    for path in (f"/admin/flow?q={rows.MAIL_UNKNOWN}", "/admin/effects?state=unknown"):
        text = await busy.read(path)
        assert "It may or may not have happened" in text
        assert f"&lt;{rows.MAIL_UNKNOWN}@…&gt;" in text


async def test_parked_and_unpublished_are_said(busy: Operator) -> None:
    """The timeline of a case in trouble names consumer, stage, field and reason."""
    text = await busy.read("/admin/flow?q=RAP-0000-BLCK")
    assert "Parked at recipient.contractor" in text
    assert "JobTitle" in text
    assert "too_long" in text
    assert "Version 1 waits to be published" in text
    parked = await busy.read("/admin/parked")
    assert "recipient.contractor" in parked
    assert "key_is_no_case" in parked


async def test_rejects_name_row_column_and_reason(busy: Operator) -> None:
    """The newest complete load's rejected rows, per silo."""
    text = await busy.read("/admin/rejects")
    assert all(part in text for part in ("assets.csv", "CoordinateReferenceSystem", "must be OSGB36", "whole table"))


@pytest.mark.parametrize("asked", ["%00", "nothing-known", "' or 1=1 --", "%F0%9F%92%A9", "x" * 5000, "%ED%A0%80"])
async def test_odd_questions_find_nothing(busy: Operator, asked: str) -> None:
    """Whatever is typed into the search, the page answers and finds nothing."""
    text = await busy.read("/admin/flow?q=" + asked)
    assert "RAP-" not in text
    assert "RAP-7KQ2" in await busy.read("/admin/cases?after=" + asked)
    assert "No case here" in await busy.read("/admin/cases?status=nothing")


@pytest.mark.parametrize(
    "after",
    [
        "0001-01-01T00:00:00+14:00~{id}~0",
        "9999-12-31T23:59:59-14:00~{id}~0",
        "9999-12-31T23:59:59.999999~{id}~0",
        "0001-01-01T00:00:00~{id}~0",
        "2999-01-01T00:00:00+00:00~{id}~9223372036854775808",
        "2999-01-01T00:00:00+00:00~{id}~-1",
        "2999-01-01T00:00:00+00:00~{id}~" + "9" * 3000,
    ],
)
async def test_a_position_out_of_bounds_is_the_beginning(busy: Operator, after: str) -> None:
    """No date or number in the address makes a page say that the database is away."""
    position = quote(after.format(id=rows.LITTER))
    assert "RAP-7KQ2" in await busy.read("/admin/cases?after=" + position)
    for path in ("/admin/effects", "/admin/audit"):
        await busy.read(f"{path}?after={position}")


async def test_a_position_is_a_moment_whatever_its_offset(busy: Operator) -> None:
    """The same moment written with another offset, or the largest number, is a position like any other."""
    later, earlier = "2999-01-01T00:30:00+01:00", "1971-01-01T00:30:00+01:00"
    for n in (0, 2**63 - 1):
        assert "RAP-7KQ2" in await busy.read("/admin/cases?after=" + quote(f"{later}~{rows.LITTER}~{n}"))
        assert "RAP-7KQ2" not in await busy.read("/admin/cases?after=" + quote(f"{earlier}~{rows.LITTER}~{n}"))
        await busy.read("/admin/audit?after=" + quote(f"{later}~{rows.LITTER}~{n}"))


@pytest.mark.parametrize("name", BROKEN_FORMS)
async def test_a_login_that_is_no_form_is_refused(
    operator: Operator, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A broken body or an unknown charset is the sender's fault, and neither answer nor log repeats it."""
    content_type, body = BROKEN_FORMS[name]
    headers = {"Content-Type": content_type}
    async with operator.http.post(operator.url + "/admin/login", data=body, headers=headers) as answer:
        assert answer.status == 400
        assert (await answer.text()).startswith("This form cannot be read.")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "needle" not in caplog.text
    assert "Traceback" not in caplog.text


async def test_lists_go_on_where_they_ended(busy: Operator) -> None:
    """Following `Older` shows each case once, newest first."""
    async with busy.context.pool.acquire() as connection:
        await connection.execute(
            "insert into cases (id, reference, type, version, status, document, sealed, submitted_by, created_at)"
            " select gen_random_uuid(), 'RAP-MANY-' || lpad(n::text, 4, '0'), 'public-toilet-problem', 1, 'open', '{}',"
            " '', 'form', now() from generate_series(1, 120) n"
        )
    seen: list[str] = []
    path: str | None = "/admin/cases?status=open"
    while path:
        text = await busy.read(path)
        seen += _between(text, 'href="/admin/flow?q=', '"')
        older = [link for link in _between(text, 'href="?', '"') if "after=" in link]
        path = "/admin/cases?" + older[0].replace("&amp;", "&") if older else None
    assert len(seen) == len(set(seen)) == 121
    assert seen[-1] == "RAP-0000-BLCK"


async def test_a_database_that_is_away_is_said(operator: Operator) -> None:
    """The page says so with 503 instead of failing."""
    await operator.sign_in()
    await operator.read("/admin/")
    await operator.context.pool.close()
    text = await operator.read("/admin/", status=503)
    assert "The database does not answer" in text


def _between(text: str, before: str, after: str) -> list[Any]:
    return [part.split(after)[0] for part in text.split(before)[1:]]
