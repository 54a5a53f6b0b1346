"""What every request passes through on its way to a handler, in the order of `MIDDLEWARE`: one idea a file."""

from __future__ import annotations

from gateway.middleware.audited import audited
from gateway.middleware.authenticate import authenticate
from gateway.middleware.deadline import deadline
from gateway.middleware.observe import observe
from gateway.middleware.permit import permit
from gateway.middleware.rate import rate
from gateway.middleware.refuse import refuse
from gateway.middleware.shed import shed

# Outermost first. Refusals that cost nothing come before those that ask the database; the audit row is written outside
# of the handler's deadline, so a request that ran out of time leaves its row too.
MIDDLEWARE = (observe, refuse, shed, authenticate, rate, audited, permit, deadline)

__all__ = ["MIDDLEWARE"]
