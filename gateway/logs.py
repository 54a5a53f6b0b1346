"""Structured logs: one JSON object a line on stdout, or coloured lines on a terminal. No line carries personal data.

Everything goes one way, the libraries' `logging` records too. Texts lose their control characters, so that nothing a
caller sends can start a line of its own. Errors show their class and where they rose, not their message: a database
names the offending value in it.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from typing import Any, Literal, TextIO

import asyncpg
import orjson
import structlog
from structlog.typing import EventDict, ExcInfo, Processor, WrappedLogger

_HIDDEN = "[hidden]"
_SENSITIVE = frozenset(
    (
        *("authorization", "cookie", "key_ring", "password", "secret", "token", "url"),
        *("body", "document", "email", "nino", "payload", "personal", "query", "sealed", "telephone"),
    )
)
_FRAMES = 12
_LONGEST = 500
# Everything below a space, DEL, the C1 controls, and the two separators that some viewers treat as line ends.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F, *range(0x80, 0xA0))} | {
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}
# A broker that is away is dozens of their lines a second; ours, and the metrics, say it once.
_NOISY = {"aiokafka": logging.CRITICAL, "aiohttp.access": logging.WARNING, "asyncio": logging.WARNING}


def configure(form: Literal["auto", "json", "console"] = "auto", *, stream: TextIO | None = None) -> None:
    """Sets up logging for the process; called once by each command."""
    out = stream if stream is not None else sys.stdout
    console = form == "console" or (form == "auto" and out.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        _place_of_error,
        hide_and_neutralise,
    ]
    render: Processor = structlog.dev.ConsoleRenderer() if console else _as_json
    _take_libraries_lines(out, shared, render)
    # our own lines do not go through `logging`: it costs several times what the line itself does
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )


def _take_libraries_lines(out: TextIO, shared: list[Processor], render: Processor) -> None:
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_of_library, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
            # a library's exception text would otherwise be put behind the line by the standard formatter
            keep_exc_info=False,
            keep_stack_info=False,
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name, level in _NOISY.items():
        logging.getLogger(name).setLevel(level)


def hide_and_neutralise(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Hides what must never be logged whoever asks for it, and makes every text one harmless line."""
    return {
        key: value if key.startswith("_") else (_HIDDEN if key.lower() in _SENSITIVE else _harmless(value))
        for key, value in event.items()
    }


def place_of(error: BaseException) -> dict[str, object]:
    """What a log may say about an error: its class, its SQLSTATE, and the calls that led to it."""
    frames = traceback.extract_tb(error.__traceback__)[-_FRAMES:]
    shown: dict[str, object] = {
        "class": f"{type(error).__module__}.{type(error).__qualname__}",
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    if isinstance(error, asyncpg.PostgresError):
        shown["sqlstate"] = error.sqlstate
    elif isinstance(error, OSError) and error.strerror:
        shown["reason"] = error.strerror
    if isinstance(error, BaseExceptionGroup):
        shown["parts"] = [place_of(part) for part in error.exceptions[:5]]
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None:
        shown["after"] = place_of(cause)
    return shown


def _place_of_error(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    found: ExcInfo | BaseException | bool | None = event.pop("exc_info", None)
    if found is True:
        found = sys.exc_info()[1]
    if isinstance(found, tuple):
        found = found[1]
    if isinstance(found, BaseException):
        event["error"] = place_of(found)
    return event


def _of_library(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    record = event.get("_record")
    if isinstance(record, logging.LogRecord):
        event["logger"] = record.name
        if record.exc_info:
            event["exc_info"] = record.exc_info
    return event


def _harmless(value: object) -> object:
    if isinstance(value, str):
        text = value if value.isprintable() else value.translate(_CONTROLS)
        return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    if isinstance(value, Mapping):
        return {
            str(key): _HIDDEN if str(key).lower() in _SENSITIVE else _harmless(below) for key, below in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [_harmless(below) for below in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _harmless(str(value))


def _as_json(_logger: WrappedLogger, _method: str, event: MutableMapping[str, Any]) -> str:
    return orjson.dumps(event, option=orjson.OPT_NON_STR_KEYS, default=str).decode()
