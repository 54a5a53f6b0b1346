"""`make bench`: every measure there is, one table, and bench.json. Exit code 1 when a bar is missed.

`python -m tests.load [ID…] [--rounds N] [--json] [--profile ID]`. A measure that is not here was not run, and is not a
row: no number is made up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gateway.dev.stack import PROJECT, start_stack
from gateway.dev.state import State
from tests.load import (
    bench_changes,
    bench_lookups,
    bench_mapping,
    bench_misses,
    bench_outages,
    bench_streams,
    machine,
    sampler,
)
from tests.load.bench import Bench
from tests.load.comparison import Row, as_json, meets, spread, value, verdict
from tests.load.council import establish
from tests.load.sides import Unfit

Measure = Callable[[Bench], Awaitable[list[Row]]]
# In the order in which they run: the last one changes what the others compare their answers with.
ON_SERVERS: Mapping[str, Measure] = {
    "P1": bench_lookups.warm,
    "P2": bench_lookups.from_l1,
    "P13": bench_lookups.two_processes,
    "P3": bench_misses.all_misses,
    "P4": bench_misses.one_cold_key,
    "P6": bench_outages.outages,
    "P7": bench_streams.applying,
    "P5": bench_changes.changing,
}


@dataclass(frozen=True)
class Found:
    """What a run has to tell; a measure that failed its gate has no rows and a sentence in `unfit`."""

    rows: list[Row] = field(default_factory=list)
    notes: list[tuple[str, str]] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)


_POSTCODES = 22_500
_TIMES = 16
_MAPPING_ROUNDS = 15
_PROFILED = ("P1", "P2", "P3", "P5", "P7")
_PACKAGES = (
    "aiohttp",
    "aiokafka",
    "asyncpg",
    "redis",
    "aiocache",
    "fastapi",
    "fastapi-cache2",
    "uvicorn",
    "uvloop",
    "orjson",
    "faststream",
)


def main() -> int:
    options = _options()
    versions = {"python": platform.python_version(), "machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    found = Found()
    if "P10" in options.ids:
        found.rows.extend(bench_mapping.measure(_MAPPING_ROUNDS))
    wanted = [name for name in ON_SERVERS if name in options.ids]
    if wanted and not machine.CAN_MEASURE:
        sys.stderr.write(f"{', '.join(wanted)} need Linux: they read another process's clock\n")
    elif wanted:
        versions |= _installed()
        _measure(wanted, options, versions, found)
    found.rows.sort(key=lambda row: int(row.id[1:]))
    found.notes.sort(key=lambda note: note[0])
    text = json.dumps([as_json(row, versions) for row in found.rows], indent=2) + "\n"
    if options.json:
        sys.stdout.write(text)
    else:
        show(found, versions)
    if not options.profile:
        Path("bench.json").write_text(text)
    for reason in found.unfit:
        sys.stderr.write(f"✗ {reason}\n")
    return 0 if not found.unfit and all(meets(row, row.must) for row in found.rows) else 1


def _installed() -> dict[str, str]:
    """The versions of what takes part; a peer that is not installed has none, and no row."""
    found = {}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _options() -> argparse.Namespace:
    known = sorted([*ON_SERVERS, "P10"], key=lambda name: int(name[1:]))
    parser = argparse.ArgumentParser(prog="python -m tests.load")
    parser.add_argument("ids", nargs="*", metavar="ID", help=f"of {', '.join(known)}; all of them when none is named")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after the warm-up")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long one side is measured in one round")
    parser.add_argument("--json", action="store_true", help="print the rows of bench.json instead of the table")
    parser.add_argument(
        "--quick", action="store_true", help="few keys and no slopes: to try the bench, not to judge by"
    )
    parser.add_argument("--verbose", action="store_true", help="a line with the time for each step, and no bar")
    parser.add_argument("--profile", metavar="ID", choices=_PROFILED, help="sample our side while it is measured")
    options = parser.parse_args()
    options.ids = [options.profile] if options.profile else options.ids or known
    if unknown := [name for name in options.ids if name not in known]:
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def _measure(ids: list[str], options: argparse.Namespace, versions: dict[str, str], found: Found) -> None:
    """Measure on servers of this run's own. One that fails its gate has no rows, and its reason in `unfit`."""
    cores = machine.Cores()
    root = PROJECT / ".silogate" / f"bench-{os.getpid()}"
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with cores.pinned(), start_stack(root, ephemeral=True, durable=False) as stack:
        versions |= {name: server.version for name, server in State.read(root).servers.items()}
        console.print(
            f"Python {versions['python']}, {versions['machine']}; server on core {sorted(cores.server)}, load and"
            f" stores on {sorted(cores.others)}; {options.rounds} rounds of {options.seconds:g} s",
            markup=False,
        )

        async def run() -> None:
            folder = root / "council"
            folder.mkdir()
            postcodes = 1_000 if options.quick else _POSTCODES
            premises = 4_000 if options.quick else _POSTCODES * _TIMES
            council = await establish(stack.servers, folder, postcodes=postcodes, premises=premises)
            bench = Bench(
                council,
                stack,
                cores,
                rounds=options.rounds,
                seconds=options.seconds,
                is_quick=options.quick,
                is_verbose=options.verbose,
                profile=root / "profile.json" if options.profile else None,
                console=console,
            )
            await bench.give_redis_room()
            for name in ids:
                try:
                    found.rows.extend(await ON_SERVERS[name](bench))
                except Unfit as reason:
                    found.unfit.append(f"{name}: {reason}")
            found.notes.extend(bench.notes)
            bench.say(f"{bench.compared:,} answers were compared")
            if bench.profile is not None:
                sys.stdout.write(sampler.told(bench.profile))

        asyncio.run(run())


def show(found: Found, versions: Mapping[str, str]) -> None:
    """The table, on standard output."""
    table = Table("id", "measure", "ratio", "quartiles", "must", "aim", "verdict", "ours against theirs")
    for row in found.rows:
        low, high = spread(row)
        sign = "≥" if row.better == "higher" else "≤"
        bars = (f"{sign} {row.must:g}", f"{sign} {row.aim:g}")
        table.add_row(
            row.id, row.measure, f"{value(row):.2f}", f"{low:.2f} to {high:.2f}", *bars, verdict(row), row.shown
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for name, text in found.notes:
        console.print(f"{name}  {text}", markup=False, soft_wrap=True)
    console.print("; ".join(f"{name} {number}" for name, number in versions.items()), markup=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
