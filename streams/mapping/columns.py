"""What a mapping knows of a recipient's columns, and which values fit into them."""

from collections.abc import Mapping
from dataclasses import dataclass

from streams.mapping.declaration import Kind

_TEXT = frozenset({"text", "varchar", "bpchar", "citext", "name"})
_INTEGER_BITS = {"int2": 16, "int4": 32, "int8": 64}
_NUMBER = frozenset({"float4", "float8", "numeric"})

# How each kind of value travels; the assignment to the column then checks length and range and never cuts.
ARRAY_TYPES: Mapping[Kind, str] = {
    "text": "text[]",
    "integer": "int8[]",
    "number": "float8[]",
    "boolean": "bool[]",
    "date": "date[]",
    "timestamp": "timestamptz[]",
    "local_timestamp": "timestamp[]",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the recipient's table, as its catalogue describes it. `labels`: what an enum type allows."""

    name: str
    type: str
    nullable: bool = True
    has_default: bool = False
    max_chars: int | None = None
    generated: bool = False
    labels: tuple[str, ...] | None = None

    def takes(self, kind: Kind) -> bool:
        """Whether a value of this kind can be assigned to the column as it is."""
        if self.labels is not None or self.type == "uuid":
            return kind == "text"
        match kind:
            case "text":
                return self.type in _TEXT
            case "integer":
                return self.type in _INTEGER_BITS or self.type in _NUMBER
            case "number":
                return self.type in _NUMBER
            case "boolean":
                return self.type == "bool"
            case "date":
                return self.type == "date"
            case "timestamp":
                return self.type == "timestamptz"
            case "local_timestamp":
                return self.type == "timestamp"

    @property
    def integer_bounds(self) -> tuple[int, int]:
        """The whole numbers that travel to this column."""
        half = 1 << (_INTEGER_BITS.get(self.type, 64) - 1)
        return -half, half - 1
