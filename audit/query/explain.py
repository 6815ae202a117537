"""A query's tree in words that leave nothing open: what `sealane audit query --explain` shows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import assert_never

from audit.query.fields import Atom, Kind
from audit.query.tree import All, And, Between, Has, Is, Like, Node, Not, Or, Phrase, Wild

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def explain(node: Node, indent: str = "") -> list[str]:
    """One line for each part, indented by what it belongs to."""
    match node:
        case Or(parts) if (same := _same_question(parts)) is not None:
            return [indent + same]
        case And(parts) | Or(parts):
            head = "all of:" if isinstance(node, And) else "any of:"
            return [indent + head, *(line for part in parts for line in explain(part, indent + "  "))]
        case Not(part):
            inner = explain(part, indent)
            return [f"{indent}not {inner[0].removeprefix(indent)}", *inner[1:]]
        case All():
            return [indent + "every record"]
        case Has(atom):
            return [f"{indent}{atom.name} has a value"]
        case Is(atom, value):
            return [f"{indent}{atom.name} = {_shown(atom, value)}"]
        case Like(atom, pattern):
            text = "".join(piece.value if isinstance(piece, Wild) else _escaped(piece) for piece in pattern)
            return [f'{indent}{atom.name} like "{text}"']
        case Between():
            return [indent + _between(node)]
        case Phrase(atom, all_words, is_prefix):
            return [f'{indent}{atom.name} has the words "{" ".join(all_words)}{"*" if is_prefix else ""}"']
        case _:
            assert_never(node)


def _same_question(parts: Sequence[Node]) -> str | None:
    """One line for one question that is asked of several fields of text, as a name with several atoms does."""
    if not all(isinstance(part, Is | Like | Has) and part.atom.kind is Kind.TEXT for part in parts):
        return None
    lines = [explain(part)[0].partition(" ") for part in parts]
    if len({rest for _, _, rest in lines}) > 1:
        return None
    return f"{' or '.join(atom for atom, _, _ in lines)} {lines[0][2]}"


def _between(node: Between) -> str:
    bounds = []
    if node.low is not None:
        bounds.append(f"{node.atom.name} {'>=' if node.include_low else '>'} {_shown(node.atom, node.low)}")
    if node.high is not None:
        bounds.append(f"{node.atom.name} {'<=' if node.include_high else '<'} {_shown(node.atom, node.high)}")
    return " and ".join(bounds)


def _shown(atom: Atom, value: str | int) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if atom.kind is Kind.TIME:
        try:
            return (_EPOCH + timedelta(microseconds=value)).isoformat().replace("+00:00", "Z")
        except OverflowError:
            return f"{value} µs"
    return f"{value} ms" if atom.kind is Kind.MILLISECONDS else str(value)


def _escaped(text: str) -> str:
    return "".join(f"\\{one}" if one in "*?\\" else one for one in text)
