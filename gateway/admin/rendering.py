"""How a page is made and sent: templates, dates as people write them, and headers that keep a page to itself.

Shared by the operator's pages and the demo's form.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import jinja2
from aiohttp import web

STATIC = Path(__file__).with_name("static")
_ZONE = ZoneInfo("Europe/London")

# No inline script or style anywhere, so neither is allowed. `data:` is GOV.UK Frontend's own small images.
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "X-Robots-Tag": "noindex, nofollow",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


def environment(*folders: Path) -> jinja2.Environment:
    """Templates from `folders`, then the shared ones; escaped, and an unknown name is an error."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).with_name("templates")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["day_and_time"] = day_and_time
    made.filters["exact_time"] = exact_time
    made.filters["iso"] = datetime.isoformat
    made.filters["how_long"] = how_long
    return made


def page(text: str, *, status: int = 200) -> web.Response:
    """An HTML answer that no cache keeps."""
    return web.Response(
        text=text, status=status, content_type="text/html", charset="utf-8", headers={"Cache-Control": "no-store"}
    )


def add_security_headers(response: web.StreamResponse) -> None:
    """Sets each header that the response does not set itself."""
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)


def day_and_time(moment: datetime) -> str:
    """The time for residents: 22 November 2026 at 6:05pm."""
    local = moment.astimezone(_ZONE)
    return f"{local.day} {local:%B %Y} at {local.hour % 12 or 12}:{local:%M}{'am' if local.hour < 12 else 'pm'}"


def exact_time(moment: datetime) -> str:
    """The time for operators: 2026-11-22 18:05:09.123."""
    return f"{moment.astimezone(_ZONE):%Y-%m-%d %H:%M:%S}.{moment.microsecond // 1000:03d}"


def how_long(seconds: float) -> str:
    """A duration with one unit: 450 ms, 12.3 s, 4 min, 3 h, 2 days."""
    for limit, unit, text in ((1, 0.001, "{:.0f} ms"), (120, 1, "{:.1f} s"), (7200, 60, "{:.0f} min")):
        if abs(seconds) < limit:
            return text.format(seconds / unit)
    return f"{seconds / 3600:.0f} h" if abs(seconds) < 172_800 else f"{seconds / 86_400:.0f} days"


def age(moment: datetime, now: datetime | None = None) -> str:
    """How long ago `moment` was."""
    return how_long(((now or datetime.now(UTC)) - moment).total_seconds())
