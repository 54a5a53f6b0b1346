"""What may be said of a silo's answers: whether it is complete, how old its source is, and what is in doubt."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from cache.answer import Verdict
from cache.values import Tagger

# A load with more rejects than this puts their tables in doubt as a whole.
MOST_REJECTS = 10_000

# $1 is the load whose rejects are known already: those of a load never change. One statement, so one snapshot.
STANDING_SQL = """
select p.epoch, p.seq, p.id, p.definition, l.id as load_id, l.source_time,
    case when l.id is distinct from $1::int8 then (
        select coalesce(json_agg(json_build_array(r.table_name, r.tags)), '[]')
        from (select table_name, tags from reject where load_id = l.id limit $2::int8) r
    )::text end as rejects,
    array(select distinct table_name from reject where load_id = l.id) as rejected_tables,
    (select b.id from load b where b.completed is not null and b.id < l.id order by b.id desc limit 1) as load_before
from progress p
left join lateral (
    select id, source_time from load where completed is not null order by id desc limit 1
) l on true
"""


@dataclass(frozen=True, slots=True)
class Doubts:
    """Index values, as tags, and whole tables that rejected rows may have held something about."""

    tags: frozenset[str] = frozenset()
    tables: frozenset[str] = frozenset()

    def touch(self, tags: Iterable[str], tables: Iterable[str]) -> bool:
        return not self.tags.isdisjoint(tags) or not self.tables.isdisjoint(tables)

    def __or__(self, other: Doubts) -> Doubts:
        return Doubts(self.tags | other.tags, self.tables | other.tables)

    def __len__(self) -> int:
        return len(self.tags) + len(self.tables)

    @classmethod
    def of(
        cls, rejects: Sequence[tuple[str, list[str]]], tables: Iterable[str], definition: str, tagger: Tagger
    ) -> Doubts:
        """What the rejects of one load put in doubt, where `definition` is that of the applier who tagged them.

        `tables` are all that have rejects: `rejects` itself ends at its limit, in no order of tables.
        """
        if len(rejects) > MOST_REJECTS or definition != tagger.definition:
            # Too many to hold, or tags that this process would not recognise.
            return cls(tables=frozenset(tables))
        unread = frozenset(table for table, tags in rejects if not tags)
        # What depends on a whole table depends on the row that is missing from it as well.
        tags = {tag for _, tags in rejects for tag in tags} | {tagger.table_tag(table) for table, _ in rejects}
        return cls(frozenset(tags), unread)


@dataclass(frozen=True, slots=True)
class Standing:
    """What one look at the silo's primary showed. `since` is the seq at which its newest load was first seen.

    `earlier` and `earlier_time` are of the load before it, which this process saw from `known_from` on. What is older
    than that may lack rows whose rejection nobody here remembers, and may be of a source of any age.
    """

    epoch: str
    seq: int
    load_id: int | None
    source_time: dt.datetime | None
    doubts: Doubts
    earlier: Doubts
    earlier_time: dt.datetime | None
    since_epoch: str
    since: int
    known_from: int

    @classmethod
    def of(cls, row: Mapping[str, Any], before: Standing | None, tagger: Tagger, *, tolerant: bool) -> Standing:
        """The next standing from a row of STANDING_SQL, asked with the load that `before` knew.

        `tolerant` is the silo's declaration that its rejects put nothing in doubt.
        """
        epoch, seq = row["epoch"], row["seq"]
        if row["rejects"] is None and before is not None:
            return replace(before, epoch=epoch, seq=seq, load_id=row["load_id"], source_time=row["source_time"])
        found = [] if tolerant else [(table, tags) for table, tags in orjson.loads(row["rejects"] or "[]")]
        tables = () if tolerant else row["rejected_tables"]
        # A load that came and went between two looks has left no doubts here, and what it was of is not known.
        is_next = before is not None and before.load_id is not None and before.load_id == row["load_before"]
        return cls(
            epoch=epoch,
            seq=seq,
            load_id=row["load_id"],
            source_time=row["source_time"],
            doubts=Doubts.of(found, tables, row["definition"], tagger),
            earlier=before.doubts if before is not None else Doubts(),
            earlier_time=before.source_time if before is not None else row["source_time"],
            since_epoch=epoch,
            since=seq,
            known_from=before.since if before is not None and is_next else seq,
        )

    def covers(self, epoch: str, seq: int) -> bool:
        """Whether this was seen at that position or later."""
        return epoch == self.epoch and seq <= self.seq

    def knows(self, epoch: str) -> bool:
        """Whether a position of that epoch can be placed before or after the newest load."""
        return epoch in {self.epoch, self.since_epoch}

    def doubts_at(self, epoch: str, seq: int) -> Doubts:
        """What was in doubt at that position: before the newest load, also what the one before it had rejected.

        A row that the newest load has mended is not yet in an answer older than that load.
        """
        return self.doubts if self._is_newest(epoch, seq) else self.doubts | self.earlier

    def _is_newest(self, epoch: str, seq: int) -> bool:
        return seq >= self.since and self.knows(epoch)

    def judge(
        self,
        *,
        negative: bool,
        epoch: str,
        seq: int,
        tags: Iterable[str],
        tables: Iterable[str],
        max_age_s: float | None,
        now: dt.datetime,
    ) -> tuple[Verdict, str | None]:
        """The verdict on an answer at that position, and why it is `cannot_tell`."""
        if self.load_id is None:
            return "cannot_tell", "not_loaded"
        is_known = seq >= self.known_from and self.knows(epoch)
        time = self.source_time if self._is_newest(epoch, seq) else self.earlier_time
        if max_age_s is not None and (not is_known or time is None or (now - time).total_seconds() > max_age_s):
            return "cannot_tell", "too_old"
        if not negative:
            return "found", None
        if not is_known:
            return "cannot_tell", "unknown"
        if self.doubts_at(epoch, seq).touch(tags, tables):
            return "cannot_tell", "doubtful"
        return "not_found", None
