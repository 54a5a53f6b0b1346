"""What is asked: the key of normalised parameters, and the tags of the changes that touch its answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cache.definition import CircleTag, LookupDefinition, TableTag, TagRule, rule_parameters
from cache.seal import KeyRing
from cache.values import Tagger, canonical


@dataclass(slots=True)
class Question:
    """One key of one lookup: values for the SQL, tags that changes touch. `digest` stands for it in Redis.

    `replace` is set when what Redis holds under the key is not to be trusted.
    """

    digest: str
    values: tuple[Any, ...] = field(repr=False)
    tags: tuple[str, ...]
    replace: bool = False


class Questions:
    """Makes the questions of one lookup, whose rules fit the tagger's indexes (`check_tags`)."""

    def __init__(self, definition: LookupDefinition, tagger: Tagger, ring: KeyRing) -> None:
        self._names = tuple(definition.parameters)
        self._rules = [
            (table, rule, () if isinstance(rule, TableTag) else rule_parameters(rule))
            for table, rule in definition.tags.items()
        ]
        self._tagger = tagger
        self._ring = ring
        self._hash = definition.hash.encode()

    def of(self, parameters: Mapping[str, object]) -> Question:
        """The question that normalised parameters ask."""
        values = tuple([parameters.get(name) for name in self._names])
        digest = self._ring.hmac(b"key", self._hash, *[canonical(value).encode() for value in values]).hex()
        tags: list[str] = []
        for table, rule, names in self._rules:
            tags += self._tags(table, rule, [parameters.get(name) for name in names])
        return Question(digest, values, tuple(tags))

    def _tags(self, table: str, rule: TagRule, values: list[Any]) -> list[str]:
        tagger = self._tagger
        # An optional parameter left out: what the answer hangs on cannot be narrowed down.
        if isinstance(rule, TableTag) or None in values:
            return [tagger.table_tag(table)]
        if isinstance(rule, CircleTag):
            easting, northing, metres = (float(str(value)) for value in values)
            return tagger.circle_tags(table, rule.index, easting, northing, metres)
        if tagger.indexes[table][rule.index].kind == "name":
            # asked by how a name begins, which is not normalised as a name is
            return [tagger.value_tag(table, rule.index, values)]
        return [tagger.normal_tag(table, rule.index, values)]
