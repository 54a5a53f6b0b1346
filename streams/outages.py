"""What the Postgres driver raises, by the decision that follows: one list for everybody who must go on afterwards."""

from __future__ import annotations

import asyncpg

# Everything a call to a database can raise when it fails. OSError: a time-out is one. InternalClientError: what asyncpg
# 0.32 makes of the server's last words on a connection that was idle or is cut in mid-query.
DATABASE_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)

# The part of it that says: the database is away, starting, failing over or out of connections, and will be back.
DATABASE_AWAY = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.exceptions.OperatorInterventionError,
    asyncpg.exceptions.ObjectNotInPrerequisiteStateError,  # the database does not accept connections now
    asyncpg.exceptions.InsufficientResourcesError,
    asyncpg.exceptions.TransactionRollbackError,
    asyncpg.exceptions.ReadOnlySQLTransactionError,
    OSError,
)
