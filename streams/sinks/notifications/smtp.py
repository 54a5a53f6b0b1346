"""E-mail by SMTP. A lost worker leaves doubt in one moment only: between the last dot and the server's answer.

A server takes responsibility for a message when it has answered the dot that ends it (RFC 5321 §4.2.5). Everything but
that dot is sent first, then the ledger is told, then the dot goes out. A server that never saw the dot has no message.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import unquote, urlsplit

import aiosmtplib
from aiosmtplib.protocol import SMTPProtocol

from streams.failpoints import reach
from streams.sinks import Ambiguous, CommitPoint, NotSent, Order, SinkClass
from streams.sinks.notifications.message import (
    BadAddress,
    Envelope,
    MessageTooLarge,
    address,
    compose,
    sender_address,
    stuffed,
)
from streams.sinks.notifications.templates import MailTemplate, Unrenderable

_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?=\s|$)")
_NOT_PRINTABLE = re.compile(r"[^\x20-\x7e]+")
_PORTS = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}


class BadServer(ValueError):
    """The address of the mail server cannot be used; says why, without a password."""


@dataclass(frozen=True, slots=True)
class MailServer:
    """Where mail is handed over. `tls`: `if_offered` upgrades when the server can, `required` refuses to go on without.

    Certificates are verified in all three; `tls_context` replaces the system's authorities.
    """

    host: str
    port: int = 25
    tls: Literal["if_offered", "required", "from_the_start"] = "if_offered"
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls_context: ssl.SSLContext | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, url: str) -> MailServer:
        """Read `smtp://host:25`, `smtp+starttls://user:password@host` or `smtps://user:password@host`.

        Raises BadServer, also for a password on a connection that may stay in clear.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise BadServer("is not an address of the form smtp://host:port") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise BadServer("is not an address of the form smtp://, smtp+starttls:// or smtps://host:port")
        if parts.username and parts.scheme == "smtp":
            raise BadServer("sends a password, so it must begin with smtps:// or smtp+starttls://")
        tls: dict[str, Literal["if_offered", "required", "from_the_start"]]
        tls = {"smtp": "if_offered", "smtp+starttls": "required", "smtps": "from_the_start"}
        return cls(
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            tls=tls[parts.scheme],
            username=unquote(parts.username) if parts.username else None,
            password=unquote(parts.password) if parts.password else None,
        )


class SmtpSink:
    """Sends templates as e-mail. Of class `none`: a mail server can be asked nothing about a message afterwards."""

    sink_class = SinkClass.NONE

    def __init__(
        self,
        server: MailServer,
        sender: str,
        templates: Mapping[str, MailTemplate],
        *,
        name: str = "email",
        timeout_s: float = 60.0,
        command_timeout_s: float = 20.0,
    ) -> None:
        """Take the templates by `flow/template`. Raises BadAddress when `sender` is not `name@domain`."""
        self.name = name
        self.timeout_s = timeout_s
        self._server = server
        self._sender = sender_address(sender)
        self._templates = dict(templates)
        self._command_timeout_s = command_timeout_s

    def render(self, order: Order) -> bytes:
        """Return the envelope and message of an order; the same order always gives the same bytes."""
        payload = order.payload
        template = self._templates.get(f"{payload['flow']}/{payload['template']}")
        if template is None:
            # A worker of another release may know it: the effect waits for one.
            raise NotSent("template_unknown")
        try:
            recipient = address(payload["to"])
            text = template.render(payload)
            at = datetime.fromisoformat(payload["case"]["at"])
            return compose(order.effect_id, self._sender, recipient, text, at).to_bytes()
        except BadAddress:
            raise NotSent("address_refused", permanent=True) from None
        except MessageTooLarge:
            raise NotSent("message_too_large", permanent=True) from None
        except Unrenderable as error:
            raise NotSent(f"template_failed:{error.reason}") from None

    async def perform(self, request: bytes, *, commit_point: CommitPoint) -> str:
        """Hand the message over; return the server's answer to the last dot, without addresses."""
        envelope = Envelope.from_bytes(request)
        client = self._client()
        try:
            protocol = await self._all_but_the_dot(client, envelope)
            await commit_point()
            return await self._dot(protocol)
        finally:
            # What is buffered is still flushed, and it never ends in the dot unless `_dot` has written it.
            client.close()

    def _client(self) -> aiosmtplib.SMTP:
        server = self._server
        return aiosmtplib.SMTP(
            hostname=server.host,
            port=server.port,
            username=server.username,
            password=server.password,
            # Said in EHLO. The library's own choice asks the DNS for this machine's name, which may take long.
            local_hostname=self._sender.domain,
            timeout=self._command_timeout_s,
            use_tls=server.tls == "from_the_start",
            start_tls={"if_offered": None, "required": True, "from_the_start": False}[server.tls],
            tls_context=server.tls_context,
        )

    async def _all_but_the_dot(self, client: aiosmtplib.SMTP, envelope: Envelope) -> SMTPProtocol:
        stage = "connect"
        try:
            await client.connect()
            stage = "sender"
            await client.mail(envelope.sender)
            stage = "recipient"
            await client.rcpt(envelope.recipient)
            stage = "data"
            answer = await client.execute_command(b"DATA")
            if answer.code != 354:
                raise _refused(stage, answer.code, answer.message)
            stage = "message"
            return await self._message(client, stuffed(envelope.message))
        except aiosmtplib.SMTPResponseException as error:
            raise _refused(stage, error.code, error.message) from None
        except (aiosmtplib.SMTPException, OSError) as error:
            # The text of these errors may quote the recipient's address; their kind never does.
            raise NotSent(f"smtp_{stage}:{type(error).__name__}") from None

    async def _message(self, client: aiosmtplib.SMTP, lines: bytes) -> SMTPProtocol:
        protocol = client.protocol
        if protocol is None:
            raise aiosmtplib.SMTPServerDisconnected("Connection lost")
        half = len(lines) // 2
        protocol.write(lines[:half])
        reach("effect.mid_message")
        protocol.write(lines[half:])
        async with asyncio.timeout(self._command_timeout_s):
            await _flushed(protocol)
        if not protocol.is_connected:
            raise aiosmtplib.SMTPServerDisconnected("Connection lost")
        return protocol

    async def _dot(self, protocol: SMTPProtocol) -> str:
        # Dying here leaves `unknown` though nothing was sent: the smallest window there can be, for what is written to
        # the database and what is written to the server cannot be one write.
        reach("effect.before_dot")
        try:
            protocol.write(b".\r\n")
        except aiosmtplib.SMTPServerDisconnected:
            raise NotSent("smtp_dot:SMTPServerDisconnected") from None
        reach("effect.after_dot")
        try:
            answer = await protocol.read_response(timeout=self._command_timeout_s)
        except (aiosmtplib.SMTPException, OSError) as error:
            raise Ambiguous(f"smtp_answer_lost:{type(error).__name__}") from None
        if 200 <= answer.code < 300:
            _say_goodbye(protocol)
            return _reference(answer.code, answer.message)
        if 400 <= answer.code < 600:
            raise _refused("dot", answer.code, answer.message)
        raise Ambiguous(f"smtp_answer_senseless:{answer.code}")


async def _flushed(protocol: SMTPProtocol) -> None:
    """Wait until the kernel has the whole message: a server that stopped reading must be found out before the dot.

    Polled, because the library offers no drain; a message as small as ours is gone at the first look.
    """
    while (transport := protocol.transport) is not None and not transport.is_closing():
        if not isinstance(transport, asyncio.WriteTransport) or not transport.get_write_buffer_size():
            return
        await asyncio.sleep(0.01)


def _say_goodbye(protocol: SMTPProtocol) -> None:
    # Polite, and not waited for: the outcome is known and must be written down now.
    try:
        protocol.write(b"QUIT\r\n")
    except aiosmtplib.SMTPServerDisconnected:
        return


def _refused(stage: str, code: int, answer: str) -> NotSent:
    """Tell what a refusal means. Only codes are kept: the words of a server often quote the address.

    A 5xx is for good when it is about this recipient or this message. Before that it is about us (greeting, TLS,
    log-in, sender): the same mail will be taken once a person has put it right.
    """
    enhanced = _ENHANCED.match(answer)
    reason = f"smtp_{stage}:{code}" + (f":{enhanced[0]}" if enhanced else "")
    return NotSent(reason, permanent=500 <= code < 600 and stage in {"recipient", "data", "dot"})


def _reference(code: int, answer: str) -> str:
    words = _NOT_PRINTABLE.sub(" ", answer).split()
    return " ".join([str(code), *("[address]" if "@" in word else word for word in words)])[:200]
