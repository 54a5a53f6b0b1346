"""The fields of a form that a browser sends."""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import http_exceptions, web

# What aiohttp raises for a body that is no form: cut off, wrongly framed, or in a charset or encoding nobody knows.
_BROKEN = (
    ValueError,
    LookupError,
    RuntimeError,
    http_exceptions.HttpProcessingError,
    web.RequestPayloadError,
)


async def posted_fields(request: web.Request) -> Mapping[str, str | bytes | bytearray | web.FileField]:
    """The form's fields; raises HTTPBadRequest, which says nothing of the bytes, for a body that is no form."""
    try:
        return await request.post()
    except _BROKEN:
        # `from None`: the errors quote the body, and a traceback would carry it into a log
        raise web.HTTPBadRequest(
            text="This form cannot be read. Go back, load the page again and send it once more."
        ) from None
