"""What the demo's mail server has received: it keeps every message and delivers none."""

from __future__ import annotations

import asyncio
import email
import email.policy
import email.utils
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import EmailMessage
from pathlib import Path

from gateway.dev.steps import StepFailed

_SHOWN = 50


@dataclass(frozen=True, slots=True)
class Mail:
    """One message, with its text part."""

    at: datetime
    sender: str
    to: str
    subject: str
    message_id: str
    text: str


def read_mails(maildir: Path) -> list[Mail]:
    """The newest messages, newest first. Reads files: call it in a thread."""
    files = [path for part in ("new", "cur") for path in (maildir / part).glob("*") if path.is_file()]
    files.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    return [_read(path) for path in files[:_SHOWN]]


def _read(path: Path) -> Mail:
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    assert isinstance(message, EmailMessage)  # noqa: S101 - the policy makes them so
    body = message.get_body(("plain", "html"))
    return Mail(
        at=datetime.fromtimestamp(path.stat().st_mtime, UTC),
        sender=str(message["From"] or ""),
        to=str(message["To"] or ""),
        subject=str(message["Subject"] or ""),
        message_id=str(message["Message-ID"] or ""),
        text=str(body.get_content()) if body is not None else "",
    )


async def find_mail(maildir: Path, reference: str) -> Mail | None:
    """The one message about a reference, None while there is none; StepFailed when there are more."""
    mails = await asyncio.to_thread(read_mails, maildir)
    about = [mail for mail in mails if reference in mail.subject + mail.text]
    if len(about) > 1:
        raise StepFailed(f"{len(about)} messages about {reference}")
    return about[0] if about else None
