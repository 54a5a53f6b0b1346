"""What a command that works on a whole deployment opens, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from redis.exceptions import RedisError

from cache.link import RedisSkipped
from gateway.assembly import Assembly, NotReady, assembled
from gateway.console import fail
from gateway.settings import InvalidSettings, Settings
from streams.outages import DATABASE_ERRORS


@contextmanager
def said() -> Iterator[None]:
    """Say in a sentence why the command cannot go on, and leave with 1, or with 2 for a wrong setting."""
    try:
        yield
    except NotReady as error:
        fail(*error.problems)
    except InvalidSettings as error:
        fail(*error.problems, code=2)
    except (RedisSkipped, RedisError):
        fail("Redis cannot be used at SILOGATE_REDIS_URL; `silogate doctor` says more")
    except DATABASE_ERRORS as error:
        # never the driver's whole text: an address may hold a password
        fail(f"PostgreSQL cannot be used ({type(error).__name__}); `silogate doctor` says more")


@asynccontextmanager
async def opened(settings: Settings, *, command: str) -> AsyncIterator[Assembly]:
    """The deployment's parts for one command."""
    with said():
        async with assembled(settings, name=f"silogate {command}", connections=4) as assembly:
            yield assembly
