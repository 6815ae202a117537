"""The first thing in a decoded file that its type does not take, in words for whoever wrote the file.

msgspec decides whether a file is taken; this says why one was not. It follows the same types, and what it does not
find (None) is said in msgspec's own words.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from msgspec import inspect

from policy.settings.allowed import allowed, alternatives, keys_of, shown, unit_of

_MAX_DEPTH: Final = 32
# What stands at such a key is not repeated: the file of people, where a password was written for its hash.
_SECRETS: Final = ("password", "passphrase", "secret", "pin")

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Misfit:
    """`path`: keys and places in lists, from the root. `unknown`: the name, if it is no key."""

    path: KeyPath
    problem: str
    unknown: str | None = None

    @property
    def key(self) -> str:
        """Such as `limits.drain_seconds` or `sites[1].bundle`."""
        return spelled(self.path)


def first_misfit(tree: Mapping[str, Any], shape: type) -> Misfit | None:
    """`tree`: what a decoder made of the file. `shape`: the msgspec struct that it should have been."""
    root = inspect.type_info(shape)
    if not isinstance(root, inspect.StructType):
        return None
    found = _in_table(tree, root, ())
    if found is not None and (home := _homes(root).get(found.unknown or "")):
        return Misfit(found.path, f"is no key of this table; it belongs in [{home}]")
    return found


def spelled(path: KeyPath) -> str:
    """For a line of a log: names that are not bare keys are escaped."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            bare = part if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", part) else ascii(part[:64])
            text += f".{bare}" if text else bare
    return text


def _homes(root: inspect.StructType) -> Mapping[str, str]:
    """Key to the table in which it belongs, for keys of one table only: people put them in the wrong one."""
    homes: defaultdict[str, set[str]] = defaultdict(set)
    for section, field in keys_of(root).items():
        for table in alternatives(field.type):
            for key in keys_of(table) if isinstance(table, inspect.StructType) else ():
                homes[key].add(section)
    return {key: sections.pop() for key, sections in homes.items() if len(sections) == 1}


def _in_table(value: Mapping[str, Any], table: inspect.StructType, path: KeyPath) -> Misfit | None:
    known = keys_of(table)
    for key in value:
        if key not in known and key != table.tag_field:
            return Misfit((*path, key), _unknown(key, known, path), key)
    for key, field in known.items():
        if key not in value:
            if field.required:
                return Misfit((*path, key), f"is missing; it must be {allowed(field.type, unit_of(key))}")
        elif found := _in_value(value[key], field.type, (*path, key), unit_of(key)):
            return found
    return None


def _unknown(key: str, known: Iterable[str], path: KeyPath) -> str:
    near = difflib.get_close_matches(key, list(known), n=1)
    if near:
        return f'is no key; did you mean "{near[0]}"?'
    return f"is no key; the keys {f'of [{spelled(path)}]' if path else 'and tables of the file'} are {', '.join(known)}"


def _in_value(value: Any, kind: inspect.Type, path: KeyPath, unit: str) -> Misfit | None:
    """Whether `value` fits `kind`."""
    if len(path) > _MAX_DEPTH:
        return None
    choices = alternatives(kind)
    if value is None and _takes_null(kind):
        return None
    if isinstance(value, dict) and (tables := [each for each in choices if isinstance(each, inspect.StructType)]):
        return _in_one_of(value, tables, path)
    found = [_in_one(value, each, path, unit) for each in choices]
    return None if not found or None in found else found[0] if len(found) == 1 else _wrong(value, kind, path, unit)


def _in_one_of(value: Mapping[str, Any], tables: Sequence[inspect.StructType], path: KeyPath) -> Misfit | None:
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
    return Misfit((*path, field), f"{stands} one of {kinds}")


def _in_one(value: Any, kind: inspect.Type, path: KeyPath, unit: str) -> Misfit | None:
    match kind:
        case inspect.Metadata(type=inner):
            return _in_one(value, inner, path, unit) and _wrong(value, kind, path, unit)
        case inspect.StructType():
            return _in_table(value, kind, path) if isinstance(value, dict) else _wrong(value, kind, path, unit)
        case inspect.VarTupleType() | inspect.ListType() if isinstance(value, list) and _has_length(value, kind):
            for at, one in enumerate(value):
                if found := _in_value(one, kind.item_type, (*path, at), unit):
                    return _of_named(one, found)
            return None
        case inspect.DictType(key_type=named, value_type=inner) if isinstance(value, dict) and _has_length(value, kind):
            for name, one in value.items():
                where = (*path, name)
                if _in_value(name, named, where, "") is not None:
                    return Misfit(where, f"is no name that may stand here; allowed is {allowed(named)}")
                if found := _in_value(one, inner, where, unit):
                    return found
            return None
    return None if _is_taken(value, kind) else _wrong(value, kind, path, unit)


def _takes_null(kind: inspect.Type) -> bool:
    """JSON has null; TOML and our YAML have none."""
    return isinstance(kind, inspect.UnionType) and any(isinstance(each, inspect.NoneType) for each in kind.types)


def _of_named(entry: Any, found: Misfit) -> Misfit:
    """Nobody counts to the 4,711th entry of a file: its name is said, too."""
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or found.path[-1] == "name":
        return found
    return Misfit(found.path, f"{found.problem} (in the entry named {shown(name)})", found.unknown)


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


def _wrong(value: Any, kind: inspect.Type, path: KeyPath, unit: str) -> Misfit:
    stands = f"is {shown(value)}"
    if str(path[-1]).endswith(_SECRETS):
        stands = "what stands there is not shown"
    elif type(value) in {str, int, float} and all(map(_is_table, alternatives(kind))):
        stands = f"is a {'text' if isinstance(value, str) else 'number'}"  # a person's password, say, by their name
    return Misfit(path, f"{stands}; allowed is {allowed(kind, unit)}")


def _is_table(kind: inspect.Type) -> bool:
    return isinstance(kind, (inspect.StructType, inspect.DictType))
