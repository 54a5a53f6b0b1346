"""One function a type: what people and systems write, in every usual spelling, into the one form that is compared.

Each takes any value and either gives its normal form, which it then leaves as it is, or raises Malformed. None guesses:
a letter O where a digit must stand is a mistake to be mended by whoever made it, as the guess may be somebody else's.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from zoneinfo import ZoneInfo

LONGEST = 256
# The last code point is no character (Unicode §23.7). Refusing it lets it stand behind all that begins alike, which is
# how a search by a beginning ends.
LAST = "\U0010ffff"
_UNUSABLE = re.compile(f"[\x00\ud800-\udfff{LAST}]")
# What comes along unseen when a value is pasted: soft hyphen, zero-width spaces and joiners, marks of direction.
_UNSEEN = re.compile("[\xad\u200b-\u200f\u2060\ufeff]")
_LONDON = ZoneInfo("Europe/London")


class Malformed(ValueError):
    """A value that is not what its type says. The message names the rule that it broke and never repeats the value."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def london_today(now: dt.datetime | None = None) -> dt.date:
    """The day that it is in the United Kingdom now, whatever the clock of this machine is set to."""
    return (now or dt.datetime.now(dt.UTC)).astimezone(_LONDON).date()


def text(value: object) -> str:
    """NFC, without white space around it."""
    return _not_empty(unicodedata.normalize("NFC", _characters(value, "malformed_text")).strip(), "malformed_text")


# Before NFKC, which takes an acute accent that stands for an apostrophe apart into a space and a combining accent.
_ALIKE = str.maketrans(
    dict.fromkeys("\u2018\u2019\u201b\u02b9\u02bb\u02bc\u02c8\u2032\xb4`\uff07", "'")
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-")
)


def name(value: object) -> str:
    """A name or a street as it is compared: NFKC, case-folded, one kind of apostrophe and of hyphen, single spaces.

    Accents stay: Muller is another name than Müller.
    """
    return _name(value, "malformed_name")


def prefix(value: object) -> str:
    """The beginning of a name: the same form."""
    return _name(value, "malformed_prefix")


def _name(value: object, code: str) -> str:
    plain = _UNSEEN.sub("", _characters(value, code)).translate(_ALIKE)
    # NFKC after casefold once more: casefold alone may leave a form that NFKC would change.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold()).translate(_ALIKE)
    return _not_empty(re.sub(r" ?- ?", "-", " ".join(folded.split())), code)


_POSTCODE = re.compile(
    # BS 7666: two letters at most, the second neither I, J nor Z; then digits, or a digit and a letter. I and O are no
    # such letter, so 1 and 0 that were read as letters are seen here.
    r"([A-Z][A-HK-Y]?[0-9][0-9A-HJ-NP-Z]?)([0-9][ABD-HJLNP-UW-Z]{2})"
    r"|(GIR)(0AA)|(ASCN|BBND|BIQQ|FIQQ|PCRN|SIQQ|STHL|TDCU|TKCA)(1ZZ)"
)


def postcode(value: object) -> str:
    """A full postcode, as `BN15 9JB`; those of the forces (BF1) and of the overseas territories too."""
    found = _POSTCODE.fullmatch(_compact(value, "malformed_postcode"))
    if found is None:
        raise Malformed("malformed_postcode", "is not a full UK postcode such as BN15 9JB")
    return " ".join(part for part in found.groups() if part is not None)


def nino(value: object) -> str:
    """A National Insurance number without spaces. Prefixes that are never issued pass: test records bear them."""
    found = _compact(value, "malformed_nino")
    if not re.fullmatch(r"[A-Z]{2}[0-9]{6}[A-D]", found):
        raise Malformed("malformed_nino", "is not a National Insurance number such as QQ123456C")
    return found


_NUMBER = "(?:0|[1-9][0-9]{0,3})"
# The format of DVLA's INF104 and those before it, which cars still bear. Which letters an office uses changes, and a
# mark that was never issued is simply not found, so only the forms are checked.
_VEHICLE_MARK = re.compile(
    r"[A-Z]{2}[0-9]{2}[A-Z]{3}"  # since 2001: AB12 CDE
    r"|[A-Z][1-9][0-9]{0,2}[A-Z]{3}"  # 1983 to 2001: A123 BCD; Q where the age is not known: Q123 ABC
    r"|[A-Z]{3}[1-9][0-9]{0,2}[A-Z]"  # 1963 to 1982: ABC 123D
    rf"|[A-Z]{{1,3}}{_NUMBER}|{_NUMBER}[A-Z]{{1,3}}"  # without a year: AB 1234, 1234 AB; Northern Ireland: AAZ 1234
)


def vehicle_mark(value: object) -> str:
    """A registration mark of the United Kingdom, in capitals without spaces. Not trade plates, forces, embassies."""
    found = _compact(value, "malformed_vehicle_mark")
    if not _VEHICLE_MARK.fullmatch(found):
        raise Malformed("malformed_vehicle_mark", "is not a vehicle registration mark such as AB12 CDE")
    return found


def reference(value: object) -> str:
    """A reference of some register, in capitals."""
    code = "malformed_reference"
    found = _UNSEEN.sub("", unicodedata.normalize("NFKC", _characters(value, code))).strip()
    # Only then in capitals: some letters of other alphabets have capitals in this one.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9/._-]{0,63}", found):
        raise Malformed(code, "is not a reference of up to 64 letters, digits, hyphens and slashes")
    return found.upper()


def identifier(code: str, title: str, digits: int) -> Callable[[object], int]:
    """The normaliser of a number that names something: leading zeros are no part of it."""
    message = f"is not a {title} of up to {digits} digits"

    def normalise(value: object) -> int:
        found = _whole(value, code, message)
        if not 0 < found < 10**digits:
            raise Malformed(code, message)
        return found

    return normalise


def integer(value: object) -> int:
    """A whole number of 64 bits."""
    found = _whole(value, "malformed_integer", "is not a whole number")
    if not -(2**63) <= found < 2**63:
        raise Malformed("malformed_integer", "is out of range")
    return found


def number(value: object) -> float:
    """A finite number."""
    return _float(value, "malformed_number")


def within(code: str, least: float, most: float, what: str) -> Callable[[object], float]:
    """The normaliser of a number between two limits; `what` completes `is not …`."""

    def normalise(value: object) -> float:
        found = _float(value, code)
        if not least <= found <= most:
            raise Malformed(code, f"is not {what} from {least:,.10g} to {most:,.10g}")
        return found

    return normalise


_DAY_FIRST = re.compile(r"([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})")
_YEAR_FIRST = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]{1,9})?)?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)


def date(value: object) -> dt.date:
    """A day. Of an instant, a time with `Z` or an offset, it is the day in London; of a time without, the day it says.

    A time without an offset is what a clock on a wall shows, and forms and files here are filled in by London's.
    """
    code = "malformed_date"
    try:
        if isinstance(value, dt.datetime):
            return _day_of(value)
        if isinstance(value, dt.date):
            return value
        plain = unicodedata.normalize("NFKC", _characters(value, code)).strip()
        if found := _YEAR_FIRST.fullmatch(plain):
            return dt.date(int(found[1]), int(found[2]), int(found[3]))
        if found := _DAY_FIRST.fullmatch(plain):
            return dt.date(int(found[3]), int(found[2]), int(found[1]))
        if _INSTANT.fullmatch(plain.upper()):
            return _day_of(dt.datetime.fromisoformat(plain.upper()))
    except Malformed:
        raise
    except (ValueError, OverflowError):
        # overflow: an instant at an end of the calendar whose day in London lies beyond it
        raise Malformed(code, "is not a day of the calendar") from None
    raise Malformed(code, "is not a date such as 2026-11-22 or 22/11/2026")


def _day_of(moment: dt.datetime) -> dt.date:
    return moment.date() if moment.tzinfo is None else moment.astimezone(_LONDON).date()


_TRUTH = {"true": True, "yes": True, "y": True, "t": True, "1": True, "on": True}
_TRUTH |= {"false": False, "no": False, "n": False, "f": False, "0": False, "off": False}


def boolean(value: object) -> bool:
    """Yes or no."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int) and value in (0, 1):
        return bool(value)
    found = _TRUTH.get(_characters(value, "malformed_boolean").strip().casefold())
    if found is None:
        raise Malformed("malformed_boolean", "is not yes or no")
    return found


def _characters(value: object, code: str) -> str:
    if not isinstance(value, str):
        raise Malformed(code, "must be text")
    if len(value) > LONGEST:
        raise Malformed(code, f"is longer than {LONGEST} characters")
    if _UNUSABLE.search(value):
        raise Malformed(code, "has a character that cannot be stored")
    return value


def _not_empty(found: str, code: str) -> str:
    if not found:
        raise Malformed(code, "is empty")
    # Some characters become many in a normal form, which must be a value of the type as well.
    if len(found) > LONGEST:
        raise Malformed(code, f"is longer than {LONGEST} characters")
    return found


def _compact(value: object, code: str) -> str:
    """Capitals and digits of ASCII, without the spaces, dots and hyphens people put between groups."""
    plain = unicodedata.normalize("NFKC", _UNSEEN.sub("", _characters(value, code)))
    found = re.sub(r"[\s.\-\u2010-\u2015\u2212]+", "", plain)
    # Only then in capitals: some letters of other alphabets have capitals in this one.
    return found.upper() if found.isascii() else ""


def _whole(value: object, code: str, message: str) -> int:
    if isinstance(value, str):
        plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", _characters(value, code))).strip()
        if re.fullmatch(r"[+-]?[0-9]{1,19}", plain):
            return int(plain)
    elif isinstance(value, int) and not isinstance(value, bool):
        return value
    elif isinstance(value, float | Decimal) and _is_finite(value) and value == int(value):
        return int(value)
    raise Malformed(code, message)


def _is_finite(value: float | Decimal) -> bool:
    # math raises ValueError for a Decimal that is a signalling NaN
    return not (isinstance(value, Decimal) and value.is_snan()) and math.isfinite(value)


def _float(value: object, code: str) -> float:
    try:
        if isinstance(value, str):
            plain = _UNSEEN.sub("", unicodedata.normalize("NFKC", _characters(value, code))).strip()
            # float() alone also takes 1_000, inf and nan.
            found = float(plain) if re.fullmatch(r"[+-]?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?", plain) else math.nan
        elif isinstance(value, int | float | Decimal) and not isinstance(value, bool) and _is_finite(value):
            found = float(value)
        else:
            found = math.nan
    except OverflowError:
        found = math.nan
    if not math.isfinite(found):
        raise Malformed(code, "is not a number")
    return found + 0.0  # -0.0 and 0.0 are one value
