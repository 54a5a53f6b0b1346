"""Photos of a case: taken when they are what they say they are, and given back as nothing else."""

from __future__ import annotations

from uuid import UUID

import orjson
from aiohttp import web

from gateway.api.cases import case_id_of, refusals
from gateway.blobs import BlobsUnavailable, UnknownBlob
from gateway.context import CONTEXT
from gateway.exchange import EXCHANGE
from gateway.images import MEDIA_TYPES, decode_header
from gateway.limits import read_body
from gateway.problems import Problem

_ATTACHMENT = "select sha256, media_type from attachment where id = $1 and case_id = $2"
_EXISTS = "select true from cases where id = $1"
_ENDINGS = {"image/jpeg": "jpg", "image/png": "png", "image/webp": "webp"}


async def add_attachment(request: web.Request) -> web.Response:
    """Stores a photo by its content, then records it; the same photo twice is one attachment."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    case_id = case_id_of(request)
    media_type = request.content_type
    if media_type not in MEDIA_TYPES:
        detail = f"An attachment is one of {', '.join(MEDIA_TYPES)}."
        raise Problem("unsupported_media_type", detail, field="Content-Type")
    # before the bytes come: nothing is stored for a case that does not exist
    if await context.pool.fetchval(_EXISTS, case_id) is None:
        raise Problem("unknown_case", "There is no case with this id.", field="id")
    content = await read_body(request, context.settings.attachment_cap)
    image = decode_header(content)
    if image is None or image.media_type != media_type:
        found = "not an image that we know" if image is None else image.media_type
        raise Problem("not_what_it_says", f"The content is {found}, not {media_type}.", field="Content-Type")
    if not image.is_plausible:
        raise Problem("not_what_it_says", "The image's size is not that of a photo.", field="")
    try:
        blob = await context.blobs.store(content)
    except BlobsUnavailable as error:
        raise _unavailable() from error
    async with refusals():
        added = await context.cases.attach(
            case_id,
            blob.sha256,
            media_type,
            blob.bytes,
            actor=exchange.actor,
            origin="form",
            correlation_id=exchange.correlation_id,
        )
    exchange.outcome = "attached"
    exchange.detail = {"attachment": str(added.id), "bytes": blob.bytes}
    body = {"id": str(added.id), "sha256": added.sha256, "media_type": added.media_type, "bytes": added.bytes}
    headers = {"Location": f"/v1/cases/{case_id}/attachments/{added.id}"}
    return web.Response(status=201, body=orjson.dumps(body), headers=headers, content_type="application/json")


async def get_attachment(request: web.Request) -> web.Response:
    """The photo again, under headers that keep a browser from taking it for anything else."""
    context, exchange = request.app[CONTEXT], request[EXCHANGE]
    case_id = case_id_of(request)
    try:
        attachment_id = UUID(request.match_info["attachment"])
    except ValueError:
        raise _unknown_attachment() from None
    row = await context.pool.fetchrow(_ATTACHMENT, attachment_id, case_id)
    if row is None:
        raise _unknown_attachment()
    try:
        content = await context.blobs.read(row["sha256"])
    except (BlobsUnavailable, UnknownBlob) as error:
        raise _unavailable() from error
    exchange.outcome = "read"
    exchange.detail = {"attachment": str(attachment_id)}
    name = f"{attachment_id}.{_ENDINGS[row['media_type']]}"
    headers = {
        "Content-Disposition": f'attachment; filename="{name}"',
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "ETag": f'"{row["sha256"]}"',
    }
    return web.Response(body=content, headers=headers, content_type=row["media_type"])


def _unknown_attachment() -> Problem:
    return Problem("unknown_attachment", "The case has no attachment with this id.", field="attachment")


def _unavailable() -> Problem:
    detail = "The attachment store cannot be reached. Try again shortly."
    return Problem("storage_unavailable", detail, headers={"Retry-After": "5"})
