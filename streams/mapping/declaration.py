"""How a recipient is declared: its table, the field table of the mapping, its status codes, and how it is polled.

One YAML file a recipient. Reading it finds every mistake of form; what it says about the case and about the recipient's
columns is checked by `Mapping.compile`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator

from streams.declared import Document, InvalidDeclaration, Problem, read
from streams.durations import Duration

Scalar = bool | int | float | str
Kind = Literal["text", "integer", "number", "boolean", "date", "timestamp", "local_timestamp"]
Charset = Literal["utf-8", "ascii", "latin-1", "windows-1252"]
Grid = Literal["wgs84_latitude", "wgs84_longitude"]


class InvalidMapping(InvalidDeclaration):
    """A mapping that does not fit the case, the recipient's columns or itself; `problems` lists every mistake."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str | dict) else value


def _plain(value: object) -> object:
    # pydantic would read 1 as true and "1" as 1: a code list must stay as it is written
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError("is not a text, a number, true or false")
    return value


def _word(value: object) -> object:
    # YAML's own null where the word was meant
    return "null" if value is None else value


OnError = Annotated[Literal["park", "null", "default", "fail"], BeforeValidator(_word)]
Seconds = Annotated[Duration, Field(gt=0, le=86_400, allow_inf_nan=False)]
# What Postgres takes as an identifier; it is quoted as it is written, so case and spaces count.
Identifier = Annotated[str, StringConstraints(strict=True, pattern=r'^[^\x00-\x1f"]{1,63}$')]
Code = Annotated[Any, BeforeValidator(_plain)]


class _Declared(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ColumnsDeclaration(_Declared):
    """The columns Silogate itself uses: our reference, our version, the recipient's own id and time of change."""

    key: Identifier
    version: Identifier
    id: Identifier
    modified: Identifier | None = None


class FieldDeclaration(_Declared):
    """One row of the field table: what one column of the recipient gets."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    to: Identifier
    sources: Annotated[tuple[str, ...], BeforeValidator(_as_list)] = Field(default=(), alias="from")
    type: Kind = "text"
    required: bool = False
    convert: Annotated[tuple[Any, ...], BeforeValidator(_as_list)] = ()
    table: dict[Any, Code] | None = None
    default: Code = None
    owner: Literal["gateway", "remote"] = "gateway"
    max_chars: int | None = Field(default=None, ge=1)
    max_bytes: int | None = Field(default=None, ge=1)
    charset: Charset | None = None
    date: str | None = Field(default=None, min_length=1, max_length=64)
    grid: Grid | None = None
    pii: bool = False
    on_error: OnError = "park"


class StatusDeclaration(_Declared):
    """The recipient's status: its column, every code it may hold, and what each side's word means on the other.

    Owned by the recipient (`remote`), it is written once, with the new row, and then only read back.
    """

    column: Identifier
    codes: tuple[Code, ...] = Field(min_length=1)
    forward: dict[str, Code]
    reverse: dict[Any, str] = Field(default_factory=dict)
    owner: Literal["gateway", "remote"] = "remote"


class PollDeclaration(_Declared):
    """How often the recipient is asked what changed, and how far each question reaches back over the last one."""

    every: Seconds = 5.0
    overlap: Seconds = 60.0
    page: int = Field(default=200, ge=1, le=1000)


class RecipientDeclaration(_Declared):
    """A file of the folder recipients/: one system that receives cases."""

    recipient: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    title: str = Field(min_length=1, max_length=80)
    kind: Literal["postgres"]
    connection: Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,79}$")]
    table: Identifier
    columns: ColumnsDeclaration
    fields: tuple[FieldDeclaration, ...] = Field(min_length=1, max_length=200)
    status: StatusDeclaration | None = None
    poll: PollDeclaration | None = None

    _document: Document = PrivateAttr()

    @model_validator(mode="after")
    def _polling_needs(self) -> Self:
        if self.poll is None:
            return self
        if self.columns.modified is None:
            raise ValueError("poll needs columns.modified: the column that says when the recipient changed a row")
        if self.status is None or self.status.owner != "remote":
            raise ValueError("poll needs a status that the recipient owns: there is nothing else to read back")
        return self

    @classmethod
    def parse(cls, path: Path, text: str | None = None) -> Self:
        """The declaration in the file `path` (or in `text`); raises InvalidDeclaration with every problem's line."""
        document = read(path, text)
        declaration = document.parse(cls)
        declaration._document = document  # noqa: SLF001 - its own, set once
        return declaration

    @property
    def origin(self) -> str:
        """What events carry that this recipient caused, and the source of its messages in the inbox."""
        return f"recipient:{self.recipient}"

    def problem(self, location: tuple[str | int, ...], message: str) -> Problem:
        """A problem at a place of the file; a row of the field table is named by its column."""
        match location:
            case ("fields", int(index), *rest):
                named = ".".join((f"fields[{self.fields[index].to}]", *(str(part) for part in rest)))
            case _:
                named = ".".join(str(part) for part in location)
        return Problem(self._document.path, self._document.line(location), named, message)
