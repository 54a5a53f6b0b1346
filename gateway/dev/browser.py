"""The resident's journey in headless Chromium, once with JavaScript and once without, where a Chromium is installed."""

from __future__ import annotations

import os
import re
import shutil
from typing import TYPE_CHECKING

from gateway.dev import synthetic
from gateway.dev.desks import CONTRACTOR
from gateway.dev.mailbox import find_mail
from gateway.dev.running import Running, png
from gateway.dev.steps import StepFailed, Steps, until

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = (
    "--headless",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
_WAIT_MS = 20_000


def find_browser() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


async def walk_in_browser(running: Running, steps: Steps) -> None:
    """Walks the journey as a resident sees it; says so when there is no browser to do it with."""
    path = find_browser()
    try:
        from playwright.async_api import async_playwright
    except ModuleNotFoundError:
        path = None
    if path is None:
        steps.say("\nbrowser: none found, journey walked by HTTP only")
        return
    arguments = [*_ARGUMENTS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            steps.say(f"\nThe journey, in {path} {browser.version}")
            for scripted in (True, False):
                await _Visit(running, steps, browser, scripted=scripted).walk()
        finally:
            await browser.close()


class _Visit:
    """One resident with one browser."""

    def __init__(self, running: Running, steps: Steps, browser: Browser, *, scripted: bool) -> None:
        self._running = running
        self._steps = steps
        self._browser = browser
        self._scripted = scripted
        self._how = "with JavaScript" if scripted else "without JavaScript"
        self._complaints: list[str] = []

    async def walk(self) -> None:
        context = await self._browser.new_context(java_script_enabled=self._scripted, locale="en-GB")
        context.set_default_timeout(_WAIT_MS)
        try:
            page = await context.new_page()
            page.on("pageerror", lambda error: self._complaints.append(str(error)))
            page.on("console", lambda said: self._complaints.append(said.text) if _is_refusal(said.text) else None)
            await self._find_toilet(page)
            await self._answer(page)
            reference = await self._send(page)
            await self._follow(page, reference)
            await self._operate(page, reference)
            if self._complaints:
                raise StepFailed(f"the browser complained: {self._complaints[0]}")
        finally:
            await context.close()

    async def _find_toilet(self, page: Page) -> None:
        async with self._steps.step(f"{self._how}: postcode, address, nearest toilet") as notes:
            await page.goto(self._running.form)
            await page.get_by_role("button", name="Start now").click()
            await _continue(page)
            await page.get_by_role("alert").get_by_text("Enter a postcode").wait_for()
            await page.get_by_label("What is the postcode").fill(synthetic.EXAMPLE_POSTCODE.replace(" ", "").lower())
            if not self._scripted:
                await _continue(page)
            await page.locator("#uprn").select_option(index=1)
            await _continue(page)
            await page.get_by_role("heading", name="Which toilet is it?").wait_for()
            notes.append("address look-ahead on the same page" if self._scripted else "address on its own page")
            await page.get_by_role("radio").first.check()
            await _continue(page)
            another = page.get_by_label("Report another problem")
            await page.get_by_role("heading", name=re.compile("What is wrong|Someone has reported")).wait_for()
            if await another.is_visible():
                notes.append("told that it was reported already")
                await another.check()
                await _continue(page)

    async def _answer(self, page: Page) -> None:
        async with self._steps.step(f"{self._how}: problem, description, photo, contact details"):
            await page.get_by_label("A blocked toilet").check()
            await _continue(page)
            await page.get_by_label("Describe the problem").fill("The left basin is blocked.")
            await _continue(page)
            photo = {"name": "basin.png", "mimeType": "image/png", "buffer": png()}
            await page.locator("input[type=file]").set_input_files(photo)  # type: ignore[arg-type] # a plain dict will do
            await _continue(page)
            await page.get_by_label("Full name").fill("Exempla Samplethorpe")
            await page.get_by_label("Email address").fill("not an address")
            await _continue(page)
            await page.get_by_role("alert").get_by_text("Enter an email address").wait_for()
            await page.get_by_label("Email address").fill("resident@example.org")
            await _continue(page)

    async def _send(self, page: Page) -> str:
        async with self._steps.step(f"{self._how}: check, send, reference") as notes:
            await page.get_by_role("heading", name="Check your answers").wait_for()
            await page.get_by_role("button", name="Send the report").click()
            await page.get_by_role("heading", name="Report sent").wait_for()
            await page.get_by_role("heading", name="Photo added").wait_for()
            reference = await page.locator(".govuk-panel__body strong").inner_text()
            notes.append(reference)
        return reference

    async def _follow(self, page: Page, reference: str) -> None:
        screens = self._running.screens
        async with self._steps.step(f"{self._how}: with the contractor, and mailed once"):
            row = await until("the row", lambda: screens.find(CONTRACTOR, reference))
            await until("the message", lambda: find_mail(self._running.maildir, reference))
        async with self._steps.step(f"{self._how}: the contractor's new status appears on the page") as notes:
            await screens.set_status(CONTRACTOR, row["id"], "ASSIGNED")
            shown = page.get_by_role("heading", name="In progress")
            if self._scripted:
                await shown.wait_for()
                notes.append("live")
                return

            async def loaded_again() -> bool | None:
                await page.get_by_role("link", name="See if anything has changed").click()
                return await shown.is_visible() or None

            await until("the new status", loaded_again)

    async def _operate(self, page: Page, reference: str) -> None:
        async with self._steps.step(f"{self._how}: the operator's page shows the whole way"):
            await page.goto(f"{self._running.admin}/admin/")
            await page.get_by_label("API key").fill(self._running.operator_key)
            await page.get_by_role("button", name="Sign in").click()
            await page.get_by_label("Correlation id").fill(reference)
            await page.get_by_role("button", name="Show what flowed where").click()
            await page.get_by_role("heading", name="Case created: version 1").wait_for()
            await page.get_by_role("heading", name="Polled back from contractor").first.wait_for()


def _is_refusal(said: str) -> bool:
    return "Content Security Policy" in said


async def _continue(page: Page) -> None:
    await page.get_by_role("button", name="Continue").click()
