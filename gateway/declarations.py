"""What an integration folder declares, as plain values: `integrations.py` fills them, edge and workers read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.definition import LookupDefinition
from cache.values import ValueType
from streams.cases.casetype import CaseType
from streams.flow import Flow

# The default of a date that is the day on which it is asked.
TODAY = "today"


@dataclass(frozen=True, slots=True)
class ParameterDeclaration:
    """One parameter of a lookup as the caller writes it.

    `example` is shown in OpenAPI and on error pages, so it is never a real person's value. `default` (as a caller
    would write it) stands in for an absent optional parameter; without one the lookup's SQL receives null. The default
    TODAY of a date is the day in London at the moment of the question.
    """

    type: ValueType
    required: bool
    example: object
    title: str
    default: object = None


@dataclass(frozen=True, slots=True)
class GridDeclaration:
    """A point that is asked in WGS84 and looked up in OSGB36: the names of two parameters of the caller's, and of the
    two of the SQL that are made from them.
    """

    latitude: str
    longitude: str
    easting: str
    northing: str


@dataclass(frozen=True, slots=True)
class LookupDeclaration:
    """A question, who may ask it, and how a client may keep the answer.

    `parameters` are the caller's; the SQL's, in `definition`, are the same but for those that `grid` makes.
    `personal` lookups are asked by POST only, never stored by a client and audited one row a question.
    `over_cases` lookups read the gateway's own cases and are not cached; `cases` is the question that a lookup over a
    silo asks them as well. `rate` is the class whose tokens a question takes.
    """

    definition: LookupDefinition
    title: str
    scope: str
    cache_control: str
    parameters: Mapping[str, ParameterDeclaration]
    personal: bool
    over_cases: bool = False
    cases: LookupDefinition | None = None
    grid: GridDeclaration | None = None
    rate: str = "lookup"

    @property
    def name(self) -> str:
        return self.definition.name


@dataclass(frozen=True, slots=True)
class CaseTypeDeclaration:
    """A case type and what people read about it; `example` is a whole valid body of `POST /v1/cases`.

    `file` is its schema, unless it was not read from one.
    """

    type: CaseType
    title: str
    example: Mapping[str, Any] = field(default_factory=dict)
    file: Path | None = None

    @property
    def name(self) -> str:
        return self.type.name


@dataclass(frozen=True, slots=True)
class Integration:
    """One folder under deploy/integrations: lookups in, cases through, effects out."""

    name: str
    title: str
    folder: Path
    lookups: tuple[LookupDeclaration, ...] = ()
    case_type: CaseTypeDeclaration | None = None
    flow: Flow | None = None
    recipients: Mapping[str, Any] = field(default_factory=dict)
    templates: Path | None = None
