"""What the command line says: data to standard output, words to standard error, colour only on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import orjson
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

# rich honours NO_COLOR and falls back to plain text where there is no terminal
people = Console(stderr=True, highlight=False, soft_wrap=True)


def as_table(table: Table) -> None:
    """Print a table as the command's data: as wide as it is where nobody looks at it on a terminal."""
    plain = Console(highlight=False)
    Console(highlight=False, width=plain.width if plain.is_terminal else 240).print(table)


def say(text: str) -> None:
    """Tell the person at the terminal; never part of a command's data."""
    people.print(text, markup=False)


def as_json(value: Any) -> None:
    """Print one JSON document on standard output."""
    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode())


def fail(*problems: str, code: int = 1) -> NoReturn:
    """Name what is wrong and leave with an exit code."""
    for problem in problems:
        people.print(
            f"[red]✗[/] {escape(problem)}" if people.is_terminal else f"error: {problem}", markup=people.is_terminal
        )
    raise typer.Exit(code)


def escape(text: str) -> str:
    from rich.markup import escape as rich_escape

    return rich_escape(text)


def shown_seconds(seconds: float) -> str:
    """A length of time as people say it: `0.4 s`, `15 m`, `6 h`, `7 d`."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length or (seconds and seconds % length == 0):
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


@contextmanager
def bar(label: str, *, total: int | None, shown: bool) -> Iterator[Callable[[int], None]]:
    """Draw a bar on a terminal; elsewhere the summary is enough."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), TimeRemainingColumn(), console=people, transient=True,
        disable=not shown or not people.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task(label, total=total)
        yield lambda number: progress.update(task, advance=number)
