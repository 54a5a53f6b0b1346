"""Asks a lookup alone and in a batch, with the same keys at the same moment, and compares answers and times."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import asyncpg

from cache.definition import MOST_ROWS, LookupDefinition, compile_one, compile_sql
from cache.examine.finding import Finding
from cache.examine.samples import Key, arrays
from cache.gathered import spread

_TOO_SLOW = "57014"
# A batch may cost up to this much more than its questions sent one behind the other in one round trip.
_TIMES_SLOWER = 2.0
_SLOWER_S = 0.005
_SLOWER_A_KEY_S = 0.002
_ROUNDS = 7
# A lookup so slow is known to be after this; nobody waits for more.
_MOST_ALONE_S = 5.0
_ROUNDS_S = 0.5


@dataclass(slots=True)
class Trial:
    """What came out. `batched` False: many questions at once are to be asked one by one."""

    batched: bool = True
    keys: list[Key] = field(default_factory=list)
    alone_s: float = 0.0
    together_s: float | None = None
    findings: list[Finding] = field(default_factory=list)

    def fall_back(self, level: str, code: str, why: str) -> None:
        self.batched = False
        said = f"{why}. Until then its questions are sent one by one"
        self.findings.append(Finding("error" if level == "error" else "warning", code, said))


@dataclass(frozen=True, slots=True)
class _Answer:
    body: str
    rows: int


async def compared(
    connection: asyncpg.Connection, definition: LookupDefinition, keys: Sequence[Key], *, batch: bool = True
) -> Trial:
    """Ask every key alone, then (`batch`) all at once; needs a transaction in which every statement sees the same."""
    trial = Trial()
    alone = await _alone(connection, definition, keys, trial)
    if not trial.keys:
        return trial
    together = await _together(connection, definition, trial) if batch else None
    if together is not None:
        _compare(alone, together, trial)
        await _time(connection, definition, trial)
    _judge_rows(definition, trial.keys, alone, trial)
    return trial


async def _alone(
    connection: asyncpg.Connection, definition: LookupDefinition, keys: Sequence[Key], trial: Trial
) -> list[_Answer]:
    sql, found = compile_one(definition), []
    states: set[str] = set()
    started = time.monotonic()
    for key in keys:
        try:
            async with connection.transaction():
                row = await connection.fetchrow(sql, *key.values)
        except asyncpg.PostgresError as error:
            states.add(error.sqlstate or "")
            continue
        finally:
            enough = time.monotonic() - started > _MOST_ALONE_S
        found.append(_Answer(row["body"].decode(), row["n"]))
        trial.keys.append(key)
        if enough:
            break
    trial.findings += [_failing(state) for state in sorted(states)]
    return found


def _failing(state: str) -> Finding:
    if state == _TOO_SLOW:
        return Finding(
            "error", "too_slow", "one question alone takes longer than the statement time-out (SQLSTATE 57014)"
        )
    if state.startswith("22"):
        return Finding(
            "warning",
            "bad_cast",
            f"a well-formed value makes the SQL fail (SQLSTATE {state}), and with it every batch that it is in: all of"
            " that batch are then asked one by one. Cast the column instead of the parameter, or give the parameter the"
            " type that the SQL needs",
        )
    return Finding("error", "fails", f"a sampled question fails with SQLSTATE {state}")


async def _together(connection: asyncpg.Connection, definition: LookupDefinition, trial: Trial) -> list[_Answer] | None:
    _, sql = compile_sql(definition)
    try:
        async with connection.transaction():
            rows = await connection.fetch(sql, *arrays(trial.keys))
    except asyncpg.PostgresError as error:
        if error.sqlstate == _TOO_SLOW:
            count = len(trial.keys)
            trial.fall_back(
                "warning", "slow_in_batch", f"{count} questions at once take longer than the statement time-out"
            )
        else:
            trial.fall_back("error", "fails_in_batch", f"the SQL fails in a batch only (SQLSTATE {error.sqlstate})")
        return None
    return [_Answer(body.decode(), n) for body, n in spread(rows[0])]


def _compare(alone: Sequence[_Answer], together: Sequence[_Answer], trial: Trial) -> None:
    different = [pair for pair in zip(alone, together, strict=False) if pair[0] != pair[1]]
    if len(alone) == len(together) and not different:
        return
    if len(alone) == len(together) and all(_same_rows(one, other) for one, other in different):
        trial.fall_back(
            "warning",
            "order_differs",
            "the same rows come in another order alone than in a batch: end the SQL with an `order by` that names a"
            " unique column last",
        )
        return
    trial.fall_back(
        "error",
        "batch_differs",
        f"{len(different)} of {len(alone)} questions are answered otherwise in a batch than alone: look for a `limit`"
        " or `distinct on` without a full `order by`, and for a value that is compared in another type than its own",
    )


def _same_rows(one: _Answer, other: _Answer) -> bool:
    def rows(answer: _Answer) -> list[str]:
        return sorted(json.dumps(row) for row in json.loads(answer.body))

    return rows(one) == rows(other)


async def _time(connection: asyncpg.Connection, definition: LookupDefinition, trial: Trial) -> None:
    """The best of a few rounds each, so that a busy moment is not blamed on the batch."""
    one = compile_one(definition)
    _, batch = compile_sql(definition)
    values, columns = [key.values for key in trial.keys], arrays(trial.keys)
    trial.alone_s = trial.together_s = float("inf")
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        try:
            started = time.perf_counter()
            async with connection.transaction():
                await connection.fetchmany(one, values)
                between = time.perf_counter()
                await connection.fetch(batch, *columns)
        except asyncpg.QueryCanceledError:
            break
        trial.alone_s = min(trial.alone_s, between - started)
        trial.together_s = min(trial.together_s, time.perf_counter() - between)
        if time.perf_counter() - began > _ROUNDS_S:
            break


def slower(trial: Trial) -> str | None:
    """By how much the batch is the slower way, in words; None if it is not."""
    alone, together = trial.alone_s, trial.together_s
    if together is None or together == float("inf"):
        return None
    least = max(_SLOWER_S, _SLOWER_A_KEY_S * len(trial.keys))
    if together <= alone * _TIMES_SLOWER or together - alone <= least:
        return None
    each = 1000 / len(trial.keys)
    return f"a question takes {together * each:.2f} ms in a batch and {alone * each:.2f} ms alone"


def _judge_rows(definition: LookupDefinition, keys: Sequence[Key], alone: Sequence[_Answer], trial: Trial) -> None:
    if any(answer.rows > MOST_ROWS for answer in alone):
        trial.findings.append(
            Finding(
                "warning",
                "too_many_rows",
                f"a sampled question has more than {MOST_ROWS} rows, which is refused: narrow it or add a `limit`",
            )
        )
    absent = [answer for key, answer in zip(keys, alone, strict=True) if key.absent]
    empty = ("[]", '[{"exists":false}]')
    if definition.tags and absent and all(answer.body not in empty for answer in absent):
        trial.findings.append(
            Finding(
                "warning",
                "absent_found",
                "a question whose values no row holds is answered with a row, so this lookup may never say not_found:"
                " is there an aggregate, or an outer join from nothing, in it?",
            )
        )
