"""A point of a map on a phone, in degrees of WGS84, as a point of the National Grid, in which silos are asked."""

from __future__ import annotations

from functools import cache
from typing import Any

from cache.normalisers import Malformed

# Great Britain with its islands, as EPSG gives the area of use of the National Grid (EPSG:27700).
SOUTH, NORTH = 49.75, 61.01
WEST, EAST = -9.01, 2.01
_EASTINGS = 700_000.0
_NORTHINGS = 1_300_000.0


def easting_northing(latitude: float, longitude: float) -> tuple[float, float]:
    """OSGB36 in whole metres; raises Malformed for a point that the National Grid does not have.

    The conversion is good to about five metres (PROJ's own parameters, without the Ordnance Survey's correction grid),
    so a part of a metre would say nothing and would make every question one of its own.
    """
    easting, northing = _transformer().transform(longitude, latitude)
    if not 0 <= easting <= _EASTINGS:
        raise Malformed("malformed_longitude", "is not in Great Britain")
    if not 0 <= northing <= _NORTHINGS:
        raise Malformed("malformed_latitude", "is not in Great Britain")
    return float(round(easting)), float(round(northing))


def prepare() -> None:
    """Read the parameters of the conversion now, so that no question waits for it."""
    _transformer()


@cache
def _transformer() -> Any:
    # Imported here: it takes a while, and only lookups that are asked in degrees need it.
    from pyproj import Transformer

    return Transformer.from_crs("EPSG:4326", "EPSG:27700", always_xy=True)
