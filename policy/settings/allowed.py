"""What may stand at a key of a configuration file, in words, by the type that decodes it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, time
from typing import Final

from msgspec import inspect

# By the end of a key's name, the longest first: our keys say their unit.
_UNITS: Final = {
    "_bytes_per_second": "bytes per second",
    "_per_second": "per second",
    "_seconds": "seconds",
    "_ms": "milliseconds",
    "_minutes": "minutes",
    "_hours": "hours",
    "_days": "days",
    "_bytes": "bytes",
    "_threads": "threads",
    "months": "months",
}
_DAY: Final = 86_400
_MIB: Final = 1 << 20


def unit_of(key: str) -> str:
    """By the key's name; "" for a count, or for what is no number."""
    return next((unit for end, unit in _UNITS.items() if key.endswith(end)), "")


def alternatives(kind: inspect.Type) -> list[inspect.Type]:
    """What a TOML file can hold there: unions opened, what only says "left out" dropped."""
    if isinstance(kind, inspect.UnionType):
        return [each for member in kind.types for each in alternatives(member)]
    # A type of our own (a path) is set by the program and is no key of the file; so is UNSET.
    return [] if isinstance(kind, (inspect.NoneType, inspect.CustomType)) else [kind]


def keys_of(table: inspect.StructType) -> dict[str, inspect.Field]:
    """The keys that a table may have."""
    return {field.encode_name: field for field in table.fields if alternatives(field.type)}


def allowed(kind: inspect.Type, unit: str = "") -> str:
    """Such as "a whole number of seconds, from 1 to 86400 (1 day)"."""
    of_unit = f" of {unit}" if unit and not unit.startswith("per ") else f" {unit}" if unit else ""
    match kind:
        case inspect.Metadata(type=inner, extra_json_schema=schema):
            return str((schema or {}).get("description") or allowed(inner, unit))
        case inspect.UnionType():
            return " or ".join(dict.fromkeys(allowed(each, unit) for each in alternatives(kind)))
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType():
            what = "a whole number" if isinstance(kind, inspect.IntType) else "a number"
            return f"{what}{of_unit}{_range(kind, unit)}"
        case inspect.StrType():
            return _text(kind)
        case inspect.LiteralType(values=values):
            return _one_of([str(value) for value in values])
        case inspect.EnumType(cls=cls):
            return _one_of([str(member.value) for member in cls])
        case inspect.DateTimeType():
            return "a moment with its time zone, such as 2026-12-24T18:00:00Z"
        case inspect.VarTupleType() | inspect.ListType():
            return f"a list{_counted(kind)}{allowed(kind.item_type, unit)}"
        case inspect.DictType(value_type=value):
            return f"a table; at each of its keys {allowed(value, unit)}"
        case inspect.StructType():
            return "a table"
    return "what docs/configuration.md says"


def shown(value: object) -> str:
    """What stands in the file, for a line of a log: escaped, short, and without a password that a URL holds."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            scheme, separator, rest = value.partition("://")
            text = f"{scheme}{separator}…{rest[rest.rindex('@') :]}" if separator and "@" in rest else value
            text = f'"{text if len(text) <= 60 else text[:57] + "…"}"'
            return text if text.isprintable() else ascii(text[1:-1])
        case int() | float():
            text = str(value)
            return text if len(text) <= 40 else f"{text[:20]}… ({len(text)} digits)"
        case list():
            return "an empty list" if not value else f"a list of {len(value)}"
        case dict():
            return "a table"
        case date() | time():  # TOML has both, and a datetime is a date
            return value.isoformat()
    return f"a {type(value).__name__}"


def _range(kind: inspect.IntType | inspect.FloatType, unit: str) -> str:
    low = kind.ge if kind.ge is not None else kind.gt
    high = kind.le if kind.le is not None else kind.lt
    if low is not None and high is not None and kind.ge is not None and kind.le is not None:
        return f", from {_spelt(low, unit)} to {_spelt(high, unit)}"
    parts = []
    if low is not None:
        parts.append(f"{_spelt(low, unit)} or more" if kind.ge is not None else f"above {_spelt(low, unit)}")
    if high is not None:
        parts.append(f"{'at most' if kind.le is not None else 'below'} {_spelt(high, unit)}")
    return "".join(f", {part}" for part in parts)


def _spelt(number: float, unit: str) -> str:
    text = f"{number:.15g}" if isinstance(number, float) else str(number)
    if unit == "seconds" and number >= _DAY and number % _DAY == 0:
        days = int(number // _DAY)
        return f"{text} ({days} day{'s' if days > 1 else ''})"
    if unit.startswith("bytes") and number >= _MIB and number % _MIB == 0:
        return f"{text} ({int(number // _MIB)} MiB)"
    return text


def _text(kind: inspect.StrType) -> str:
    if kind.pattern is not None:
        return f"a text that matches {kind.pattern}"
    low, high = kind.min_length or 0, kind.max_length
    if high is None:
        return "a text" if not low else f"a text of {low} character{'s' if low > 1 else ''} or more"
    return f"a text of {low} to {high} characters" if low else f"a text of at most {high} characters"


def _counted(kind: inspect.VarTupleType | inspect.ListType) -> str:
    low, high = kind.min_length or 0, kind.max_length
    if high is None:
        return f" of {low} or more, each " if low else "; each of it "
    return f" of {low} to {high}, each " if low else f" of at most {high}, each "


def _one_of(words: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in words]
    return " or ".join([*([", ".join(quoted[:-1])] if len(quoted) > 1 else []), quoted[-1]])
