"""The first thing in a decoded TOML file that its type does not take, in words for whoever wrote the file.

msgspec decides whether a file is taken; this says why one was not. It follows the same types, and what it does not
find (None) is said in msgspec's own words.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from msgspec import inspect

from transport.settings.allowed import allowed, alternatives, keys_of, shown, unit_of

_MAX_DEPTH: Final = 32


@dataclass(frozen=True, slots=True)
class Misfit:
    """`key`: its path, such as `limits.drain_seconds` or `sites[1].bundle`. `unknown`: the name, if it is no key."""

    key: str
    problem: str
    unknown: str | None = None


def first_misfit(tree: Mapping[str, Any], shape: type) -> Misfit | None:
    """`tree`: what `tomllib` made of the file. `shape`: the msgspec struct that it should have been."""
    root = inspect.type_info(shape)
    if not isinstance(root, inspect.StructType):
        return None
    found = _in_table(tree, root, "")
    if found is not None and (home := _homes(root).get(found.unknown or "")):
        return Misfit(found.key, f"is no key of this table; it belongs in [{home}]")
    return found


def _homes(root: inspect.StructType) -> Mapping[str, str]:
    """Key to the table in which it belongs, for keys of one table only: people put them in the wrong one."""
    homes: dict[str, str] = {}
    twice: set[str] = set()
    for section, field in keys_of(root).items():
        for table in alternatives(field.type):
            for key in keys_of(table) if isinstance(table, inspect.StructType) else ():
                if key in homes:
                    twice.add(key)
                homes[key] = section
    return {key: section for key, section in homes.items() if key not in twice}


def _in_table(value: Mapping[str, Any], table: inspect.StructType, path: str) -> Misfit | None:
    known = keys_of(table)
    for key in value:
        if key not in known and key != table.tag_field:
            return Misfit(_join(path, key), _unknown(key, known, path), key)
    for key, field in known.items():
        if key not in value:
            if field.required:
                return Misfit(_join(path, key), f"is missing; it must be {allowed(field.type, unit_of(key))}")
        elif found := _in_value(value[key], field.type, _join(path, key), unit_of(key)):
            return found
    return None


def _unknown(key: str, known: Iterable[str], path: str) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return f'is no key; did you mean "{near[0]}"?'
    return f"is no key; the keys {f'of [{path}]' if path else 'and tables of the file'} are {', '.join(known)}"


def _in_value(value: Any, kind: inspect.Type, path: str, unit: str) -> Misfit | None:
    """Whether `value` fits `kind`."""
    if path.count(".") + path.count("[") > _MAX_DEPTH:
        return None
    choices = alternatives(kind)
    if isinstance(value, dict) and (tables := [each for each in choices if isinstance(each, inspect.StructType)]):
        return _in_one_of(value, tables, path)
    found = [_in_one(value, each, path, unit) for each in choices]
    return None if not found or None in found else found[0] if len(found) == 1 else _wrong(value, kind, path, unit)


def _in_one_of(value: Mapping[str, Any], tables: Sequence[inspect.StructType], path: str) -> Misfit | None:
    """`value` as the one of `tables` that it says that it is."""
    if (field := tables[0].tag_field) is None:
        return _in_table(value, tables[0], path)
    by_tag = {table.tag: table for table in tables}
    tag = value.get(field)
    if tag is None and len(tables) == 1:
        return _in_table(value, tables[0], path)
    if isinstance(tag, str) and tag in by_tag:
        return _in_table(value, by_tag[tag], path)
    kinds = ", ".join(f'"{each}"' for each in by_tag)
    stands = "is missing; it must be" if tag is None else f"is {shown(tag)}; allowed is"
    return Misfit(_join(path, field), f"{stands} one of {kinds}")


def _in_one(value: Any, kind: inspect.Type, path: str, unit: str) -> Misfit | None:
    match kind:
        case inspect.Metadata(type=inner):
            return _in_one(value, inner, path, unit) and _wrong(value, kind, path, unit)
        case inspect.StructType():
            return _in_table(value, kind, path) if isinstance(value, dict) else _wrong(value, kind, path, unit)
        case inspect.VarTupleType() | inspect.ListType() if isinstance(value, list) and _has_length(value, kind):
            within = (_in_value(one, kind.item_type, f"{path}[{at}]", unit) for at, one in enumerate(value))
            return next((each for each in within if each), None)
        case inspect.DictType(key_type=named, value_type=inner) if isinstance(value, dict) and _has_length(value, kind):
            for name, one in value.items():
                where = _join(path, name)
                if _in_value(name, named, where, "") is not None:
                    return Misfit(where, f"is no name that may stand here; allowed is {allowed(named)}")
                if found := _in_value(one, inner, where, unit):
                    return found
            return None
    return None if _is_taken(value, kind) else _wrong(value, kind, path, unit)


def _is_taken(value: Any, kind: inspect.Type) -> bool:
    """Of a single value."""
    match kind:
        case inspect.BoolType():
            return isinstance(value, bool)
        case inspect.IntType():
            return type(value) is int and _is_within(value, kind)
        case inspect.FloatType():
            return type(value) in (int, float) and _is_within(value, kind)
        case inspect.StrType():
            return (
                isinstance(value, str) and _has_length(value, kind) and re.search(kind.pattern or "", value) is not None
            )
        case inspect.LiteralType(values=values):
            return value in values
        case inspect.EnumType(cls=cls):
            return value in [member.value for member in cls]
        case inspect.DateTimeType():
            return isinstance(value, datetime) and value.tzinfo is not None
        case inspect.VarTupleType() | inspect.ListType() | inspect.DictType():
            return False
    return True


def _is_within(value: float, kind: inspect.IntType | inspect.FloatType) -> bool:
    return not (
        (kind.ge is not None and not value >= kind.ge)
        or (kind.gt is not None and not value > kind.gt)
        or (kind.le is not None and not value <= kind.le)
        or (kind.lt is not None and not value < kind.lt)
    )


def _has_length(value: Any, kind: inspect.StrType | inspect.VarTupleType | inspect.ListType | inspect.DictType) -> bool:
    return (kind.min_length or 0) <= len(value) and (kind.max_length is None or len(value) <= kind.max_length)


def _wrong(value: Any, kind: inspect.Type, path: str, unit: str) -> Misfit:
    return Misfit(path, f"is {shown(value)}; allowed is {allowed(kind, unit)}")


def _join(path: str, key: str) -> str:
    bare = key if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", key) else ascii(key[:64])
    return f"{path}.{bare}" if path else bare
