"""What an error of the recipient's database means: for one row, for this attempt, or for the whole connector.

An error's own text and detail may quote the row, so neither is ever repeated: what we say is made of the SQLSTATE and
of the names of columns and constraints.

What speaks of the whole connector is listed. Any other SQLSTATE of a statement over rows is a row's: the recipient's
triggers may raise whatever they like, and one row must not stop everybody else's for ever.
"""

import asyncpg

from streams.errors import Misconfigured, Rejected, Retryable, Unavailable

# data exception, integrity constraint, with check option, program limit, raised by the recipient's own trigger
_ROW_CLASSES = frozenset({"22", "23", "44", "54", "P0"})
# syntax and access rules, authorisation, unknown database or schema, not supported
_DECLARATION_CLASSES = frozenset({"42", "28", "3D", "3F", "0A"})
# connection, resources, the server's own errors, transactions that met another
_AWAY_CLASSES = frozenset({"08", "53", "58", "40"})
# read only, not in the state for it; and the ends of a whole session that idled or of a transaction that took too long
_AWAY_STATES = frozenset({"25006", "55000", "25P03", "25P04"})
# shutting down, starting, terminated
_AWAY_PREFIX = "57P"
_LOCKED = "55P03"
_CANCELLED = "57014"

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
    """The error of a statement over rows as one row's fault, or None when it is the whole connector's.

    Over several rows it says only that one of them may be to blame.
    """
    if is_too_slow(error):
        return Retryable("the recipient's database did not finish the row in time")
    if isinstance(error, asyncpg.PostgresError):
        state = str(error.sqlstate or "")
        if not state or _is_of_connector(state):
            return None
        if state == _LOCKED:
            return Retryable("another session at the recipient holds the row")
        if state[:2] in _ROW_CLASSES:
            return _rejected(error, state)
        return Retryable(f"the recipient's database failed at the row ({state})")
    # asyncpg refuses a value that does not fit its parameter before anything is sent
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return Rejected("a value does not fit the type of the recipient's column")
    return None


def is_too_slow(error: Exception) -> bool:
    """Whether a statement was ended, by the server or by our driver, because it took too long."""
    return isinstance(error, TimeoutError) or (
        isinstance(error, asyncpg.PostgresError) and str(error.sqlstate or "") == _CANCELLED
    )


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


def _is_of_connector(state: str) -> bool:
    return (
        state[:2] in _DECLARATION_CLASSES
        or state[:2] in _AWAY_CLASSES
        or state in _AWAY_STATES
        or state.startswith(_AWAY_PREFIX)
    )


def _rejected(error: asyncpg.PostgresError, state: str) -> Rejected:
    column, constraint = getattr(error, "column_name", None), getattr(error, "constraint_name", None)
    reason = _WORDS.get(state, "was refused by the recipient's database")
    named = f", constraint {constraint}" if constraint else ""
    return Rejected(f"{reason} ({state}{named})", column or constraint)
