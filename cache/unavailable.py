"""Why a silo has no answer. No message holds anything of the question."""

from __future__ import annotations


class SiloUnavailable(Exception):
    """Nothing could answer in time. The message holds nothing of the question."""


class QueryRefused(SiloUnavailable):
    """The lookup's SQL does not fit this silo, which is well."""


class NobodyWaits(SiloUnavailable):
    """All who asked have gone, which says nothing of the silo."""


class AnswerTooLarge(SiloUnavailable):
    """More rows than an answer may have."""


class NotPrepared(Exception):
    """The silo's tables are not there yet: it was never loaded."""
