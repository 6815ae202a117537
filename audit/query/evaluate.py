"""The reference: whether one record fits a query, in plain Python. The other back ends are tested against it."""

from __future__ import annotations

from typing import assert_never

from audit.query.facets import Facets, Value
from audit.query.tree import All, And, Between, Has, Is, Like, Node, Not, Or, Pattern, Phrase, Wild


def matches(node: Node, record: Facets) -> bool:
    """Whether the record with these values is one of those that `node` asks for."""
    match node:
        case All():
            return True
        case And(parts):
            return all(matches(part, record) for part in parts)
        case Or(parts):
            return any(matches(part, record) for part in parts)
        case Not(part):
            return not matches(part, record)
        case Has(atom):
            return bool(record.get(atom))
        case Is(atom, value):
            return value in record.get(atom, ())
        case Like(atom, pattern):
            return any(_fits(pattern, str(value)) for value in record.get(atom, ()))
        case Between(atom):
            return any(_is_between(node, value) for value in record.get(atom, ()))
        case Phrase(atom):
            return any(_holds(node, str(value)) for value in record.get(atom, ()))
        case _:
            assert_never(node)


def _is_between(node: Between, value: Value) -> bool:
    # Text compares by code point in Python, in SQLite (UTF-8, byte by byte) and in Lucene alike.
    if node.low is not None and not (_less(node.low, value) or (node.include_low and node.low == value)):
        return False
    return node.high is None or _less(value, node.high) or (node.include_high and node.high == value)


def _less(one: Value, other: Value) -> bool:
    if isinstance(one, str):
        return isinstance(other, str) and one < other
    return isinstance(other, int) and one < other


def _holds(node: Phrase, text: str) -> bool:
    wanted = f" {' '.join(node.words)}"
    return wanted in f" {text}" if node.is_prefix else f"{wanted} " in f" {text} "


def _fits(pattern: Pattern, text: str) -> bool:
    """Without backtracking beyond the last `*`: linear for each, whatever the pattern (no regular expression)."""
    symbols: list[str | Wild] = []
    for piece in pattern:
        symbols.extend([piece] if isinstance(piece, Wild) else piece)
    at, position, star, resume = 0, 0, -1, 0
    while position < len(text):
        symbol = symbols[at] if at < len(symbols) else None
        if symbol is Wild.ANY:
            star, resume, at = at, position, at + 1
        elif symbol is Wild.ONE or (symbol is not None and symbol == text[position]):
            at, position = at + 1, position + 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(symbol is Wild.ANY for symbol in symbols[at:])
