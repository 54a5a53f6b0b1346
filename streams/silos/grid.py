"""Points of a source in one grid: OSGB36 easting and northing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

System = Literal["WGS84", "OSGB36"]
SYSTEMS: tuple[System, ...] = ("WGS84", "OSGB36")

# Longitude and latitude of Great Britain with its islands, as EPSG gives the area of use of the National Grid.
_WEST, _SOUTH, _EAST, _NORTH = -9.01, 49.75, 2.01, 61.01


@dataclass(frozen=True, slots=True)
class Point:
    """A point as easting and northing where it can be read; `wrong` says what is wrong with how it was written."""

    easting: float | None
    northing: float | None
    wrong: str | None = None
    wrong_at: Literal["x", "system"] = "x"


def read_point(x: float, y: float, system_text: str, default: System) -> Point:
    """Read a pair of numbers in the reference system that its row names.

    A row whose system is wrong is refused, but its point can still be read for what the row puts in doubt: the two
    systems cannot be confused by their numbers, as the first 180 m of the National Grid in both directions are sea.
    """
    degrees = abs(x) <= 180 and abs(y) <= 90
    named = system_text.upper() or default
    if named not in SYSTEMS:
        point = _from_degrees(x, y) if degrees else Point(x, y)
        return Point(point.easting, point.northing, f"is not one of: {', '.join(SYSTEMS)}", "system")
    if named == "OSGB36":
        if degrees:
            point = _from_degrees(x, y)
            return Point(point.easting, point.northing, "looks like a longitude, but the row says OSGB36")
        return Point(x, y)
    if not degrees:
        said = "the row says WGS84" if system_text else "the row names no reference system, which means WGS84"
        return Point(x, y, f"is not a longitude, but {said}")
    return _from_degrees(x, y)


def _from_degrees(longitude: float, latitude: float) -> Point:
    if not (_WEST <= longitude <= _EAST and _SOUTH <= latitude <= _NORTH):
        return Point(None, None, "is not in Great Britain")
    easting, northing = _transformer().transform(longitude, latitude)
    # centimetres: more would be noise of the conversion, and would make an unchanged row look changed
    return Point(round(easting, 2), round(northing, 2))


@cache
def _transformer() -> Any:
    from pyproj import Transformer

    return Transformer.from_crs("EPSG:4326", "EPSG:27700", always_xy=True)
