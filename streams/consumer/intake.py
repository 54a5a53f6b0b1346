"""What becomes of fetched records before the lanes: nothing twice, and nothing before what belongs before it."""

import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from streams.consumer.inbox import Inbox, Known
from streams.consumer.lanes import Item
from streams.events import CaseEvent, encode
from streams.metrics import StreamMetrics

log = logging.getLogger(__name__)

# An event that is taken from the gateway's database lies at no offset: settling it moves no watermark.
_NO_OFFSET = -1


class Unknown(Exception):
    """Kafka holds a version of a case that the gateway's database does not know."""

    def __init__(self, case_id: UUID, version: int, in_gateway: int | None) -> None:
        super().__init__("Kafka holds a case version that the database does not know")
        self.case_id = case_id
        self.version = version
        self.in_gateway = in_gateway


@dataclass(slots=True)
class Admitted:
    """What goes to the lanes, in order, and what was seen before and needs nothing."""

    new: list[Item] = field(default_factory=list)
    again: list[Item] = field(default_factory=list)


class Intake:
    """The versions of one membership: the last one admitted of each case, and those settled but not yet noted.

    It remembers `cases` of them; one with an event still on its way is never forgotten, because its row in the
    inbox is older than what was admitted.
    """

    def __init__(
        self, inbox: Inbox, metrics: StreamMetrics, *, group: str, cases: int, needs_gateway: bool = False
    ) -> None:
        self._inbox = inbox
        self._duplicates = metrics.duplicates.labels(group)
        self._gaps = metrics.gaps
        self._group = group
        self._cases = cases
        self._needs_gateway = needs_gateway
        self._last: OrderedDict[UUID, int] = OrderedDict()
        self._open: dict[UUID, int] = {}
        self._settled: dict[UUID, tuple[int, int]] = {}

    async def admit(self, items: Sequence[Item]) -> Admitted:
        """Drops what was seen and puts in front what is missing; raises what the database raises, and Unknown.

        Nothing is remembered before `remember`, so that it may be called again after a failure.
        """
        last = await self._ask(items)
        admitted = Admitted()
        for item in items:
            event = item.event
            if event is None:
                admitted.new.append(item)
                continue
            seen = last.get(event.case_id)
            if seen is not None and event.version <= seen:
                admitted.again.append(item)
                continue
            if seen is not None and event.version > seen + 1:
                admitted.new.extend(await self._missing(item, event, seen))
            admitted.new.append(item)
            last[event.case_id] = event.version
        return admitted

    def remember(self, admitted: Admitted) -> None:
        """Notes what went to the lanes."""
        self._duplicates.inc(len(admitted.again))
        for item in admitted.new:
            if item.event is not None:
                self._last[item.event.case_id] = item.event.version
                self._last.move_to_end(item.event.case_id)
                self._open[item.event.case_id] = self._open.get(item.event.case_id, 0) + 1
        self._forget_some()

    def settle(self, items: Iterable[Item]) -> None:
        """Notes that these need nothing more: they are done or parked, in the order of their case."""
        for item in items:
            if item.event is None or item.event.case_id not in self._open:
                continue
            case_id = item.event.case_id
            self._settled[case_id] = (item.partition, item.event.version)
            self._open[case_id] -= 1
            if not self._open[case_id]:
                del self._open[case_id]

    @property
    def due(self) -> Mapping[UUID, tuple[int, int]]:
        """Partition and version of what is settled and not yet noted in the inbox."""
        return dict(self._settled)

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be noted that nothing more should come in."""
        return len(self._settled) >= self._cases

    def noted(self, versions: Mapping[UUID, tuple[int, int]]) -> None:
        """Notes that these are in the inbox now."""
        for case_id, version in versions.items():
            if self._settled.get(case_id) == version:
                del self._settled[case_id]

    def forget(self) -> None:
        """Forgets everything: the partitions are gone."""
        self._last.clear()
        self._open.clear()
        self._settled.clear()

    async def _ask(self, items: Sequence[Item]) -> dict[UUID, int]:
        """The last version of each case, here or in the inbox; one that was never seen is absent."""
        newest: dict[UUID, int] = {}
        for item in items:
            if item.event is not None:
                newest[item.event.case_id] = max(item.event.version, newest.get(item.event.case_id, 0))
        last = {case_id: self._last[case_id] for case_id in newest if case_id in self._last}
        wanted = newest if self._needs_gateway else newest.keys() - last.keys()
        known = await self._inbox.known(wanted) if wanted else {}
        if self._needs_gateway:
            await self._check(newest, known)
        for case_id, each in known.items():
            if case_id not in last and each.last is not None:
                last[case_id] = each.last
        return last

    async def _check(self, newest: Mapping[UUID, int], known: Mapping[UUID, Known]) -> None:
        """Raises Unknown when Kafka is ahead of the database, which is asked once more before it is judged."""
        behind = [case_id for case_id, version in newest.items() if (known[case_id].in_gateway or 0) < version]
        if not behind:
            return
        for case_id, again in (await self._inbox.known(behind)).items():
            if (again.in_gateway or 0) < newest[case_id]:
                raise Unknown(case_id, newest[case_id], again.in_gateway)

    async def _missing(self, item: Item, event: CaseEvent, seen: int) -> list[Item]:
        found = await self._inbox.missing(event.case_id, seen, event.version)
        lost = event.version - seen - 1 - len(found)
        self._gaps.labels(self._group, "filled").inc(len(found))
        if lost:
            self._gaps.labels(self._group, "unfilled").inc(lost)
            log.warning("consumer.gap", extra={"group": self._group, "partition": item.partition, "events": lost})
        return list(_items(found, item.partition))

    def _forget_some(self) -> None:
        for _ in range(max(0, len(self._last) - self._cases)):
            case_id, version = self._last.popitem(last=False)
            if case_id in self._open or case_id in self._settled:
                self._last[case_id] = version


def _items(events: Iterable[CaseEvent], partition: int) -> Iterator[Item]:
    for event in events:
        key, value, headers = encode(event)
        size = len(value) + sum(len(name) + len(text) for name, text in headers)
        yield Item(partition, _NO_OFFSET, key, headers, value, size, event)
