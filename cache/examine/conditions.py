"""The conditions of a plan, as Postgres prints them: whether they tie a table's rows to the lookup's parameters.

Only forms that are known to be right are believed: what a tag stands on must hold for every row that is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from cache.normalisers import LAST

_CAST = re.compile(
    r'::(?:"[^"]+"|[a-z_][\w.]*(?: varying| precision| with(?:out)? time zone)?)'
    r"(?:\(\d+(?:,\d+)?\))?(?:\[\])*"
)
# Casts of a parameter, by its own type, that make no two of its values one (as `'007'::bigint` would).
_HARMLESS: Mapping[str, str] = {
    "text": "text|character varying|bpchar",
    "int8": "bigint|integer|smallint|numeric",
    "float8": "double precision",
    "bool": "boolean",
    "date": "date|timestamp without time zone",
}
_TWO = r"(?:2(?:\.0+)?|'2(?:\.0+)?'(?:::(?:double precision|numeric|integer))?)"

Test = Callable[[Sequence[str]], bool]


def tied(conditions: Sequence[str], test: Test, absent: frozenset[int]) -> bool:
    """True if `test` is of conditions that hold for every row, unless a parameter `$n` of `absent` is null.

    `test` gets conditions that all hold together.
    """
    free = {f"${number} IS NULL" for number in absent}
    if test(conditions):
        return True
    for condition in conditions:
        branches = [branch for branch in split(condition, " OR ") if bare(branch) not in free]
        if branches and all(test(split(branch, " AND ")) for branch in branches):
            return True
    return False


def equality(alias: str, column: str, number: int, postgres_type: str) -> Test:
    """The column is the parameter `$number`."""
    name, value = _text_column(alias, column), _parameter(number, _HARMLESS.get(postgres_type, "text"))
    return _any(f"{name} = {value}|{value} = {name}")


def beginning(alias: str, column: str, number: int) -> Test:
    """The column begins with the text `$number`: not before it, and before all that is behind what begins with it."""
    name, value = _text_column(alias, column), _parameter(number, "text")
    end = rf"\({value} \|\| '{LAST}'::text\)"
    least, below = _any(f"{name} >= {value}|{value} <= {name}"), _any(f"{name} < {end}|{end} > {name}")
    return lambda conditions: least(conditions) and below(conditions)


def distance(alias: str, columns: Sequence[str], numbers: Sequence[int]) -> Test:
    """The point of the two columns is at most `$metres` from (`$easting`, `$northing`): Pythagoras, in a few forms.

    A box is not: its corners are further away.
    """
    across, up = (
        _square(_cast(_column(alias, column)), _parameter(number, "numeric|double precision"))
        for column, number in zip(columns, numbers[:2], strict=True)
    )
    total = rf"\((?:{across} \+ {up}|{up} \+ {across})\)"
    total = rf"(?:{total}|\({total}\)::double precision)"
    root = rf"(?:sqrt\({total}\)|\(\|/ {total}\))"
    metres = _parameter(numbers[2], "numeric|double precision")
    squared = _squared(metres)
    return _any(f"{root} <=? {metres}|{metres} >=? {root}|{total} <=? {squared}|{squared} >=? {total}")


def _square(name: str, value: str) -> str:
    there, back = rf"\({name} - {value}\)", rf"\({value} - {name}\)"
    return f"(?:{_squared(there)}|{_squared(back)})"


def _squared(term: str) -> str:
    return rf"(?:\({term} \* {term}\)|pow(?:er)?\({term}, {_TWO}\)|\({term} \^ {_TWO}\))"


def _column(alias: str, column: str) -> str:
    return rf'"?{re.escape(alias)}"?\."?{re.escape(column)}"?'


def _text_column(alias: str, column: str) -> str:
    # A cast that makes two values one, such as to a whole number, `citext` or `char(8)`, would give a row that the
    # parameter's tag does not stand for.
    name = _column(alias, column)
    return rf"(?:{name}|\({name}\)|\({name}\)::(?:text|character varying))"


def _cast(name: str) -> str:
    # To a whole number it would be rounded, and could then be a metre off.
    return rf"(?:{name}|\({name}\)::(?:double precision|numeric))"


def _parameter(number: int, types: str) -> str:
    return rf"(?:\${number}|\(\${number}\)|\(\${number}\)::(?:{types}))"


def _any(pattern: str) -> Test:
    wanted = re.compile(pattern)
    return lambda conditions: any(wanted.fullmatch(_unbracketed(condition)) for condition in conditions)


def split(condition: str, word: str) -> list[str]:
    """The parts that the word joins at the outermost level."""
    text = _unbracketed(condition)
    parts, depth, start, at = [], 0, 0, 0
    while at < len(text):
        letter = text[at]
        if letter in "'\"":
            at = text.find(letter, at + 1)
            if at < 0:
                break
        depth += (letter == "(") - (letter == ")")
        if depth == 0 and text.startswith(word, at):
            parts.append(text[start:at])
            start = at + len(word)
            at = start - 1
        at += 1
    return [*parts, text[start:]]


def _unbracketed(condition: str) -> str:
    text = condition.strip()
    while text.startswith("(") and _closes_at(text) == len(text) - 1:
        text = text[1:-1].strip()
    return text


def _closes_at(text: str) -> int:
    """Where the bracket that opens the text is closed."""
    depth, quote = 0, ""
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        else:
            depth += (letter == "(") - (letter == ")")
            if depth == 0:
                return at
    return -1


def bare(condition: str) -> str:
    """The condition without casts, brackets and quotation marks, for comparing it with a simple form."""
    return re.sub(r"[()\"]", "", _CAST.sub("", condition)).strip()
