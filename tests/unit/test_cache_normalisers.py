"""Every type reads each usual spelling of one value into one form, makes one tag of it, and guesses nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.grid import easting_northing
from cache.normalisers import LAST, LONGEST, london_today
from cache.values import NAME_BUCKET, NORMALISER_VERSION, VALUE_TYPES, Index, Malformed, Tagger, canonical

ALIKE: dict[str, tuple[str, list[object]]] = {
    "a postcode": (
        "postcode",
        ["BN15 9JB", "bn159jb", " bn15  9jb ", "BN15\N{NO-BREAK SPACE}9JB", "Bn15-9Jb", "B N 1 5 9 J B", "BN15.9JB",
         "\uff22\uff2e\uff11\uff15\u3000\uff19\uff2a\uff22", "BN15\u20139JB", "\u200bBN15 9JB\ufeff"],
    ),
    "a postcode of the forces": ("postcode", ["BF1 0AX", "bf10ax"]),
    "a postcode of an overseas territory": ("postcode", ["FIQQ 1ZZ", "fiqq1zz"]),
    "a UPRN": ("uprn", [60001449, "60001449", "000060001449", " 60001449 ", 60001449.0, "\uff16\uff10001449"]),
    "a USRN": ("usrn", [4500123, "04500123", "4500123"]),
    "a name with an apostrophe": (
        "name", ["O'Brien", "O\u2019Brien", "o\u2018brien", "O\u02bcBRIEN", "O\xb4Brien", "O`Brien", "O\u2032Brien"],
    ),
    "a name with a hyphen": (
        "name", ["Smith-Jones", "smith\u2010jones", "SMITH\u2011JONES", "Smith - Jones", "Smith\u2013Jones"],
    ),
    "a name with an accent": ("name", ["Zo\xeb", "Zoe\u0308", "ZO\xcb", "zo\xeb\N{ZERO WIDTH JOINER}"]),
    "a name with a ligature": ("name", ["Stra\xdfe", "STRASSE", "strasse"]),
    "a National Insurance number": ("nino", ["QQ123456C", "qq 12 34 56 c", "QQ-12-34-56-C"]),
    "a vehicle mark": (
        "vehicle_mark", ["AB12CDE", "ab12 cde", "AB12-CDE", " A B 1 2 C D E", "\uff21\uff22\uff11\uff12cde"],
    ),
    "a date": (
        "date",
        [dt.date(2026, 6, 30), "2026-06-30", "30/06/2026", "30/6/2026",
         "2026-06-30T00:00", "2026-06-30 23:59:59", "2026-06-29T23:00:00Z", "2026-06-30T22:59:59.999+00:00",
         dt.datetime(2026, 6, 29, 23, 30, tzinfo=dt.UTC)],
    ),
    "a reference": ("reference", ["RAP-7KQ2-93XD", " rap-7kq2-93xd", "rap-7kq2-93xd\N{ZERO WIDTH SPACE}"]),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "spellings"), ALIKE.values(), ids=ALIKE.keys())
def test_every_spelling_of_a_value_is_one_value_one_tag_and_one_key(kind: str, spellings: list[object]) -> None:
    """For parameters and for rows alike, so that a change of the row touches the answer to the question."""
    index = Index("it", ("it",), "name" if kind == "name" else "value", (kind,))
    tagger = Tagger("town", {"thing": (index,)}, b"t" * 32, "1")
    assert len({canonical(VALUE_TYPES[kind].normalise(spelling)) for spelling in spellings}) == 1
    tags = {tagger.value_tag("thing", "it", [spelling]) for spelling in spellings}
    assert len(tags) == 1
    for spelling in spellings:
        assert tagger.row_tags("thing", {"it": spelling}) == tags | {tagger.table_tag("thing")}


MARKS = [
    "AB12CDE", "LA51ABC", "A1BCD", "A123BCD", "Q123ABC", "ABC1D", "ABC123D", "A1", "1A", "AB1234", "1234AB", "ABC123",
    "123ABC", "AAZ1234", "1234AAZ", "S0",
]  # fmt: skip
NOT_MARKS = [
    "", "ABCDEFG", "1234567", "AB123CDE", "A1234BCD", "ABC1234D", "AB1CDE", "ABCD1", "12345A", "A12345",
    # a letter where a digit stands, and the other way round
    "ABI2CDE", "AB1OCDE", "A0O1BCD",
    # numbers are not written with leading zeros
    "A012BCD", "01AB", "AB0012",
    "\xdf1", "AB12CDE\u0627",
]  # fmt: skip


@pytest.mark.parametrize("mark", MARKS)
def test_each_form_of_a_vehicle_mark_is_read(mark: str) -> None:
    """Current, prefix, suffix, dateless both ways, Northern Ireland and Q."""
    assert VALUE_TYPES["vehicle_mark"].normalise(mark.lower()) == mark


@pytest.mark.parametrize("mark", NOT_MARKS)
def test_what_is_no_vehicle_mark_is_refused_and_not_mended(mark: str) -> None:
    """O is never made 0, nor I made 1: it might be somebody else's car."""
    with pytest.raises(Malformed):
        VALUE_TYPES["vehicle_mark"].normalise(mark)


@pytest.mark.parametrize(
    "postcode", ["BNI5 9JB", "BN1O 9JB", "BN15 OJB", "0X1 1AA", "BI5 9JB", "W1I 1AA", "GIR 1AA", "ASCN 2ZZ", "ABCD 1ZZ",
                 "GIR0AAA", "BFPO 61", "SW1A 1A", "BN15 9JC", "BN15 9JB BN15 9JB"],
)  # fmt: skip
def test_a_postcode_with_a_letter_for_a_digit_is_refused_and_not_mended(postcode: str) -> None:
    """Also what only looks like one: no such outward code, or an inward letter that is not used."""
    with pytest.raises(Malformed):
        VALUE_TYPES["postcode"].normalise(postcode)


@pytest.mark.parametrize(
    "postcode", ["M1 1AE", "B33 8TH", "W1A 1HQ", "CR2 6XH", "DN55 1PT", "EC1A 1BB", "SW1P 3BU", "GIR 0AA", "BF1 4AE",
                 "GX11 1AA", "XX10 1AA", "JE2 3RA", "IM1 2RF", "GY1 1WR", *(f"{area} 1ZZ" for area in (
                     "ASCN", "BBND", "BIQQ", "FIQQ", "PCRN", "SIQQ", "STHL", "TDCU", "TKCA"))],
)  # fmt: skip
def test_a_postcode_of_each_published_form_is_read(postcode: str) -> None:
    """Of BS 7666, the Crown dependencies, the forces and the overseas territories."""
    assert VALUE_TYPES["postcode"].normalise(postcode.replace(" ", "").lower()) == postcode


INSTANTS = [
    ("2026-03-29T00:59:59Z", "2026-03-29"),  # an hour later London's clocks go forward
    ("2026-03-28T23:30:00Z", "2026-03-28"),
    ("2026-03-29T23:30:00Z", "2026-03-30"),  # and now half past midnight is BST
    ("2026-10-24T23:30:00Z", "2026-10-25"),
    ("2026-10-25T23:30:00Z", "2026-10-25"),  # clocks have gone back
    ("2026-10-25T00:30:00+01:00", "2026-10-25"),
    ("2026-07-01T00:30:00+05:30", "2026-06-30"),
    ("1970-01-31T23:30:00Z", "1970-02-01"),  # British Standard Time, all year round
    ("2026-07-01T00:30:00-0000", "2026-07-01"),
]


@pytest.mark.parametrize(("written", "day"), INSTANTS)
def test_an_instant_is_the_day_that_it_is_in_london(written: str, day: str) -> None:
    """At the edges of summer time too, whatever offset it is written with."""
    assert VALUE_TYPES["date"].normalise(written) == dt.date.fromisoformat(day)


def test_a_time_without_an_offset_is_what_a_clock_in_london_shows() -> None:
    """It has its own day, in summer as in winter."""
    for written in ("2026-07-01T00:30", "2026-07-01 23:59:59"):
        assert VALUE_TYPES["date"].normalise(written) == dt.date(2026, 7, 1)
    assert VALUE_TYPES["date"].normalise(dt.datetime(2026, 7, 1, 0, 30)) == dt.date(2026, 7, 1)  # noqa: DTZ001


@pytest.mark.parametrize("written", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-11-22T25:00Z",
                                     "2026-11-22T10:00+99:99", "today", "now", "2026-W47-7", "20261122"])  # fmt: skip
def test_what_is_no_instant_of_the_calendar_is_refused(written: str) -> None:
    """Neither the ends of the calendar nor a word give anything but a refusal."""
    with pytest.raises(Malformed):
        VALUE_TYPES["date"].normalise(written)


def test_today_is_londons() -> None:
    """One minute before midnight there and one after are two days, though in UTC they are one."""
    summer = dt.datetime(2026, 6, 30, 22, 59, tzinfo=dt.UTC)
    assert [london_today(summer), london_today(summer + dt.timedelta(minutes=2))] == [
        dt.date(2026, 6, 30),
        dt.date(2026, 7, 1),
    ]


POINTS = {
    # the worked example of the Ordnance Survey's guide to coordinate systems, and two places off its maps
    "Caister water tower": ((52.658007842, 1.716073972), (651_410, 313_177)),
    "Greenwich observatory": ((51.47782, -0.00148), (538_884, 177_323)),
    "Ben Nevis": ((56.79685, -5.00354), (216_675, 771_282)),
}


@pytest.mark.parametrize(("degrees", "metres"), POINTS.values(), ids=POINTS.keys())
def test_degrees_become_metres_of_the_national_grid(degrees: tuple[float, float], metres: tuple[float, float]) -> None:
    """Within what the conversion promises, in whole metres."""
    found = easting_northing(*degrees)
    assert found == pytest.approx(metres, abs=5)
    assert all(value == int(value) for value in found)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("latitude", 48.85), ("longitude", 2.35), ("latitude", 518_225), ("longitude", -74.0), ("latitude", "nan")],
)
def test_a_point_elsewhere_is_refused(kind: str, value: object) -> None:
    """Paris, New York, and an easting in the place of a latitude."""
    with pytest.raises(Malformed) as caught:
        VALUE_TYPES[kind].normalise(value)
    assert caught.value.code == f"malformed_{kind}"


def test_a_point_in_the_sea_beyond_the_grid_names_the_side() -> None:
    """Within the limits of both numbers, but nowhere on the grid."""
    with pytest.raises(Malformed) as caught:
        easting_northing(49.8, -9.0)
    assert caught.value.code == "malformed_longitude"
    with pytest.raises(Malformed) as caught:
        easting_northing(49.75, -2.0 + 3.9)
    assert caught.value.code == "malformed_latitude"


@pytest.mark.parametrize("written", ["ab\u01311", "stra\xdfe", "\u0149-1", "\ufb05\xb5", "RAP-7KQ2-93X\u0414"])
def test_a_reference_with_a_letter_of_another_alphabet_is_not_taken_for_another_reference(written: str) -> None:
    """Dotless i and sharp s have capitals in ASCII, and would be somebody else's reference."""
    with pytest.raises(Malformed) as caught:
        VALUE_TYPES["reference"].normalise(written)
    assert caught.value.code == "malformed_reference"


def test_the_version_of_the_normalisers_tells_those_that_merged_references_from_these() -> None:
    """Tags and keys that were made of the merged form are never compared with those made now."""
    assert NORMALISER_VERSION >= 3


@pytest.mark.parametrize("written", ["sNaN", "-sNaN7", "NaN", "Infinity", "1E+999999"])
@pytest.mark.parametrize("kind", ["uprn", "integer", "number", "easting", "latitude"])
def test_a_decimal_that_is_no_finite_number_is_refused_like_any_other_wrong_value(kind: str, written: str) -> None:
    """The signalling NaN too, which raises in most of what is done with it."""
    with pytest.raises(Malformed) as caught:
        VALUE_TYPES[kind].normalise(Decimal(written))
    assert caught.value.code == f"malformed_{kind}"


_LONDON = ZoneInfo("Europe/London")
_ANYTHING = (
    st.text(max_size=300)
    | st.text(
        alphabet="0123456789abcdefghijoOI'\u2019- \u2010\u2013\xa0\u200b.,/:TZ+\xdf\u0130\ufdfa\ufb03", max_size=60
    )
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.dates()
    | st.datetimes(timezones=st.none() | st.sampled_from([dt.UTC, _LONDON, ZoneInfo("Asia/Kolkata")]))
    | st.booleans()
    | st.none()
    | st.binary()
    | st.lists(st.text())
)


def _or_code(normalise: Callable[[object], Any], written: object) -> Any:
    try:
        return normalise(written)
    except Malformed as refused:
        return refused


@given(st.sampled_from(sorted(VALUE_TYPES)), _ANYTHING)
def test_what_a_normaliser_gives_it_takes_and_leaves_alone(kind: str, written: Any) -> None:
    """Once is as good as twice, and nothing but Malformed is ever raised, which never repeats the value."""
    normalise = VALUE_TYPES[kind].normalise
    once = _or_code(normalise, written)
    if isinstance(once, Malformed):
        assert once.code == f"malformed_{kind}"
        return
    assert canonical(normalise(once)) == canonical(once)
    if isinstance(once, str):
        assert 0 < len(once) <= LONGEST
        assert LAST not in once


@given(st.text(min_size=1, max_size=20), st.text(max_size=20))
def test_a_name_that_begins_as_typed_is_in_the_range_and_shares_the_tag(typed: str, rest: str) -> None:
    """The range from what was typed to it with the last code point is exactly what begins with it."""
    try:
        prefix, name = VALUE_TYPES["prefix"].normalise(typed), VALUE_TYPES["name"].normalise(typed + rest)
    except Malformed:
        return
    below = prefix + LAST
    assert name.startswith(prefix) == (prefix <= name < below)
    tagger = Tagger("town", {"person": (Index("name", ("name",), "name", ("name",)),)}, b"t" * 32, "1")
    if name.startswith(prefix):
        assert tagger.value_tag("person", "name", [prefix]) in tagger.row_tags("person", {"name": name})
    assert len(prefix) < NAME_BUCKET or tagger.value_tag("person", "name", [prefix]) != tagger.table_tag("person")


@pytest.mark.parametrize("last", ["\ud7ff", "\ue000", "\uffff", "\U0010fffe", "\x7f", "z"])
def test_the_range_is_right_at_the_edges_of_the_code_points(last: str) -> None:
    """Around the gap of the surrogates and below the last code point, in the order of UTF-8's bytes as in Postgres."""
    prefix, below = ("ab" + last).encode(), ("ab" + last + LAST).encode()
    following = "\ue000" if last == "\ud7ff" else chr(ord(last) + 1)
    inside = [f"ab{last}".encode(), f"ab{last}\U0010fffe\U0010fffe".encode(), f"ab{last}\x01".encode()]
    outside = [b"ab", b"ac", b"b", *([] if following == LAST else [f"ab{following}".encode()])]
    assert all(prefix <= value < below for value in inside)
    assert not any(prefix <= value < below for value in outside)
    with pytest.raises(Malformed):
        VALUE_TYPES["prefix"].normalise("ab" + LAST)
