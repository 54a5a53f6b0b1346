"""The SMTP sink against a real mail server, and against servers that refuse, hang, lie or leave at every step."""

from __future__ import annotations

import asyncio
import mailbox
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from aiosmtpd.smtp import SMTP, AuthResult
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from gateway.dev.addresses import Servers
from streams.sinks import Ambiguous, LeaseLost, NotSent, Order, SinkClass
from streams.sinks.notifications.message import BadAddress, Envelope, stuffed
from streams.sinks.notifications.smtp import BadServer, MailServer, SmtpSink
from tests.effects import RESIDENT, templates

SENDER = "Adur & Worthing Councils <no-reply@council.example>"


def order(to: object = RESIDENT, template: str = "confirmation") -> Order:
    payload = {
        "flow": "report-a-problem",
        "template": template,
        "to": to,
        "case": {"id": "x", "reference": "RAP-7KQ2-93XD", "version": 1, "at": "2026-11-22T09:30:00+00:00"},
        "public": {"category": "litter", "status": "open"},
        "personal": {"submitter": {"name": "Ada Whitfield", "email": to}},
    }
    return Order(uuid4(), uuid4(), "confirmation", payload)


def sink(port: int, **changed: Any) -> SmtpSink:
    server = MailServer("127.0.0.1", port, **changed)
    return SmtpSink(server, SENDER, templates(), command_timeout_s=1.0)


class CommitPoint:
    """Counts how often it was passed, after as long as a database may take, or refuses."""

    def __init__(self, refuse: Exception | None = None, *, takes_s: float = 0.0) -> None:
        self.passed = 0
        self._refuse = refuse
        self._takes_s = takes_s

    async def __call__(self) -> None:
        await asyncio.sleep(self._takes_s)
        if self._refuse is not None:
            raise self._refuse
        self.passed += 1


class Script:
    """A mail server that answers each command as told. It keeps what it read, and knows whether it saw the last dot."""

    def __init__(self, **answers: str | None) -> None:
        self._answers = {"greeting": "220 mail.example", "ehlo": "250 mail.example", "mail": "250 OK", "rcpt": "250 OK"}
        self._answers |= {"data": "354 go on", "dot": "250 2.0.0 OK queued as 4XyZ", "quit": "221 bye"}
        self._told = answers
        self.message = b""
        self.saw_dot = False
        self.port = 0
        self._served = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Script]:
        """Serve one conversation; returns when it has ended."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server, asyncio.timeout(10):
            yield self
            await self._served.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if await self._answer("greeting", writer):
                while line := await reader.readline():
                    word = line[:4].strip().lower().decode()
                    if not await self._answer(word, writer):
                        break
                    if word == "data" and not await self._take(reader, writer):
                        break
        except ConnectionError:
            pass  # the client has left, as it may
        finally:
            writer.close()
            self._served.set()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if "message" in self._told:
            await reader.readline()
            await self._answer("message", writer)
            return False
        while line := await reader.readline():
            if line == b".\r\n":
                self.saw_dot = True
                return await self._answer("dot", writer)
            self.message += line
        return False

    async def _answer(self, word: str, writer: asyncio.StreamWriter) -> bool:
        """Answer as told: a text, nothing at all ("silence"), or by leaving (None)."""
        answer = self._told.get(word, self._answers.get(word, "500 what?"))
        if answer is None:
            return False
        if answer != "silence":
            writer.write(answer.encode() + b"\r\n")
            await writer.drain()
        return True


async def fails(script: Script, kind: type[Exception], *, takes_s: float = 0.0) -> Any:
    """Send one mail to the script; return the error and whether the commit point was passed."""
    gate = CommitPoint(takes_s=takes_s)
    async with script.serving():
        mail = sink(script.port)
        with pytest.raises(kind) as caught:
            await mail.perform(mail.render(order()), commit_point=gate)
    assert RESIDENT not in str(caught.value)
    return caught.value, gate.passed


def count_of(maildir: Path, message_id: str) -> int:
    return sum(message["Message-ID"] == message_id for message in mailbox.Maildir(maildir))


async def test_a_real_server_takes_the_mail(servers: Servers) -> None:
    """The mail lies in the mailbox once, byte for byte as it was stored, and the server's answer is the reference."""
    mail = SmtpSink(MailServer(servers.smtp_host, servers.smtp_port), SENDER, templates())
    wanted = order()
    request = mail.render(wanted)
    gate = CommitPoint()

    reference = await mail.perform(request, commit_point=gate)

    assert (reference.split()[0], gate.passed) == ("250", 1)
    message_id = f"<{wanted.effect_id}@council.example>"
    assert count_of(servers.maildir, message_id) == 1
    (found,) = (message for message in mailbox.Maildir(servers.maildir) if message["Message-ID"] == message_id)
    assert (found["X-MailFrom"], found["X-RcptTo"]) == ("no-reply@council.example", RESIDENT)
    assert found["Subject"] == "We have received your report: RAP-7KQ2-93XD"
    assert mail.sink_class is SinkClass.NONE


async def test_every_byte_arrives_as_stored() -> None:
    """What the server read, dots taken off, is the stored message: nothing is rendered or changed on the way."""
    async with Script().serving() as script:
        mail = sink(script.port)
        request = mail.render(order())
        await mail.perform(request, commit_point=CommitPoint())
    stored = Envelope.from_bytes(request)
    assert script.message == stuffed(stored.message)
    assert stored.message in script.message
    assert script.saw_dot


async def test_a_refused_commit_point_keeps_the_dot_back() -> None:
    """When the ledger says stop, the server has everything but the dot, and so has no message."""
    async with Script().serving() as script:
        mail = sink(script.port)
        with pytest.raises(LeaseLost):
            await mail.perform(mail.render(order()), commit_point=CommitPoint(LeaseLost()))
    assert script.message.endswith(b"--\r\n")
    assert not script.saw_dot


@pytest.mark.parametrize("step", ["greeting", "ehlo", "mail", "rcpt", "data"])
@pytest.mark.parametrize("answer", ["421 4.3.2 closing", "silence", None])
async def test_a_server_that_leaves_or_hangs_before_the_dot_has_no_message(step: str, answer: str | None) -> None:
    """Whatever ends the conversation before the dot, it was surely not sent and is tried again later."""
    script = Script(**{step: answer})
    error, passed = await fails(script, NotSent)
    assert not error.permanent
    assert (passed, script.saw_dot) == (0, False)


@pytest.mark.parametrize("answer", ["421 4.3.2 closing", None])
async def test_a_server_that_leaves_in_the_middle_of_the_message_has_none(answer: str | None) -> None:
    """A connection that breaks while the commit point is written is noticed: no dot goes out, surely not sent."""
    script = Script(message=answer)
    error, _ = await fails(script, NotSent, takes_s=0.3)
    assert (error.permanent, script.saw_dot) == (False, False)


@pytest.mark.parametrize(
    ("step", "answer", "permanent", "reason"),
    [
        ("greeting", "554 5.7.1 no mail from you", False, "smtp_connect:554:5.7.1"),
        ("mail", "550 5.7.1 sender refused", False, "smtp_sender:550:5.7.1"),
        ("rcpt", "450 4.2.0 greylisted, ada.whitfield@example.org", False, "smtp_recipient:450:4.2.0"),
        ("rcpt", "550 5.1.1 <ada.whitfield@example.org> unknown", True, "smtp_recipient:550:5.1.1"),
        ("data", "451 try later", False, "smtp_data:451"),
        ("data", "554 no valid recipients", True, "smtp_data:554"),
        ("dot", "452 4.3.1 disk full", False, "smtp_dot:452:4.3.1"),
        ("dot", "550-5.7.1 looks like spam\r\n550 5.7.1 to ada.whitfield@example.org", True, "smtp_dot:550:5.7.1"),
    ],
)
async def test_a_refusal_is_told_by_its_codes(step: str, answer: str, permanent: bool, reason: str) -> None:
    """4xx is tried again, 5xx about this mail ends it, 5xx about the council is tried again; no words are kept."""
    error, _ = await fails(Script(**{step: answer}), NotSent)
    assert (error.permanent, error.reason) == (permanent, reason)


@pytest.mark.parametrize("answer", ["silence", None, "354 go on", "hello"])
async def test_a_lost_or_senseless_answer_to_the_dot_is_ambiguous(answer: str | None) -> None:
    """Once the dot is out, only a clear answer says what happened."""
    error, passed = await fails(Script(dot=answer), Ambiguous)
    assert passed == 1
    assert error.reason.startswith("smtp_answer_")


async def test_the_reference_keeps_no_address() -> None:
    """A server that quotes the recipient in its answer does not bring the address into the ledger."""
    async with Script(dot=f"250 2.0.0 OK <{RESIDENT}> queued as 4XyZ").serving() as script:
        mail = sink(script.port)
        reference = await mail.perform(mail.render(order()), commit_point=CommitPoint())
    assert reference == "250 2.0.0 OK [address] queued as 4XyZ"


async def test_nobody_listens() -> None:
    """A refused connection is not sent, and tried again."""
    mail = sink(9)
    with pytest.raises(NotSent) as caught:
        await mail.perform(mail.render(order()), commit_point=CommitPoint())
    assert (caught.value.permanent, caught.value.reason) == (False, "smtp_connect:SMTPConnectError")


@pytest.mark.parametrize(
    ("wanted", "permanent", "reason"),
    [
        (order(to="ada@example.org\r\nRCPT TO:<x@example.org>"), True, "address_refused"),
        (order(to=None), True, "address_refused"),
        (order(template="renamed"), False, "template_unknown"),
    ],
)
def test_what_cannot_be_rendered_is_not_sent(wanted: Order, permanent: bool, reason: str) -> None:
    """A bad address ends the effect; an unknown template waits for a worker that knows it."""
    with pytest.raises(NotSent) as caught:
        sink(25).render(wanted)
    assert (caught.value.permanent, caught.value.reason) == (permanent, reason)


def test_a_template_that_fails_waits_to_be_mended() -> None:
    """A field that the template needs and the case lacks is not sent, and goes on once the template is put right."""
    wanted = order()
    broken = Order(wanted.effect_id, wanted.case_id, wanted.purpose, {**wanted.payload, "case": {"at": "2026-11-22"}})
    with pytest.raises(NotSent) as caught:
        sink(25).render(broken)
    assert (caught.value.permanent, caught.value.reason) == (False, "template_failed:unknown_field")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("smtp://mail.example", ("mail.example", 25, "if_offered", None, None)),
        ("smtp://127.0.0.1:2525", ("127.0.0.1", 2525, "if_offered", None, None)),
        ("smtp+starttls://bot:p%40ss@mail.example", ("mail.example", 587, "required", "bot", "p@ss")),
        ("smtps://bot:secret@mail.example", ("mail.example", 465, "from_the_start", "bot", "secret")),
    ],
)
def test_a_server_address_is_read(url: str, expected: tuple[object, ...]) -> None:
    """The scheme says how the connection is protected, and sets the usual port."""
    server = MailServer.parse(url)
    assert (server.host, server.port, server.tls, server.username, server.password) == expected
    assert "secret" not in repr(server)


@pytest.mark.parametrize("url", ["http://mail.example", "smtp://", "smtp://mail:x", "smtp://bot:secret@mail.example"])
def test_a_wrong_server_address_is_refused(url: str) -> None:
    """A wrong scheme or port, and a password on a connection that may stay in clear, are refused without quoting it."""
    with pytest.raises(BadServer) as caught:
        MailServer.parse(url)
    assert "secret" not in str(caught.value)


def test_a_wrong_sender_stops_the_worker_at_start() -> None:
    """A sender that is no address is found when the sink is made, not with the first mail."""
    with pytest.raises(BadAddress):
        SmtpSink(MailServer("127.0.0.1"), "no-reply", templates())


class _Taken:
    """A handler of the real server that counts messages."""

    messages = 0

    async def handle_DATA(self, _server: Any, _session: Any, _envelope: Any) -> str:  # noqa: N802 - aiosmtpd's name
        self.messages += 1
        return "250 OK"


@asynccontextmanager
async def protected(tmp_path: Path, *, from_the_start: bool) -> AsyncIterator[tuple[int, _Taken, ssl.SSLContext]]:
    """A real server that wants TLS, its port, and the context that trusts it; after STARTTLS it wants a log-in too."""
    certificate, key = _certificate(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    taken = _Taken()

    def checked(_server: Any, _session: Any, _envelope: Any, _mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=(data.login, data.password) == (b"bot", b"secret"))

    def protocol() -> asyncio.Protocol:
        upgrade: dict[str, Any] = {
            "tls_context": context,
            "require_starttls": True,
            "auth_required": True,
            "authenticator": checked,
        }
        made: asyncio.Protocol = SMTP(taken, hostname="mail.example", **({} if from_the_start else upgrade))
        return made

    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if from_the_start else None)
    async with server:
        yield server.sockets[0].getsockname()[1], taken, ssl.create_default_context(cafile=str(certificate))


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))
        .not_valid_after(datetime.now(UTC) + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(IPv4Address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "mail.crt", folder / "mail.key"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@pytest.mark.parametrize("tls", ["required", "from_the_start"])
async def test_tls_and_log_in(tmp_path: Path, tls: Any) -> None:
    """Mail goes out over STARTTLS with a log-in, and over TLS from the start; the certificate is verified."""
    async with protected(tmp_path, from_the_start=tls == "from_the_start") as (port, taken, trust):
        login = {"username": "bot", "password": "secret"} if tls == "required" else {}
        mail = sink(port, tls=tls, tls_context=trust, **login)
        await mail.perform(mail.render(order()), commit_point=CommitPoint())
    assert taken.messages == 1


@pytest.mark.parametrize(
    "given",
    [
        lambda _trust: {"username": "bot", "password": "secret"},
        lambda trust: {"username": "bot", "password": "wrong", "tls_context": trust},
    ],
    ids=["untrusted certificate", "wrong password"],
)
async def test_without_trust_or_log_in_nothing_is_sent(tmp_path: Path, given: Callable[..., dict[str, Any]]) -> None:
    """A certificate that nobody vouches for and a refused log-in send nothing; both are tried again once mended."""
    async with protected(tmp_path, from_the_start=False) as (port, taken, trust):
        mail = sink(port, tls="required", **given(trust))
        with pytest.raises(NotSent) as caught:
            await mail.perform(mail.render(order()), commit_point=CommitPoint())
    assert not caught.value.permanent
    assert taken.messages == 0


async def test_required_tls_is_never_given_up(tmp_path: Path) -> None:
    """A server that does not offer STARTTLS, or somebody who hides the offer, gets no mail when TLS is required."""
    async with Script().serving() as script:
        mail = sink(script.port, tls="required")
        with pytest.raises(NotSent):
            await mail.perform(mail.render(order()), commit_point=CommitPoint())
    assert script.message == b""


async def test_many_at_once(servers: Servers) -> None:
    """Mails sent at the same time each arrive once."""
    mail = SmtpSink(MailServer(servers.smtp_host, servers.smtp_port), SENDER, templates())
    wanted = [order() for _ in range(20)]

    def send(one: Order) -> Awaitable[str]:
        return mail.perform(mail.render(one), commit_point=CommitPoint())

    await asyncio.gather(*(send(one) for one in wanted))
    for one in wanted:
        assert count_of(servers.maildir, f"<{one.effect_id}@council.example>") == 1
