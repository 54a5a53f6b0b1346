"""What an error of the recipient's database means: for one row, for this attempt, or for the whole connector.

An error's own text and detail may quote the row, so neither is ever repeated: what we say is made of the SQLSTATE and
of the names of columns and constraints.
"""

import asyncpg

from streams.errors import Misconfigured, Rejected, Retryable, Unavailable

# data exception, integrity constraint, with check option, program limit, raised by the recipient's own trigger
_ROW_CLASSES = frozenset({"22", "23", "44", "54", "P0"})
# syntax and access rules, authorisation, unknown database or schema, not supported
_DECLARATION_CLASSES = frozenset({"42", "28", "3D", "3F", "0A"})
_LOCKED = "55P03"

_WORDS = {
    "22001": "is too long for the recipient's column",
    "22003": "is out of the range of the recipient's column",
    "23502": "must not be null at the recipient",
    "23503": "names something the recipient does not have",
    "23505": "is already used by another row of the recipient",
    "23514": "breaks a rule of the recipient's table",
    "P0001": "was refused by the recipient's own rules",
}


def of_row(error: Exception) -> Rejected | Retryable | None:
    """The error as one row's fault, or None when it is not."""
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        if state == _LOCKED:
            return Retryable("another session at the recipient holds the row")
        if state[:2] in _ROW_CLASSES:
            return _rejected(error, state)
        return None
    # asyncpg refuses a value that does not fit its parameter before anything is sent
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Rejected("a value does not fit the type of the recipient's column")
    return None


def of_connector(error: Exception) -> Unavailable | Misconfigured:
    """The error as the whole recipient's: away for now, or declared wrongly."""
    if isinstance(error, asyncpg.InvalidCachedStatementError):
        return Unavailable("the recipient's table was changed while it was in use")
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        if state[:2] in _DECLARATION_CLASSES:
            return Misconfigured(f"the recipient's database says {type(error).__name__} ({state})")
        return Unavailable(f"the recipient's database says {type(error).__name__} ({state})")
    if isinstance(error, asyncpg.ClientConfigurationError | ValueError):
        return Misconfigured("the recipient's address is not a PostgreSQL URL")
    if isinstance(error, TimeoutError):
        return Unavailable("the recipient's database did not answer in time")
    return Unavailable(f"the recipient's database cannot be reached ({type(error).__name__})")


def _rejected(error: asyncpg.PostgresError, state: str) -> Rejected:
    column, constraint = getattr(error, "column_name", None), getattr(error, "constraint_name", None)
    reason = _WORDS.get(state, "was refused by the recipient's database")
    named = f", constraint {constraint}" if constraint else ""
    return Rejected(f"{reason} ({state}{named})", column or constraint)
