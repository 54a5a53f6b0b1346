"""`silogate dev up | down | status | env`: the development servers, by hand."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.console import as_json, fail, people, say
from gateway.dev import detached
from gateway.dev.stack import StackFailed
from gateway.dev.state import KeeperLock, State

dev_app = typer.Typer(
    name="dev",
    help="PostgreSQL with a read replica, Valkey, Kafka and a mail server for development, without containers.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--folder", help="Where the servers keep their data.")]
Delete = Annotated[bool, typer.Option("--delete", help="Remove their data as well.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
_FOLDER = Path(".silogate/dev")
_NAMES = ("postgres", "replica", "valkey", "kafka", "smtp")


@dev_app.command()
def up(folder: Folder = _FOLDER) -> None:
    """Start the servers; they run until `silogate dev down`."""
    try:
        _bring_up(folder)
    except StackFailed as failure:
        fail(str(failure))
    _print_status(detached.status(folder))
    say(f"Addresses and passwords: {folder / 'state.json'}; as settings: silogate dev env")


@dev_app.command()
def down(folder: Folder = _FOLDER, delete: Delete = False) -> None:
    """Stop the servers; their data stays."""
    stopped = detached.take_down(folder, delete=delete)
    say("The servers are stopped." if stopped else "No servers were running.")


@dev_app.command()
def status(folder: Folder = _FOLDER, json: Json = False) -> None:
    """Show each server: version, address, process, and whether it is up. Exit code 1 unless all are."""
    servers = detached.status(folder)
    if json:
        as_json([asdict(server) for server in servers])
    elif servers:
        _print_status(servers)
    else:
        say("No servers were started here yet: silogate dev up")
    if not servers or not all(server.up for server in servers):
        raise typer.Exit(1)


@dev_app.command()
def env(folder: Folder = _FOLDER) -> None:
    """Print the addresses as SILOGATE_* settings, for `eval "$(silogate dev env)"`. They contain a password."""
    addresses = State.read(folder).addresses
    if addresses is None or KeeperLock(folder).holder() is None:
        fail("no servers are running; start them with: silogate dev up")
    for name, value in addresses.environment().items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def _bring_up(folder: Path) -> None:
    if not people.is_terminal:
        detached.bring_up(folder, lambda server, text: say(f"{server}: {text}"))
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Progress(*columns, console=people, transient=True) as progress:
        tasks = {name: progress.add_task(f"{name}: starting") for name in _NAMES}
        detached.bring_up(folder, lambda server, text: progress.update(tasks[server], description=f"{server}: {text}"))


def _print_status(servers: list[detached.ServerStatus]) -> None:
    table = Table(box=None, pad_edge=False)
    for heading in ("Server", "Version", "Address", "Process", "State"):
        table.add_column(heading)
    for server in servers:
        state = "[green]up[/green]" if server.up else "[red]down[/red]"
        table.add_row(server.name, server.version, server.address, str(server.pid or "-"), state)
    Console().print(table)
