"""A statement as Postgres understood it: every function by its id, also those behind operators, casts and views.

Postgres sends its own tree of a statement to whoever asks (`debug_print_rewritten`), on a replica and to a role that
may only read; names found in the text would leave overloads, casts and views to be guessed. The tree goes to the
server's log as well, one entry a statement: it holds the query and no value of a parameter.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import asyncpg

_MARK = re.compile(r"[{}()\[\]]|(?:\\.|[^\s{}()\[\]\\])+", re.DOTALL)


@dataclass(slots=True)
class Node:
    """One node of the tree; a field holds the words, lists and nodes that follow its name."""

    kind: str = ""
    fields: dict[str, list[Any]] = field(default_factory=dict)

    def word(self, name: str) -> str:
        """The field's only word, or an empty text."""
        found = self.fields.get(name, [])
        return found[0] if found and isinstance(found[0], str) else ""

    def number(self, name: str) -> int:
        word = self.word(name)
        return int(word) if word.removeprefix("-").isdigit() else 0

    def has(self, name: str) -> bool:
        """True unless the field is absent or the empty pointer `<>`."""
        return self.fields.get(name, ["<>"])[:1] != ["<>"]

    def nodes(self) -> Iterator[Node]:
        """Itself and all below it."""
        waiting: list[Any] = [self]
        while waiting:
            found = waiting.pop()
            if isinstance(found, Node):
                yield found
                for values in found.fields.values():
                    waiting.extend(values)
            elif isinstance(found, list):
                waiting.extend(found)


def parse(text: str) -> Node | None:
    """The first node of what Postgres printed; None if there is none."""
    top: list[Any] = []
    frames: list[tuple[Node | None, list[Any]]] = [(None, top)]
    for match in _MARK.finditer(text):
        mark = match[0]
        node, into = frames[-1]
        if mark == "{":
            inner = Node()
            into.append(inner)
            frames.append((inner, []))
        elif mark in "([":
            words: list[Any] = []
            into.append(words)
            frames.append((None, words))
        elif mark in ")]}":
            if len(frames) > 1:
                frames.pop()
        elif node is not None and not node.kind:
            node.kind = mark
        elif node is not None and mark.startswith(":"):
            frames[-1] = (node, node.fields.setdefault(mark[1:], []))
        else:
            into.append(mark)
    while top and isinstance(top[0], list):
        top = top[0]
    return top[0] if top and isinstance(top[0], Node) else None


async def rewritten(connection: asyncpg.Connection, sql: str) -> Node | None:
    """The statement after views were put in; None where the server or a pooler does not send it.

    Needs an open transaction, and raises what `prepare` does.
    """
    heard: list[Any] = []

    def hear(_connection: object, message: Any) -> None:
        heard.append(message)

    connection.add_log_listener(hear)
    try:
        await connection.execute(
            "set local debug_pretty_print = off; set local client_min_messages = log;"
            " set local debug_print_rewritten = on"
        )
        await connection.prepare(sql)
        await connection.execute("set local debug_print_rewritten = off; set local client_min_messages = warning")
        # The driver hands messages over in the loop's next turn.
        await asyncio.sleep(0)
    finally:
        connection.remove_log_listener(hear)
    # The driver may have looked up types meanwhile; the statement itself was parsed first.
    trees = (parse(message.detail) for message in heard if message.detail)
    return next((tree for tree in trees if tree is not None and not tree.has("utilityStmt")), None)


def relations(tree: Node) -> Mapping[int, str]:
    """The id and kind (`r`, `v`, `m`, `f`, …) of everything that the statement reads rows of."""
    return {
        node.number("relid"): node.word("relkind")
        for node in tree.nodes()
        if node.kind == "RANGETBLENTRY" and node.number("relid") and node.word("rtekind") in ("0", "1")
    }
