"""What an integration folder declares, as plain values: `integrations.py` fills them, edge and workers read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache.definition import LookupDefinition
from cache.values import ValueType
from streams.casetype import CaseType
from streams.flow import Flow


@dataclass(frozen=True, slots=True)
class ParameterDeclaration:
    """One parameter of a lookup as the caller writes it.

    `example` is shown in OpenAPI and on error pages, so it is never a real person's value. `default` (as a caller
    would write it) stands in for an absent optional parameter; without one the lookup's SQL receives null.
    """

    type: ValueType
    required: bool
    example: object
    title: str
    default: object = None


@dataclass(frozen=True, slots=True)
class LookupDeclaration:
    """A question, who may ask it, and how a client may keep the answer.

    `personal` lookups are asked by POST only, never stored by a client and audited one row a question.
    `over_cases` lookups read the gateway's own cases and are not cached.
    """

    definition: LookupDefinition
    title: str
    scope: str
    cache_control: str
    parameters: Mapping[str, ParameterDeclaration]
    personal: bool
    over_cases: bool = False

    @property
    def name(self) -> str:
        return self.definition.name


@dataclass(frozen=True, slots=True)
class CaseTypeDeclaration:
    """A case type and what people read about it; `example` is a whole valid body of `POST /v1/cases`."""

    type: CaseType
    title: str
    example: Mapping[str, Any] = field(default_factory=dict)

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
