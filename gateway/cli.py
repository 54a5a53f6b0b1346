"""The console script `silogate`. Data goes to standard output, words for people to standard error.

Exit codes: 0 all is well, 1 something failed, 2 called wrongly (usage or settings).
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from gateway.commands.dlq_cli import dlq_app
from gateway.console import as_json, fail
from gateway.settings import InvalidSettings, Settings, read_settings

main = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
keys_app = typer.Typer(no_args_is_help=True, help="API keys with scopes, and the key ring that seals personal data.")
main.add_typer(keys_app, name="keys")

lookups_app = typer.Typer(no_args_is_help=True, help="The declared questions: list, describe, try one.")
main.add_typer(lookups_app, name="lookups")
cache_app = typer.Typer(no_args_is_help=True, help="What Redis holds of each silo: look, fill, empty.")
main.add_typer(cache_app, name="cache")
effects_app = typer.Typer(no_args_is_help=True, help="Acts on the outside world: what waits, is held or unknown.")
main.add_typer(effects_app, name="effects")

main.add_typer(dlq_app, name="dlq")

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
LookupName = Annotated[str, typer.Argument(help="The lookup, as `silogate lookups list` names it.")]


def _settings() -> Settings:
    try:
        return read_settings()
    except InvalidSettings as error:
        fail(*error.problems, code=2)


@main.command()
def serve() -> None:
    """Run the gateway: the public port and the admin port, until SIGTERM."""
    from gateway.app import serve as run

    raise typer.Exit(asyncio.run(run(_settings())))


@main.command()
def work() -> None:
    """Run the workers: relay, recipients, flow, pollers and the effect ledger, until SIGTERM."""
    from gateway.worker import work as run

    raise typer.Exit(asyncio.run(run(_settings())))


@main.command()
def load(
    name: Annotated[str, typer.Argument(help="The silo to load.")],
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read, check and compare; change nothing.")] = False,
    allow_deletions: Annotated[bool, typer.Option("--allow-deletions", help="Accept the rows that are gone.")] = False,
    json: Json = False,
) -> None:
    """Read a silo's source into its replica: one transaction, rejects with their reasons."""
    from gateway.commands.loading import load_silo

    raise typer.Exit(
        asyncio.run(load_silo(_settings(), name, dry_run=dry_run, allow_deletions=allow_deletions, json=json))
    )


@main.command()
def check(
    path: Annotated[Path, typer.Argument(help="An integration folder, or a folder of them.")] = Path(
        "deploy/integrations"
    ),
    *,
    silos: Annotated[Path, typer.Option(help="The folder of silo folders.")] = Path("deploy/silos"),
    database: Annotated[
        bool,
        typer.Option("--database", help="Also try every lookup on the silos: plan, tags, plain and batched answers."),
    ] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Write the lock of each case type that may follow its earlier schema.")
    ] = False,
    json: Json = False,
) -> None:
    """Read integration and silo folders; name file, line and field of each mistake."""
    from gateway.commands.check import check_folders

    settings = _settings() if database else None
    raise typer.Exit(asyncio.run(check_folders(path, silos, settings, accept=accept, json=json)))


@main.command()
def doctor(*, json: Json = False) -> None:
    """Connect to each dependency; say its version, its lag and what is wrong."""
    from gateway.commands.doctor import examine

    raise typer.Exit(asyncio.run(examine(_settings(), json=json)))


@main.command()
def asyncapi() -> None:
    """Print the AsyncAPI 3.0 document: topics, their records, and the groups that read them."""
    from gateway.commands.asyncapi import describe_topics

    raise typer.Exit(describe_topics(_settings()))


@main.command()
def settings(*, json: Json = False) -> None:
    """List every setting with its default; values are never printed."""
    rows = [
        {
            "name": f"SILOGATE_{name.upper()}" if name != "recipients" else "SILOGATE_RECIPIENT_<NAME>_URL",
            "default": None if field.is_required() else str(field.get_default(call_default_factory=True)),
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]
    if json:
        as_json(rows)
        return
    for row in rows:
        default = "required" if row["default"] is None else f"default {row['default'] or 'empty'}"
        typer.echo(f"{row['name']}\n    {row['description']} ({default})")


@main.command()
def demo(*, check: Annotated[bool, typer.Option("--check", help="Walk the journey and exit.")] = False) -> None:
    """Start a running council on real servers: form, operator's page, metrics. Ctrl-C stops everything."""
    from gateway.dev.demo import run_demo

    raise typer.Exit(asyncio.run(run_demo(check=check)))


@keys_app.command("add")
def keys_add(
    name: Annotated[str, typer.Argument(help="Who holds the key, such as `website`.")],
    scope: Annotated[list[str], typer.Option("--scope", help="May be repeated, such as lookups:* or cases:write.")],
    *,
    json: Json = False,
) -> None:
    """Make an API key. It is shown once; only its hash is kept."""
    from gateway.commands.keys import add

    raise typer.Exit(asyncio.run(add(_settings(), name, scope, json=json)))


@keys_app.command("list")
def keys_list(*, json: Json = False) -> None:
    """List the API keys, without their secrets."""
    from gateway.commands.keys import show

    raise typer.Exit(asyncio.run(show(_settings(), json=json)))


@keys_app.command("revoke")
def keys_revoke(key_id: Annotated[str, typer.Argument(help="The id that `keys list` shows.")]) -> None:
    """Revoke an API key: refused within five seconds, or ten minutes where the database cannot be reached."""
    from gateway.commands.keys import revoke

    raise typer.Exit(asyncio.run(revoke(_settings(), key_id)))


@keys_app.command("ring")
def keys_ring() -> None:
    """Print a new key ring for SILOGATE_KEY_RING. Keep it as you keep the database's backup, and apart from it."""
    import base64
    import secrets

    typer.echo(f"1:{base64.b64encode(secrets.token_bytes(32)).decode()}")


@lookups_app.command("list")
def lookups_list(*, json: Json = False) -> None:
    """List the declared lookups."""
    from gateway.commands.lookups import show_list

    show_list(_settings(), json=json)


@lookups_app.command("describe")
def lookups_describe(name: LookupName, *, json: Json = False) -> None:
    """Show everything that is declared of one lookup: parameters, SQL, what touches it, for how long it is kept."""
    from gateway.commands.lookups import describe

    describe(_settings(), name, json=json)


@lookups_app.command("try")
def lookups_try(
    name: LookupName,
    values: Annotated[
        list[str], typer.Argument(help="The parameters, in order or as name=value; `-` reads a JSON object from stdin.")
    ],
    *,
    results: Annotated[bool, typer.Option("--results", help="Print the rows of a personal lookup too.")] = False,
    json: Json = False,
) -> None:
    """Ask one lookup and say where the answer came from: hit, miss or stale, its age, its tags, how long it took."""
    from gateway.commands.trying import try_lookup

    raise typer.Exit(asyncio.run(try_lookup(_settings(), name, values, results=results, json=json)))


@cache_app.command("stats")
def cache_stats(*, json: Json = False) -> None:
    """Show entries, tags, position and age of each silo's cache; 1 when one is behind its silo."""
    from gateway.commands.cache import stats

    raise typer.Exit(asyncio.run(stats(_settings(), json=json)))


@cache_app.command("warm")
def cache_warm(
    name: LookupName,
    *,
    keys: Annotated[
        Path | None, typer.Option(help="A file of questions, one a line; none: every key of the silo.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Ask at most so many.")] = 100_000,
    json: Json = False,
) -> None:
    """Ask a lookup for many keys before a rush, so that they are kept."""
    from gateway.commands.warming import warm

    raise typer.Exit(asyncio.run(warm(_settings(), name, keys=keys, limit=limit, json=json)))


@cache_app.command("purge")
def cache_purge(
    silo: Annotated[str, typer.Argument(help="The silo whose answers are to go.")], *, json: Json = False
) -> None:
    """Empty one silo's cache, in Redis and in every process; lookups ask the silo again from then on."""
    from gateway.commands.cache import purge

    raise typer.Exit(asyncio.run(purge(_settings(), silo, json=json)))


@effects_app.command("list")
def effects_list(
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="planned, intent, unknown, failed or done; may be repeated.")
    ] = None,
    sink: Annotated[str | None, typer.Option(help="Only of this sink.")] = None,
    case: Annotated[str | None, typer.Option(help="Only of the case with this reference.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    json: Json = False,
) -> None:
    """List effects that are not done, the longest unmoved first."""
    from gateway.commands.effects import show_list

    raise typer.Exit(asyncio.run(show_list(_settings(), state or [], sink, case, limit, json=json)))


@effects_app.command("show")
def effects_show(
    effect: Annotated[str, typer.Argument(help="The id that `effects list` shows.")], *, json: Json = False
) -> None:
    """Show one effect: its attempts, the questions asked about it, its stored bytes with every word masked."""
    from gateway.commands.effects import show

    raise typer.Exit(asyncio.run(show(_settings(), effect, json=json)))


@effects_app.command("resolve")
def effects_resolve(
    effect: Annotated[str, typer.Argument(help="The id that `effects list` shows.")],
    outcome: Annotated[str, typer.Argument(help="done, failed, or resend: it surely did not happen.")],
    *,
    reason: Annotated[str, typer.Option(help="How that is known, without personal data; it is audited.")],
    reference: Annotated[str | None, typer.Option(help="The provider's reference, when it is done.")] = None,
) -> None:
    """Say what became of an effect of which nobody else can tell."""
    from gateway.commands.effects import resolve

    raise typer.Exit(asyncio.run(resolve(_settings(), effect, outcome, reference, reason)))


@effects_app.command("release")
def effects_release(
    sink: Annotated[str, typer.Argument(help="The sink that is to act.")], *, json: Json = False
) -> None:
    """Let a sink act that was held back because so much was planned at once."""
    from gateway.commands.effects import release

    raise typer.Exit(asyncio.run(release(_settings(), sink, json=json)))


def _add_dev() -> None:
    # `silogate dev` needs the extra `dev`; an installation without it has the command's explanation instead.
    try:
        from gateway.dev.cli import dev_app
    except ModuleNotFoundError as error:
        missing = error.name

        @main.command()
        def dev() -> None:
            """Development servers; not installed here (pip install 'silogate[dev]')."""
            fail(f"`silogate dev` needs the package {missing}: pip install 'silogate[dev]'", code=2)
    else:
        main.add_typer(dev_app, name="dev")


_add_dev()

if __name__ == "__main__":
    main()
