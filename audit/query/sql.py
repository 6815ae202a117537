"""From a query's tree to SQL over the index's tables: fixed pieces of text, every value a parameter.

Three-valued logic never decides: NULL comes up for a missing value only, AND and OR pass it on, WHERE takes it for
false, and a negation asks `IS NOT TRUE`, as the two-valued logic of the language wants it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, TypeAlias, assert_never

from audit.index_schema import COLUMN_OF, Column, Store
from audit.query import fields
from audit.query.tree import All, And, Between, Has, Is, Like, Node, Not, Or, Pattern, Phrase, Wild

Parameters: TypeAlias = tuple[str | int, ...]

# The words, and then in a sentence that has a space around each: most have them not at all, which costs a third.
HAS_WORDS: Final = "instr(text, ?) > 0 AND instr(' ' || text || ' ', ?) > 0"
_GLOB_LITERAL = str.maketrans({"*": "[*]", "?": "[?]", "[": "[[]"})


@dataclass(frozen=True, slots=True)
class Condition:
    """A piece of SQL for WHERE, and the values of its question marks."""

    sql: str
    parameters: Parameters = ()


def condition_of(node: Node) -> Condition:
    """The condition on a row of `records` that `node` asks for."""
    match node:
        case All():
            return Condition("1")
        case And(parts):
            return _joined("AND", [condition_of(part) for part in parts])
        case Or(parts):
            return _joined("OR", [condition_of(part) for part in parts])
        case Not(part):
            inner = condition_of(part)
            return Condition(f"(({inner.sql}) IS NOT TRUE)", inner.parameters)
        case Has(atom):
            return Condition("1") if atom == fields.INDEX else Condition(f"{COLUMN_OF[atom].name} IS NOT NULL")
        case Is(atom, value):
            return _compared(atom, "= ?", (value,))
        case Like(atom, pattern):
            return _compared(atom, "GLOB ?", (glob_of(pattern),))
        case Between():
            return _between(node)
        case Phrase(atom, all_words, is_prefix):
            return _of_sentences(COLUMN_OF[atom], HAS_WORDS, sought_words(all_words, is_prefix=is_prefix))
        case _:
            assert_never(node)


def glob_of(pattern: Pattern) -> str:
    """As SQLite's GLOB has it: a bracket makes the next character a plain one."""
    return "".join(piece.value if isinstance(piece, Wild) else piece.translate(_GLOB_LITERAL) for piece in pattern)


def sought_words(all_words: tuple[str, ...], *, is_prefix: bool) -> tuple[str, str]:
    """The parameters of HAS_WORDS."""
    words = " ".join(all_words)
    return words, f" {words}" + ("" if is_prefix else " ")


def _between(node: Between) -> Condition:
    comparisons, parameters = [], []
    for bound, operator, inclusive in ((node.low, ">", node.include_low), (node.high, "<", node.include_high)):
        if bound is not None:
            comparisons.append(f"{operator}{'=' if inclusive else ''} ?")
            parameters.append(bound)
    column = COLUMN_OF.get(node.atom)
    if column is None or column.store in {Store.INTEGER, Store.INLINE}:
        parts = [_compared(node.atom, one, (value,)) for one, value in zip(comparisons, parameters, strict=True)]
        return _joined("AND", parts)
    # Both bounds are of one text: a field of several values must not meet them with two of its values.
    return _of_texts(column, " AND ".join(f"text {one}" for one in comparisons), tuple(parameters))


def _compared(atom: fields.Atom, comparison: str, parameters: Parameters) -> Condition:
    if atom == fields.INDEX:
        return Condition(f"position {comparison}", parameters)
    column = COLUMN_OF[atom]
    if column.store in {Store.INTEGER, Store.INLINE}:
        return Condition(f"{column.name} {comparison}", parameters)
    return _of_texts(column, f"text {comparison}", parameters)


def _of_texts(column: Column, condition: str, parameters: Parameters) -> Condition:
    ids = f"SELECT id FROM texts WHERE {condition}"  # noqa: S608 - fixed pieces
    if column.store is Store.SET:
        ids = f"SELECT id FROM members WHERE text IN ({ids})"  # noqa: S608 - fixed pieces
    return Condition(f"{column.name} IN ({ids})", parameters)


def _of_sentences(column: Column, condition: str, parameters: Parameters) -> Condition:
    return Condition(f"{column.name} IN (SELECT id FROM sentences WHERE {condition})", parameters)  # noqa: S608


def _joined(operator: str, parts: list[Condition]) -> Condition:
    """Halved and halved again: SQLite allows expressions only so deep, and a chain is as deep as it is long."""
    if len(parts) == 1:
        return parts[0]
    middle = len(parts) // 2
    left, right = _joined(operator, parts[:middle]), _joined(operator, parts[middle:])
    return Condition(f"({left.sql} {operator} {right.sql})", left.parameters + right.parameters)
