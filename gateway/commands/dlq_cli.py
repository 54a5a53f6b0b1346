"""The commands of `silogate dlq`, as typed."""

from __future__ import annotations

import asyncio
from typing import Annotated
from uuid import UUID

import typer

from gateway.console import fail
from gateway.settings import InvalidSettings, Settings, read_settings

dlq_app = typer.Typer(no_args_is_help=True, help="Parked cases: list, look, try again, give up.")

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
Group = Annotated[str, typer.Argument(help="The consumer group, as `silogate dlq list` names it.")]
CaseId = Annotated[UUID | None, typer.Option("--case", help="Only this case.")]
Event = Annotated[
    int | None, typer.Option("--event", help="Only this event, which must be the oldest of its case: its position.")
]
Stage = Annotated[str | None, typer.Option(help="Only cases that failed here, such as handler or data.")]
Field = Annotated[str | None, typer.Option(help="Only cases that failed at this field.")]
Said = Annotated[str | None, typer.Option("--said", help="Only cases whose reason contains this.")]
Limit = Annotated[int, typer.Option(min=1, max=10_000, help="Show at most so many cases.")]


def _settings() -> Settings:
    try:
        return read_settings()
    except InvalidSettings as error:
        fail(*error.problems, code=2)


@dlq_app.command("list")
def dlq_list(
    group: Annotated[str | None, typer.Argument(help="Only this consumer group.")] = None,
    *,
    stage: Stage = None,
    field: Field = None,
    said: Said = None,
    limit: Limit = 200,
    json: Json = False,
) -> None:
    """List parked cases with where, at what and why they failed, newest first."""
    from gateway.commands.dlq import Selection, show_list

    selection = Selection(group, stage=stage, field=field, reason=said)
    raise typer.Exit(asyncio.run(show_list(_settings(), selection, limit=limit, json=json)))


@dlq_app.command("show")
def dlq_show(
    group: Group,
    case: Annotated[UUID, typer.Argument(help="The case's id.")],
    *,
    limit: Limit = 200,
    json: Json = False,
) -> None:
    """Show one parked case and its events, oldest first, without their contents."""
    from gateway.commands.dlq import show_case

    raise typer.Exit(asyncio.run(show_case(_settings(), group, case, limit=limit, json=json)))


@dlq_app.command("replay")
def dlq_replay(
    group: Group,
    *,
    case: CaseId = None,
    event: Event = None,
    stage: Stage = None,
    field: Field = None,
    said: Said = None,
    go: Annotated[bool, typer.Option("--go", help="Try them again. Without it: say what would change.")] = False,
    limit: Limit = 50,
    json: Json = False,
) -> None:
    """Say what trying parked cases again would change, field by field; with --go, have them tried again."""
    from gateway.commands.dlq import Selection, replay

    selection = Selection(group, case, event, stage, field, said)
    raise typer.Exit(asyncio.run(replay(_settings(), selection, go=go, limit=limit, json=json)))


@dlq_app.command("drop")
def dlq_drop(
    group: Group,
    *,
    reason: Annotated[str, typer.Option(help="Why they are given up; nothing personal, it is kept.")],
    case: CaseId = None,
    event: Event = None,
    stage: Stage = None,
    field: Field = None,
    said: Said = None,
    json: Json = False,
) -> None:
    """Give up the parked events of the cases that are named; they are kept apart with the reason, and never handled."""
    from gateway.commands.dlq import Selection, drop

    selection = Selection(group, case, event, stage, field, said)
    raise typer.Exit(asyncio.run(drop(_settings(), selection, reason=reason, json=json)))


@dlq_app.command("resume")
def dlq_resume(group: Group, *, json: Json = False) -> None:
    """Have all parked cases of a group tried again, and start a group that stopped because most of its cases failed."""
    from gateway.commands.dlq import Selection, replay

    raise typer.Exit(asyncio.run(replay(_settings(), Selection(group), go=True, limit=1, json=json)))
