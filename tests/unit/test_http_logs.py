"""Logs: one JSON object a line, no personal data, nothing a caller can break out of."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import asyncpg
import orjson
import pytest
import structlog

from gateway import logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Logging set up as a command does it, and put back afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    out = io.StringIO()
    logs.configure("json", stream=out)
    yield out
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object_with_time_level_and_correlation_id(stream: io.StringIO) -> None:
    """What an operator searches by is in every line."""
    structlog.contextvars.bind_contextvars(correlation_id="abcdef12")
    structlog.get_logger("gateway.test").info("request", route="/v1/cases", status=201)
    (line,) = _lines(stream)
    assert {"event": "request", "level": "info", "correlation_id": "abcdef12", "status": 201}.items() <= line.items()
    assert line["at"].endswith("Z")


def test_the_libraries_lines_go_the_same_way(stream: io.StringIO) -> None:
    """A record of `logging`, with its extra fields' names, is JSON as well."""
    logging.getLogger("streams.outbox").warning("outbox.%s", "late")
    (line,) = _lines(stream)
    assert (line["event"], line["logger"], line["level"]) == ("outbox.late", "streams.outbox", "warning")


@pytest.mark.parametrize("text", ["a\r\nlevel=error forged", "\x1b[31mred\x1b[0m", "a\u2028b", "a\x85b", "a\x00b"])
def test_control_characters_cannot_start_a_line(stream: io.StringIO, text: str) -> None:
    """CR, LF, ANSI and their cousins arrive as visible text, in values and in nested ones."""
    structlog.get_logger("gateway.test").info("request", reason=text, more={"deep": [text]})
    assert len(stream.getvalue().splitlines()) == 1
    (line,) = _lines(stream)
    assert line["reason"].isprintable()
    assert line["more"]["deep"][0].isprintable()


def test_what_must_not_be_logged_is_hidden_whoever_logs_it(stream: io.StringIO) -> None:
    """Names of personal and secret fields are hidden at any depth."""
    structlog.get_logger("gateway.test").info(
        "oops", document={"name": "Pat Example"}, token="sg_x", more={"email": "pat@example.net", "kept": 1}
    )
    (line,) = _lines(stream)
    assert "Pat" not in stream.getvalue()
    assert "pat@example.net" not in stream.getvalue()
    assert line["more"] == {"email": "[hidden]", "kept": 1}


def test_an_error_shows_where_it_rose_but_not_what_it_says(stream: io.StringIO) -> None:
    """A database names the offending value in its message, so only class, SQLSTATE and place are logged."""
    try:
        try:
            raise asyncpg.UniqueViolationError("Key (email)=(pat@example.net) already exists")
        except asyncpg.UniqueViolationError as error:
            raise RuntimeError("while storing pat@example.net") from error
    except RuntimeError:
        structlog.get_logger("gateway.test").exception("request_failed")
        logging.getLogger("aiohttp.server").exception("Error handling request")
    first, second = _lines(stream)
    assert "pat@example.net" not in stream.getvalue()
    assert first["error"]["class"] == "builtins.RuntimeError"
    assert first["error"]["after"]["class"] == "asyncpg.exceptions.UniqueViolationError"
    assert "test_an_error_shows_where_it_rose" in second["error"]["at"][-1]


def test_a_terminal_gets_lines_for_people() -> None:
    """`console` renders the same event without JSON."""
    out = io.StringIO()
    handlers = list(logging.getLogger().handlers)
    try:
        logs.configure("console", stream=out)
        structlog.get_logger("gateway.test").info("request", status=200)
    finally:
        logging.getLogger().handlers[:] = handlers
        structlog.reset_defaults()
    assert "request" in out.getvalue()
    assert not out.getvalue().startswith("{")
