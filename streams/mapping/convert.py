"""The conversions a mapping may name: what each takes, what it gives, and the function that does it.

Every one of them either gives a value of its declared kind or raises Unfit: none guesses, and none cuts a text unless
`shorten` says so in the declaration.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyproj

Convert = Callable[[Any], Any]
Grid = Callable[[Any, Any], float]

_WHOLE = re.compile(r"[+-]?\d{1,19}", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d{1,17}(?:\.\d{1,17})?", re.ASCII)
_CUT = " […]"
_LARGEST = 1.7e308

# The National Grid, and nothing beyond it: a point outside is a mistake, such as latitude and longitude in its place.
_EASTINGS = (0.0, 700_000.0)
_NORTHINGS = (0.0, 1_300_000.0)


class Unfit(ValueError):
    """A value the recipient's field cannot take. The text never holds the value."""


class BadConversion(ValueError):
    """A conversion that is declared wrongly; says what it needs."""


@dataclass(frozen=True, slots=True)
class Step:
    """One conversion made ready: the kind of value it gives, and how."""

    name: str
    gives: str
    apply: Convert


def step(declared: object, kind: str) -> Step:
    """The conversion a declaration names, for values of `kind`; raises BadConversion.

    It is written as a word (`upper`) or as a word with its argument (`{round: 2}`).
    """
    name, argument = _read(declared)
    maker = _MAKERS.get(name)
    if maker is None:
        raise BadConversion(f"{name!r} is not a conversion; there are: {', '.join(sorted(_MAKERS))}")
    takes, gives, make = maker
    if kind not in takes:
        raise BadConversion(f"{name} takes {' or '.join(takes)}, and this is {kind}")
    return Step(name, gives if gives != "same" else kind, make(argument, name))


def pattern_of(declared: str) -> Convert:
    """The function that writes a date or time by a strftime pattern; raises BadConversion for one without effect."""
    try:
        example = datetime(2026, 11, 2, 9, 5, 7, tzinfo=UTC).strftime(declared)
    except ValueError:
        example = ""
    if not example or example == declared:
        raise BadConversion(f"{declared!r} is not a date pattern such as %d/%m/%Y")
    return lambda value: value.strftime(declared)


def grid_of(name: str) -> Grid:
    """The function from easting and northing (OSGB36, EPSG:27700) to one WGS84 coordinate in degrees (EPSG:4326).

    Good to about three metres: PROJ's own parameters, without the Ordnance Survey's correction grid.
    """
    transformer = pyproj.Transformer.from_crs(27700, 4326, always_xy=True)
    place = 1 if name == "wgs84_latitude" else 0

    def coordinate(easting: Any, northing: Any) -> float:
        if not (_within(easting, _EASTINGS) and _within(northing, _NORTHINGS)):
            raise Unfit("is not a point of the National Grid")
        degrees: float = transformer.transform(easting, northing)[place]
        if not math.isfinite(degrees):
            raise Unfit("is not a point that can be transformed")
        return degrees

    return coordinate


def _within(value: Any, bounds: tuple[float, float]) -> bool:
    return type(value) in (int, float) and bounds[0] <= value <= bounds[1]


def _read(declared: object) -> tuple[str, object]:
    if isinstance(declared, str):
        return declared, None
    if isinstance(declared, Mapping) and len(declared) == 1:
        name, argument = next(iter(declared.items()))
        return str(name), argument
    raise BadConversion("is written as a word, or as a word with its argument: upper, or {round: 2}")


def _bare(convert: Convert) -> Callable[[object, str], Convert]:
    def make(argument: object, name: str) -> Convert:
        if argument is not None:
            raise BadConversion(f"{name} takes no argument")
        return convert

    return make


def _digits(value: str) -> str:
    return "".join(character for character in value if character in "0123456789")


def _integer(value: Any) -> int:
    if isinstance(value, float):
        if not value.is_integer():
            raise Unfit("is not a whole number")
        return int(value)
    if isinstance(value, int):
        return value
    if not _WHOLE.fullmatch(value.strip()):
        raise Unfit("is not a whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, str):
        if not _DECIMAL.fullmatch(value.strip()):
            raise Unfit("is not a number")
        return float(value)
    return float(value)


def _date(value: Any) -> date:
    if isinstance(value, datetime):
        return value.date()
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise Unfit("is not a date") from None


def _timestamp(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise Unfit("is not a date and time") from None
    if moment.tzinfo is None:
        raise Unfit("is a time without its zone")
    return moment


def _round(argument: object, name: str) -> Convert:
    if type(argument) is not int or not 0 <= argument <= 12:
        raise BadConversion(f"{name} needs the number of decimals, 0 to 12")
    return lambda value: round(float(value), argument)


def _scale(argument: object, name: str) -> Convert:
    if type(argument) not in (int, float) or not math.isfinite(float(argument)) or not argument:  # type: ignore[arg-type]
        raise BadConversion(f"{name} needs the number to multiply by")
    factor = float(argument)  # type: ignore[arg-type]

    def scaled(value: Any) -> float:
        product = float(value) * factor
        if not -_LARGEST <= product <= _LARGEST:
            raise Unfit("is too large a number")
        return product

    return scaled


def _text_argument(argument: object, name: str) -> str:
    if not isinstance(argument, str):
        raise BadConversion(f"{name} needs a text")
    return argument


def _prefix(argument: object, name: str) -> Convert:
    before = _text_argument(argument, name)
    return lambda value: before + value


def _suffix(argument: object, name: str) -> Convert:
    after = _text_argument(argument, name)
    return lambda value: value + after


def _join(argument: object, name: str) -> Convert:
    between = _text_argument(argument, name)
    # An empty list is an absent value, not an empty text: `required` and `default` decide about it
    return lambda values: between.join(str(value) for value in values) if values else None


def _shorten(argument: object, name: str) -> Convert:
    if type(argument) is not int or argument <= len(_CUT):
        raise BadConversion(f"{name} needs the number of characters to keep, more than {len(_CUT)}")
    keep = argument - len(_CUT)
    return lambda value: value if len(value) <= argument else value[:keep] + _CUT


def _local(argument: object, name: str) -> Convert:
    try:
        zone = ZoneInfo(_text_argument(argument, name))
    except (ZoneInfoNotFoundError, ValueError):
        raise BadConversion(f"{name} needs a time zone such as Europe/London") from None
    return lambda value: value.astimezone(zone).replace(tzinfo=None)


_MOMENTS = ("timestamp", "local_timestamp")

# name → kinds it takes, the kind it gives, how it is made from its argument
_MAKERS: Mapping[str, tuple[tuple[str, ...], str, Callable[[object, str], Convert]]] = {
    "strip": (("text",), "text", _bare(str.strip)),
    "collapse": (("text",), "text", _bare(lambda value: " ".join(value.split()))),
    "upper": (("text",), "text", _bare(str.upper)),
    "lower": (("text",), "text", _bare(str.lower)),
    "digits": (("text",), "text", _bare(_digits)),
    "prefix": (("text",), "text", _prefix),
    "suffix": (("text",), "text", _suffix),
    "shorten": (("text",), "text", _shorten),
    "join": (("text[]", "integer[]"), "text", _join),
    "text": (("integer", "number"), "text", _bare(str)),
    "integer": (("text", "number", "integer"), "integer", _bare(_integer)),
    "number": (("text", "integer", "number"), "number", _bare(_number)),
    "round": (("number", "integer"), "number", _round),
    "scale": (("number", "integer"), "number", _scale),
    "date": (("text", *_MOMENTS), "date", _bare(_date)),
    "timestamp": (("text",), "timestamp", _bare(_timestamp)),
    "local": (("timestamp",), "local_timestamp", _local),
}
