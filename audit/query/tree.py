"""The neutral tree of a query: what every back end translates. Values are folded already (`text.py`).

Logic has two values: a leaf is true where the record *has* a value that fits, false otherwise; a field without a value
fits nothing, so `Not` of a leaf is true there. A field of several values fits if any of them does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias, assert_never

from audit.query.fields import Atom


class Wild(Enum):
    """A wildcard of a pattern."""

    ANY = "*"  # any characters, also none
    ONE = "?"  # exactly one


Pattern: TypeAlias = tuple[str | Wild, ...]  # literal pieces are not empty and not next to each other


@dataclass(frozen=True, slots=True)
class All:
    """Every record."""


@dataclass(frozen=True, slots=True)
class And:
    """All of at least one."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Any of at least one."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite."""

    part: Node


@dataclass(frozen=True, slots=True)
class Has:
    """The field has a value."""

    atom: Atom


@dataclass(frozen=True, slots=True)
class Is:
    """Equal: text folded, numbers and times (microseconds since 1970, UTC) as they are."""

    atom: Atom
    value: str | int


@dataclass(frozen=True, slots=True)
class Like:
    """Text (Kind.TEXT) that fits the pattern as a whole."""

    atom: Atom
    pattern: Pattern


@dataclass(frozen=True, slots=True)
class Between:
    """Within bounds; None is open. Text compares by code point. At least one bound is given."""

    atom: Atom
    low: str | int | None
    high: str | int | None
    include_low: bool = True
    include_high: bool = True


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words (Kind.WORDS) one after the other; with `is_prefix` it is one word, which may go on."""

    atom: Atom
    words: tuple[str, ...]
    is_prefix: bool = False


Node: TypeAlias = All | And | Or | Not | Has | Is | Like | Between | Phrase


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query. `where` is complete: permit entries are left out in it, unless the text asks for them."""

    text: str
    where: Node


def leaves(node: Node) -> Iterator[Has | Is | Like | Between | Phrase]:
    """Every leaf but All, from left to right."""
    match node:
        case All():
            return
        case And(parts) | Or(parts):
            for part in parts:
                yield from leaves(part)
        case Not(part):
            yield from leaves(part)
        case Has() | Is() | Like() | Between() | Phrase():
            yield node
        case _:
            assert_never(node)


def all_of(*parts: Node) -> Node:
    """`And` without needless levels."""
    kept = [part for part in parts if not isinstance(part, All)]
    flat = tuple(inner for part in kept for inner in (part.parts if isinstance(part, And) else (part,)))
    if not flat:
        return All()
    return flat[0] if len(flat) == 1 else And(flat)


def any_of(*parts: Node) -> Node:
    """`Or` without needless levels."""
    flat = tuple(inner for part in parts for inner in (part.parts if isinstance(part, Or) else (part,)))
    return flat[0] if len(flat) == 1 else Or(flat)
