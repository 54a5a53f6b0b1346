"""Silos in: source to staging to replica, with a change log."""

from streams.silos.declaration import IndexDeclaration, InvalidSilo, SiloDeclaration
from streams.silos.errors import AnotherApplier, DeletionGuard, SchemaDrift, SiloError, SourceUnreadable, TooSlow
from streams.silos.load import LoadSummary, load
from streams.silos.progress import LoadProgress
from streams.silos.schema import prepare
from streams.silos.values import Tagger, ValueTypes

__all__ = [
    "AnotherApplier",
    "DeletionGuard",
    "IndexDeclaration",
    "InvalidSilo",
    "LoadProgress",
    "LoadSummary",
    "SchemaDrift",
    "SiloDeclaration",
    "SiloError",
    "SourceUnreadable",
    "Tagger",
    "TooSlow",
    "ValueTypes",
    "load",
    "prepare",
]
