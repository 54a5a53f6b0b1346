"""A connection that carries whole batches: one write a batch, and its replies parsed in C without a stream in between.

For a batch of sixty entries the client's pipeline costs more than Redis's answer to it. The client still makes the
connection, so addresses, TLS, passwords and databases are its business alone; what is taken from it afterwards is its
transport, which is private: `Wire.open` and `Wire._let_go` are the only places that know. Its names for the errors of a
server are private too, and used here so that an error means the same whichever way it came.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis
from redis._parsers import BaseParser
from redis.asyncio import Connection

Command = tuple[str | int | float | bytes | memoryview, ...]

Told = Callable[[list[Any] | Exception], None]

_UNFINISHED = object()
_BUFFER = 256 << 10


class Wire(asyncio.BufferedProtocol):
    """One connection, for one batch at a time. A batch that is cancelled leaves replies behind: `close` it then."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(replyError=BaseParser.parse_error, notEnoughData=_UNFINISHED)
        # Read into one place again and again: for a reply of many entries, making that place each time shows.
        self._buffer = bytearray(_BUFFER)
        self._replies: list[Any] = []
        self._wanted = 0
        self._told: Told | None = None

    @classmethod
    async def open(cls, connection: Connection) -> Wire:
        """Connect, log in and select the database as the client does it; raises what it raises."""
        try:
            await connection.connect()  # type: ignore[no-untyped-call] # the client leaves it bare
            writer = connection._writer  # noqa: SLF001 - said above
            if writer is None or await connection.can_read():
                raise ConnectionError("closed, or out of step, before anything was asked")
        except BaseException:
            # cancelled at its deadline too
            await connection.disconnect(nowait=True)
            raise
        wire = cls(connection)
        wire._transport = cast("asyncio.Transport", writer.transport)
        wire._transport.set_protocol(wire)
        return wire

    @property
    def is_open(self) -> bool:
        """Whether the next batch may go this way."""
        return self._transport is not None and not self._transport.is_closing() and self._told is None

    def begin(self, commands: Sequence[Command], told: Told) -> None:
        """Send a batch. `told`, which must not raise, gets a reply a command, in order, a RedisError for each that is
        refused; or, once, what became of the connection. Only while the wire `is_open`.
        """
        if self._transport is None:
            raise ConnectionError("closed")
        self._replies = []
        self._wanted = len(commands)
        self._told = told
        self._transport.write(b"".join(_packed(commands)))

    async def ask(self, commands: Sequence[Command]) -> list[Any]:
        """The same for a caller that waits; raises OSError."""
        answered: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

        def tell(outcome: list[Any] | Exception) -> None:
            if answered.done():
                return
            if isinstance(outcome, Exception):
                answered.set_exception(outcome)
            else:
                answered.set_result(outcome)

        self.begin(commands, tell)
        return await answered

    def cut(self, error: Exception) -> None:
        """Close at once; whoever waits is told the error."""
        self.close()
        self._end(error)

    def close(self) -> None:
        """At once; replies that are still to come are dropped."""
        if self._transport is not None:
            self._transport.abort()
        self._let_go()

    # The transport calls these.

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the protocol's signature
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._told is None:
            # nobody asked: whatever it is, the next reply would be taken for another's
            self.close()
            return
        replies = self._replies
        try:
            self._reader.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type] # its stub lacks what is no bytes
            while (reply := self._reader.gets()) is not _UNFINISHED:
                replies.append(reply)
        except hiredis.ProtocolError as error:
            self.cut(ConnectionError(type(error).__name__))
            return
        if len(replies) > self._wanted:
            self.cut(ConnectionError("more replies than were asked for"))
        elif len(replies) == self._wanted:
            self._end(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self._let_go()
        self._end(ConnectionError("lost") if exc is None else exc)

    def _let_go(self) -> None:
        self._transport = None
        # the client would otherwise say at its end that nobody closed it
        self._connection._writer = self._connection._reader = None  # noqa: SLF001 - said above

    def _end(self, outcome: list[Any] | Exception) -> None:
        told, self._told = self._told, None
        if told is not None:
            told(outcome)


def _packed(commands: Sequence[Command]) -> Iterable[bytes]:
    for command in commands:
        yield hiredis.pack_command(command)  # type: ignore[arg-type] # its stub means a tuple of one
