"""`silogate load`: one silo's source into its replica, with progress for people and a summary for both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from gateway.assembly import Assembly
from gateway.commands.opening import opened
from gateway.console import as_json, fail, people, say
from gateway.integrations import value_types
from gateway.settings import Settings
from streams.silos import SiloError
from streams.silos.load import LoadSummary, load
from streams.silos.progress import LoadProgress, OnProgress, silent


async def load_silo(settings: Settings, name: str, *, dry_run: bool, allow_deletions: bool, json: bool) -> int:
    """Load one silo and report; 0 when the new image stands (or would, for a dry run), else 1 with the old one."""
    try:
        async with opened(settings, command="load") as assembly:
            summary = await _load(assembly, name, dry_run=dry_run, allow_deletions=allow_deletions, quiet=json)
    except SiloError as error:
        fail(f"{name}: {error}", f"{name}: nothing was changed; lookups go on with the last good image")
    if json:
        as_json({"silo": name, **asdict(summary)})
    else:
        _report(name, summary)
    return 0


async def _load(assembly: Assembly, name: str, *, dry_run: bool, allow_deletions: bool, quiet: bool) -> LoadSummary:
    declaration = assembly.folders.silos.get(name)
    if declaration is None:
        fail(f"there is no silo {name}; there are: {', '.join(sorted(assembly.folders.silos))}", code=2)
    with _progress(name, shown=not quiet) as on_progress:
        return await load(
            declaration,
            types=value_types(),
            pool=assembly.pool,
            tagger=assembly.taggers[name],
            folder=assembly.settings.source_files / name,
            reports=assembly.settings.reports,
            dry_run=dry_run,
            allow_deletions=allow_deletions,
            on_progress=on_progress,
            role=assembly.settings.lookup_role,
        )


@contextmanager
def _progress(name: str, *, shown: bool) -> Iterator[OnProgress]:
    """Draw a bar on a terminal; elsewhere the summary is enough."""
    if not shown or not people.is_terminal:
        yield silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]} rows"))
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=people, transient=True) as progress:
        bar = progress.add_task(name, total=None, rows=0)

        def moved(at: LoadProgress) -> None:
            progress.update(
                bar,
                description=f"{name}: {at.phase}",
                completed=at.bytes_read,
                total=at.bytes_total or None,
                rows=f"{at.rows:,}",
            )

        yield moved


def _report(name: str, summary: LoadSummary) -> None:
    would = "would be " if summary.dry_run else ""
    say(
        f"{name}: {summary.total:,} rows; {would}{summary.added:,} added, {summary.changed:,} changed, "
        f"{summary.removed:,} removed, {summary.unchanged:,} unchanged, {summary.rejected:,} rejected "
        f"in {summary.seconds:.1f} s"
    )
    if summary.rejects_csv is not None:
        say(f"{name}: why rows were rejected: {summary.rejects_csv}")
