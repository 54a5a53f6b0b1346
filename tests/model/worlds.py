"""The small worlds that are searched to the end, each about one thing that can go wrong."""

from __future__ import annotations

from tests.model.world import Rules

# Each is searched to its end in every run.
SMALL = (
    Rules("a replica that lags, two invalidators", ("m", "b"), least=6_000),
    Rules("a replica that lags, two fills", ("m", "b"), invalidators=1, fills=2, least=4_500),
    Rules("eviction", ("m",), invalidators=1, fills=2, faults={"evict": 1}, least=1_000),
    Rules("reads of the primary", ("m", "b"), invalidators=1, from_primary=True, least=2_400),
    Rules("an empty Redis at the start", ("a",), from_nothing=True, least=16_000),
    Rules("FLUSHALL", ("m",), faults={"flush": 1}, least=18_000),
    Rules("a key without a TTL is lost", ("m", "b"), invalidators=1, faults={"lose": 1}, least=14_000),
    Rules("Redis fails over", ("a", "b"), invalidators=1, faults={"redis": 1}, least=12_000),
    Rules("Redis fails over, two invalidators", ("m",), faults={"redis": 1}, least=4_000),
    Rules("Postgres and Redis fail over", ("m",), invalidators=1, faults={"postgres": 1, "redis": 1}, least=16_000),
    Rules("the silo is set back", ("m", "x"), invalidators=1, faults={"back": 1}, least=2_500),
    Rules("changes too large for tags", ("x", "m"), invalidators=1, least=700),
    Rules("changes too large for tags, two invalidators", ("x",), least=500),
    Rules("a new definition", ("d", "m"), invalidators=1, least=700),
    Rules("a change of two rows", ("ab", "m"), invalidators=1, faults={"redis": 1}, least=18_000),
    Rules("tags are trimmed", ("a", "b"), invalidators=1, faults={"tick": 2}, least=40_000),
    Rules("beats, two invalidators", ("m",), fills=0, beats=True, faults={"tick": 2}, least=4_000),
    Rules("beats, Redis fails over", ("a",), 1, fills=0, beats=True, faults={"tick": 1, "redis": 1}, least=450),
    Rules(
        "beats, Postgres fails over", ("a", "b"), 1, fills=0, beats=True, faults={"tick": 1, "postgres": 1}, least=4_500
    ),
    Rules("reads in their steps", ("a", "x"), invalidators=1, reads_in_steps=True, least=7_000),
    Rules("reads in their steps, FLUSHALL", ("m",), 1, reads_in_steps=True, faults={"flush": 1}, least=5_500),
)

# Each is searched as far as the time of a run allows, and to its end, or much further, by `make faults`.
LARGE = (
    Rules("a replica that lags, three changes", ("m", "b", "m"), fills=2),
    Rules("Postgres fails over", ("m", "b", "m"), invalidators=1, faults={"postgres": 1}),
    Rules("Postgres fails over, two invalidators", ("m", "a"), faults={"postgres": 1}),
    Rules("Postgres fails over twice", ("m", "a"), 1, faults={"postgres": 2}),
    Rules("a replica stays on the dead timeline", ("a", "m"), 1, second_replica=True, faults={"postgres": 1}),
    Rules("Redis fails over, the log is trimmed", ("a", "b"), invalidators=1, faults={"redis": 1, "trim": 1}),
    Rules("the silo is set back later", ("a", "x"), invalidators=1, faults={"back": 1, "tick": 2}),
    Rules("tags are trimmed, Redis fails over", ("a", "b"), 1, faults={"tick": 2, "redis": 1}),
    Rules("tags are trimmed in finer steps", ("a", "b"), 1, retention_ms=4, life_ms=2, faults={"tick": 5}),
    Rules("FLUSHALL twice, eviction", ("m", "b"), fills=2, faults={"flush": 2, "evict": 1}),
    Rules("everything at once", ("m", "b", "x"), faults={"flush": 1, "redis": 1, "postgres": 1, "evict": 1}),
)
