"""Values as people write them in a query: patterns, numbers with units, times. Each reader takes text, gives values.

They raise `ValueError` whose words say what would have been right; `parse.py` adds where it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from audit.query.fields import Kind
from audit.query.text import MAX_TEXT_CHARS, fold
from audit.query.tree import Pattern, Wild

MAX_WILDCARDS: Final = 8

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_INT64: Final = range(-(2**63), 2**63)
_NUMBER: Final = re.compile(r"([0-9]{1,19})([A-Za-z]{0,3})", re.ASCII)
_AGO: Final = re.compile(r"([0-9]{1,6})([smhdw])", re.ASCII)
_AGO_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_MOMENT: Final = re.compile(
    r"(?P<year>[0-9]{4})(-(?P<month>[0-9]{2})(-(?P<day>[0-9]{2})"
    r"([T ](?P<hour>[0-9]{2}):(?P<minute>[0-9]{2})(:(?P<second>[0-9]{2})([.](?P<fraction>[0-9]{1,6}))?)?)?)?)?"
    r" ?(?P<zone>Z|[+-][0-9]{2}:[0-9]{2}|[A-Z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2})?",
    re.ASCII,
)
_UNITS: Final = {
    Kind.NUMBER: {"": 1},
    Kind.BYTES: {
        "": 1, "B": 1, "K": 10**3, "KB": 10**3, "KI": 2**10, "KIB": 2**10, "M": 10**6, "MB": 10**6, "MI": 2**20,
        "MIB": 2**20, "G": 10**9, "GB": 10**9, "GI": 2**30, "GIB": 2**30, "T": 10**12, "TB": 10**12, "TI": 2**40,
        "TIB": 2**40,
    },
    Kind.MILLISECONDS: {"": 1, "MS": 1, "S": 1000, "M": 60_000, "H": 3_600_000},
}  # fmt: skip
_EXAMPLES: Final = {
    Kind.NUMBER: "a whole number",
    Kind.BYTES: "bytes, such as 4096, 5M or 2Gi",
    Kind.MILLISECONDS: "milliseconds, such as 300, 300ms or 2s",
}


@dataclass(frozen=True, slots=True)
class Period:
    """What a time stands for: from `start` up to but without `end`, microseconds since 1970."""

    start: int
    end: int


def pattern_of(raw: str) -> Pattern:
    r"""The pieces of an unquoted word: `*` and `?` are wildcards, `\` takes the next character as it stands."""
    pieces: list[str | Wild] = []
    literal = ""
    escaped = False
    for character in raw:
        if not escaped and character == "\\":
            escaped = True
        elif not escaped and character in "*?":
            if literal:
                pieces.append(fold(literal))
            pieces.append(Wild(character))
            literal = ""
        else:
            literal += character
            escaped = False
    if literal:
        pieces.append(fold(literal))
    if sum(isinstance(piece, Wild) for piece in pieces) > MAX_WILDCARDS:
        raise ValueError(f"use at most {MAX_WILDCARDS} wildcards in a word")
    return tuple(pieces)


def text_of(raw: str) -> str:
    r"""The characters of a quoted text without its quotes: `\` takes the next one as it stands."""
    return re.sub(r"\\(.)", r"\1", raw, flags=re.DOTALL)


def folded_text(raw: str) -> str:
    """A text to compare. Raises ValueError if it is longer than what is compared."""
    if len(raw) > MAX_TEXT_CHARS:
        raise ValueError(f"at most {MAX_TEXT_CHARS} characters are compared")
    return fold(raw)


def number_of(text: str, kind: Kind) -> int:
    """A number with a unit of its kind."""
    found = _NUMBER.fullmatch(text)
    factor = _UNITS[kind].get(found[2].upper()) if found else None
    if found is None or factor is None or int(found[1]) * factor not in _INT64:
        raise ValueError(f"write {_EXAMPLES[kind]}")
    return int(found[1]) * factor


def period_of(text: str, now: datetime, zone: tzinfo) -> Period:
    """A year, month, day, minute, second or microsecond; `today`, `yesterday`. `zone` where it names none."""
    if text in {"today", "yesterday"}:
        days = timedelta(days=1 if text == "yesterday" else 0)
        text = (now.astimezone(zone) - days).date().isoformat()
    found = _MOMENT.fullmatch(text)
    try:
        if found is None:
            raise ValueError
        return _period(found, _zone(found["zone"]) or zone)
    except (ValueError, OverflowError, OSError):
        raise ValueError("write 2026-11, 2026-11-22, 2026-11-22T21:42Z or, in quotes, a zone's name") from None


def moment_of(text: str, now: datetime, zone: tzinfo) -> Period:
    """As `period_of`; also `now`, and how long ago: 90m, 30d."""
    if text == "now":
        return _instant(now)
    ago = _AGO.fullmatch(text)
    if ago is None:
        return period_of(text, now, zone)
    try:
        return _instant(now - timedelta(**{_AGO_UNITS[ago[2]]: int(ago[1])}))
    except OverflowError:
        raise ValueError("that is before the first year") from None


def zone_named(name: str) -> tzinfo:
    """The time zone of that IANA name. Raises ValueError."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, OSError, ValueError) as error:  # ValueError: a path
        raise ValueError(f"there is no time zone {name[:64]!r} here: write one such as Europe/Berlin") from error


def _instant(moment: datetime) -> Period:
    micros = _micros(moment)
    return Period(micros, micros + 1)


def _period(found: re.Match[str], zone: tzinfo) -> Period:
    parts = [int(found[name]) if found[name] else None for name in ("year", "month", "day", "hour", "minute", "second")]
    year, month, day, hour, minute, second = parts
    assert year is not None
    fraction = found["fraction"]
    start = datetime(
        year, month or 1, day or 1, hour or 0, minute or 0, second or 0, int((fraction or "0").ljust(6, "0")), zone
    )
    if month is None:
        end = start.replace(year=year + 1)
    elif day is None:
        end = start.replace(year=year + month // 12, month=month % 12 + 1)
    elif hour is None:
        end = (start.replace(tzinfo=None) + timedelta(days=1)).replace(tzinfo=zone)
    else:
        step = timedelta(minutes=1) if second is None else timedelta(microseconds=10 ** (6 - len(fraction or "")))
        return Period(_micros(start), _micros(start) + step // timedelta(microseconds=1))
    return Period(_micros(start), _micros(end))


def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    if name == "Z":
        return UTC
    if name[0] in "+-":
        return datetime.fromisoformat(f"2000-01-01T00:00:00{name}").tzinfo
    return zone_named(name)


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
