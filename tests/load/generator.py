"""The load: keep-alive connections that ask prebuilt questions, in a process of its own that does little else.

Run by path with the standard library only: `python generator.py JOB` reads a job (JSON) and prints what it saw. Without
`rate` it is a closed loop: each connection asks again as soon as it is answered. With `rate` it is an open one:
questions have their time, whether or not earlier ones are answered, and latency counts from that time, so that a server
that stands still is not asked less (no coordinated omission).
"""

from __future__ import annotations

import json
import random
import re
import select
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_AS_OF = re.compile(rb"\r\nsilogate-as-of: *[^:\r]+:([^:\r]+):(\d+)", re.IGNORECASE)
_STALENESS = re.compile(rb"\r\nsilogate-staleness-bound-ms: *(\d+)", re.IGNORECASE)
_VERSION = re.compile(rb"as of (\d+)")
_MOST_OPEN = 900
_LEAST = 200


def cpu_s(pid: int) -> float:
    """What a process and all its threads have used of the processor, by the kernel's own clock of it."""
    return time.clock_gettime((~pid << 3) | 2)


class Connection:
    """One keep-alive connection with at most one question in flight."""

    __slots__ = ("begun", "buffer", "due", "head", "number", "sock", "target")

    def __init__(self, number: int, port: int, head: bytes) -> None:
        self.number = number
        self.head = head
        self.buffer = b""
        self.target = -1
        self.due = 0.0
        self.begun = 0.0
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.setblocking(False)

    def ask(self, target: int, line: bytes, due: float) -> None:
        self.target, self.due = target, due
        self.begun = time.perf_counter()
        self.sock.send(line + self.head)

    def answer(self) -> tuple[bytes, bytes] | None:
        """Head and body once all of it is here; raises ConnectionError when the other side has gone."""
        try:
            data = self.sock.recv(1 << 18)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionResetError
        if self.buffer:
            data = self.buffer + data
        end = data.find(b"\r\n\r\n")
        found = _LENGTH.search(data, 0, end) if end >= 0 else None
        if end >= 0 and found is None:
            raise ConnectionResetError
        if found is None or len(data) < end + 4 + int(found[1]):
            self.buffer = data
            return None
        self.buffer = b""
        return data[:end], data[end + 4 :]


class Load:
    """One job. `seen` is what is told in the end."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.job = job
        targets = Path(job["targets"]).read_bytes().split(b"\n")
        self.lines = [b"GET " + target + b" HTTP/1.1\r\n" for target in targets if target]
        self.heads = [head.encode() + b"\r\n\r\n" for head in job["heads"]]
        self.order = self._order()
        self.poll = select.epoll()
        self.open: dict[int, Connection] = {}
        self.opened = 0
        self.answers = self.hits = self.errors = 0
        self.statuses: Counter[str] = Counter()
        self.samples: list[tuple[int, str, str]] = []
        self.least = 0
        self.missed: list[int] = []
        self.every = job.get("sample_every", 500)

    def _order(self) -> deque[int]:
        first, last = self.job.get("part") or (0, len(self.lines))
        only = self.job.get("only")
        order = list(range(first, last)) if only is None else list(only)
        if not self.job.get("as_listed"):
            random.Random(self.job.get("seed", 1)).shuffle(order)
        return deque(order)

    def connect(self) -> Connection:
        ports = self.job["ports"]
        number = self.opened
        self.opened += 1
        made = Connection(number, ports[number % len(ports)], self.heads[number % len(self.heads)])
        self.open[made.sock.fileno()] = made
        self.poll.register(made.sock.fileno(), select.EPOLLIN)
        return made

    def drop(self, gone: Connection) -> None:
        self.open.pop(gone.sock.fileno(), None)
        self.poll.unregister(gone.sock.fileno())
        gone.sock.close()

    def count(self, connection: Connection, head: bytes, body: bytes) -> None:
        self.answers += 1
        status = head[9:12]
        if status == b"200" and b"Silogate; hit" in head:
            self.hits += 1
        elif self.job.get("once"):
            self.missed.append(connection.target)
        if status != b"200" or (self.answers - 1) % self.every == 0:
            self.statuses[status.decode()] += 1
            if len(self.samples) < 400:
                self.samples.append((connection.target, head.decode("latin-1"), body.decode("utf-8", "replace")))

    def cpu(self) -> list[float]:
        return [cpu_s(pid) for pid in self.job.get("pids", ())]


class Closed(Load):
    """As many questions as are answered, on a fixed number of connections; or each target once."""

    def run(self) -> dict[str, Any]:
        once = bool(self.job.get("once"))
        for _ in range(self.job["connections"]):
            self.connect()
        for connection in list(self.open.values()):
            self._next(connection, once=once)
        if not once:
            self._until(time.perf_counter() + self.job.get("warm_s", 0.3), once=False)
            self.least = self.answers + _LEAST
        cpu, begun, before, hits = self.cpu(), time.perf_counter(), self.answers, self.hits
        self._until(begun + self.job["seconds"], once=once)
        ended, after = time.perf_counter(), self.cpu()
        return {
            "requests": self.answers - before,
            "hits": self.hits - hits,
            "seconds": ended - begun,
            "cpu_s": [b - a for a, b in zip(cpu, after, strict=True)],
            "errors": self.errors,
            "statuses": dict(self.statuses),
            "samples": self.samples,
            "missed": self.missed,
            "unasked": len(self.order) if once else 0,
        }

    def _next(self, connection: Connection, *, once: bool) -> None:
        if not self.order:
            self.drop(connection)
            return
        target = self.order.popleft() if once else self.order[0]
        if not once:
            self.order.rotate(-1)
        connection.ask(target, self.lines[target], 0.0)

    def _until(self, deadline: float, *, once: bool) -> None:
        # on a machine with no time for us a round lasts longer, so that it has something to tell
        while self.open and (
            (now := time.perf_counter()) < deadline or (self.answers < self.least and now < deadline + 20)
        ):
            for fd, _ in self.poll.poll(0.05):
                connection = self.open[fd]
                try:
                    answer = connection.answer()
                    if answer is None:
                        continue
                    self.count(connection, *answer)
                    self._next(connection, once=once)
                except OSError:
                    self.errors += 1
                    self.drop(connection)
                    if self.errors > 100:
                        raise
                    self._next(self.connect(), once=once)


class Open(Load):
    """Questions at their time. `records`: offset, latency, status, target, epoch, seq, version, hit, staleness."""

    def __init__(self, job: dict[str, Any]) -> None:
        super().__init__(job)
        self.idle: deque[Connection] = deque()
        self.records: list[tuple[Any, ...]] = []
        self.begun = 0.0

    def run(self) -> dict[str, Any]:
        rate, total = self.job["rate"], int(self.job["rate"] * self.job["seconds"])
        self.idle.extend(self.connect() for _ in range(self.job["connections"]))
        cpu, next_one, waiting = self.cpu(), 0, deque[float]()
        wall, self.begun = time.time(), time.perf_counter()
        last = self.begun + self.job["seconds"] + self.job["deadline_s"] + 1
        while (now := time.perf_counter()) < last and (next_one < total or waiting or len(self.idle) < len(self.open)):
            while next_one < total and self.begun + next_one / rate <= now:
                waiting.append(self.begun + next_one / rate)
                next_one += 1
            while waiting and self._ask(waiting[0]):
                waiting.popleft()
            due = self.begun + next_one / rate if next_one < total else now + 0.02
            # epoll rounds up to a millisecond; select does not
            select.select([self.poll.fileno()], [], [], max(0.0, min(0.02, due - time.perf_counter())))
            for fd, _ in self.poll.poll(0):
                self._take(self.open[fd])
        for connection in self.open.values():
            if connection not in self.idle:
                self._record(connection, "none", b"", b"")
        for due in waiting:
            self.records.append((due - self.begun, last - due, "unsent", -1, "", 0, 0, False, None))
        spent = [b - a for a, b in zip(cpu, self.cpu(), strict=True)]
        seconds = time.perf_counter() - self.begun
        return {"records": self.records, "began": wall, "cpu_s": spent, "seconds": seconds, "errors": self.errors}

    def _ask(self, due: float) -> bool:
        while True:
            if not self.idle and len(self.open) >= _MOST_OPEN:
                return False
            try:
                connection = self.idle.popleft() if self.idle else self.connect()
            except OSError:
                self.errors += 1
                self.records.append((due - self.begun, 0.0, "refused", -1, "", 0, 0, False, None))
                return True
            target = self.order[0]
            self.order.rotate(-1)
            try:
                connection.ask(target, self.lines[target], due)
                return True
            except OSError:
                self.drop(connection)

    def _take(self, connection: Connection) -> None:
        try:
            answer = connection.answer()
        except OSError:
            # closed while idle is the server's good right; in the middle of a question it is a failure
            if connection in self.idle:
                self.idle.remove(connection)
            else:
                self.errors += 1
                self._record(connection, "cut", b"", b"")
            self.drop(connection)
            return
        if answer is not None:
            self._record(connection, answer[0][9:12].decode(), *answer)
            self.idle.append(connection)

    def _record(self, connection: Connection, status: str, head: bytes, body: bytes) -> None:
        as_of, staleness, version = _AS_OF.search(head), _STALENESS.search(head), _VERSION.search(body)
        self.records.append((
            connection.due - self.begun,
            time.perf_counter() - connection.due,
            status,
            connection.target,
            as_of[1].decode() if as_of else "",
            int(as_of[2]) if as_of else -1,
            int(version[1]) if version else -1,
            b"Silogate; hit" in head,
            int(staleness[1]) if staleness else None,
        ))  # fmt: skip


def main(path: str) -> None:
    job = json.loads(Path(path).read_bytes())
    load = Open(job) if job.get("rate") else Closed(job)
    json.dump(load.run(), sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
