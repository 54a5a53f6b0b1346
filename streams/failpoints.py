"""Named places where a test may kill, stop, delay or break the process that reaches them.

A place costs one comparison unless the composition root has armed it. Libraries only call `reach`.
"""

import os
import re
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_SPEC = re.compile(
    r"^(?P<name>[a-z0-9_.]+)(:hit=(?P<hit>[1-9]\d*))?:(?P<action>kill|stop|raise|delay=(?P<delay>\d+(\.\d+)?))$"
)
_ACK_WAIT_S = 5.0


class Injected(Exception):
    """What `raise` raises: no production code may catch it by name."""


class BadFailpoint(ValueError):
    """The specification cannot be read, or its journal cannot be reached."""


@dataclass(slots=True)
class _Failpoint:
    name: str
    hit: int
    action: str
    delay_s: float
    hits: int = 0


@dataclass(slots=True)
class _Armed:
    points: dict[str, _Failpoint]
    journal: str | None
    lock: threading.Lock = field(default_factory=threading.Lock)


_armed: _Armed | None = None


def arm(specification: str, journal: str | None = None) -> None:
    """Arms `name[:hit=N]:action`, several separated by commas; action is kill, stop, raise or delay=SECONDS.

    It fires at the Nth time the place is reached, once. `journal` is `unix:PATH` or `tcp:HOST:PORT`: before it fires,
    the line `name hit pid action` is sent there and one line of acknowledgement is awaited, so that a third process
    has written down that the place was reached. Only the composition root calls this; raises BadFailpoint.
    """
    global _armed  # noqa: PLW0603 - a process dies as a whole, so what kills it is armed as a whole
    points = {}
    for text in specification.split(","):
        point = _parse(text.strip())
        points[point.name] = point
    if journal is not None:
        _connect(journal).close()
    _armed = _Armed(points, journal)


def disarm() -> None:
    """Makes every place a no-op again."""
    global _armed  # noqa: PLW0603 - see arm
    _armed = None


def reach(name: str) -> None:
    """Says that execution is here. Does nothing unless armed.

    `delay` holds up the whole process, as a long pause of the machine would, not only the calling task.
    """
    armed = _armed
    if armed is None:
        return
    point = armed.points.get(name)
    if point is None:
        return
    with armed.lock:
        point.hits += 1
        fires = point.hits == point.hit
    if fires:
        _fire(point, armed.journal)


def _fire(point: _Failpoint, journal: str | None) -> None:
    if journal is not None:
        _report(journal, f"{point.name} {point.hits} {os.getpid()} {point.action}\n")
    match point.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise Injected(point.name)
        case _:
            time.sleep(point.delay_s)


def _report(journal: str, line: str) -> None:
    """Waits for the acknowledgement. Without one the failpoint still fires, but the run cannot count it."""
    try:
        with _connect(journal) as link:
            link.sendall(line.encode())
            link.recv(64)
    except (OSError, BadFailpoint):
        return


def _connect(journal: str) -> socket.socket:
    kind, _, address = journal.partition(":")
    family, target = _target(kind, address, journal)
    link = socket.socket(family, socket.SOCK_STREAM)
    link.settimeout(_ACK_WAIT_S)
    try:
        link.connect(target)
    except OSError as error:
        link.close()
        raise BadFailpoint(f"the journal at {journal} does not answer: {error.strerror or error}") from error
    return link


def _target(kind: str, address: str, journal: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    if kind == "unix" and address:
        return socket.AF_UNIX, address
    host, _, port = address.rpartition(":")
    if kind == "tcp" and host and port.isdigit():
        return socket.AF_INET, (host, int(port))
    raise BadFailpoint(f"a journal is unix:PATH or tcp:HOST:PORT, not {journal!r}")


def _parse(text: str) -> _Failpoint:
    match = _SPEC.match(text)
    if match is None:
        raise BadFailpoint(f"a failpoint is name[:hit=N]:kill|stop|raise|delay=SECONDS, not {text!r}")
    action = match["action"].partition("=")[0]
    return _Failpoint(match["name"], int(match["hit"] or 1), action, float(match["delay"] or 0))


def armed_names() -> Sequence[str]:
    """The names armed now, for the log line at start."""
    return tuple(_armed.points) if _armed is not None else ()
