"""Lucene's syntax is read by luqum; what it means is decided here: the inner part of `parse.py`, which is what to call.

What would be ambiguous to an auditor is refused with a position and a hint rather than guessed: AND beside OR without
parentheses, a field that does not exist, a boost.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any, Final

from luqum import tree as lucene
from luqum.exceptions import ParseError
from luqum.thread import parse as parse_lucene

from audit.errors import QueryMalformed
from audit.query import fields, literals
from audit.query.fields import ANYWHERE, Atom, Kind, Name
from audit.query.literals import Period
from audit.query.text import words
from audit.query.tree import (
    All,
    Between,
    Has,
    Is,
    Like,
    Node,
    Not,
    Pattern,
    Phrase,
    Wild,
    all_of,
    any_of,
)

MAX_CLAUSES: Final = 256
MAX_DEPTH: Final = 16

_NO_SCORES: Final = "leave it out: records fit or do not fit, there are no scores"
_WRONG_OPERATORS: Final = {"and": "AND", "or": "OR", "not": "NOT", "&&": "AND", "||": "OR"}
_AT: Final = re.compile(r"at position ([0-9]+)!?\Z")
_ALIKE: Final = (lucene.AndOperation, lucene.UnknownOperation)


def where_of(text: str, now: datetime, zone: tzinfo) -> Node:
    """The tree of a text that is not empty. Raises QueryMalformed."""
    return _Reader(now, zone).node(_lucene(text), None, 0)


def _lucene(text: str) -> lucene.Item:
    try:
        return parse_lucene(text)
    except ParseError as error:
        found = _AT.search(str(error))
        position = min(int(found[1]), len(text)) if found else len(text)
        if position == len(text):
            raise QueryMalformed("the query ends too early", position, "something is missing here") from None
        raise QueryMalformed(f"{text[position]!r} cannot stand here", position, _hint(text, position)) from None
    except (RecursionError, ValueError, TypeError, AttributeError):  # whatever luqum trips over is no query of ours
        raise QueryMalformed("the query cannot be read", 0, "write it more simply") from None


def _hint(text: str, position: int) -> str:
    if text[position] == '"':
        return "this quote is not closed"
    if text[position] in ")]}":
        return "nothing opens it, or nothing stands before it"
    return "put text that holds it in quotes"


@dataclass(slots=True)
class _Reader:
    """One reading of a luqum tree."""

    now: datetime
    zone: tzinfo
    clauses: int = 0

    def node(self, item: lucene.Item, name: Name | str | None, depth: int) -> Node:
        """The meaning of `item`; `name` is the field it stands in (a Name, SINCE or UNTIL), None for none."""
        if depth > MAX_DEPTH:
            raise _wrong(item, f"the query is nested deeper than {MAX_DEPTH}", "ask more simply")
        match item:
            case lucene.Group() | lucene.FieldGroup():
                return self.node(item.expr, name, depth + 1)
            case lucene.BaseOperation():
                return self._operation(item, name, depth)
            case lucene.Not() | lucene.Prohibit():
                return Not(self.node(item.a, name, depth + 1))
            case lucene.Plus():
                return self.node(item.a, name, depth + 1)
            case lucene.SearchField():
                return self._field(item, name, depth)
            case lucene.Word() | lucene.Phrase() | lucene.Range() | lucene.OpenRange():
                self._count(item)
                return self._leaf(item, name)
            case lucene.Boost():
                raise _wrong(item, "`^` weighs a part of the query", _NO_SCORES)
            case lucene.Fuzzy() | lucene.Proximity():
                raise _wrong(item, "`~` asks for what is similar", "use wildcards: * and ?")
            case lucene.Regex():
                raise _wrong(
                    item, "`/` begins a regular expression", "put text that holds it in quotes, or use * and ?"
                )
            case _:
                raise _wrong(item, "this cannot be asked", "write it more simply")

    def _operation(self, item: lucene.BaseOperation, name: Name | str | None, depth: int) -> Node:
        for child in item.children:
            if isinstance(child, lucene.BaseOperation) and not (isinstance(item, _ALIKE) and isinstance(child, _ALIKE)):
                raise _wrong(
                    _meeting(item), "AND (or a space) and OR stand side by side", "put parentheses around one of them"
                )
            if isinstance(child, lucene.Plus) and isinstance(item, lucene.OrOperation):
                raise _wrong(child, "`+` beside OR has no clear meaning", "leave it out, or use AND")
        parts = [self.node(child, name, depth + 1) for child in item.children]
        return any_of(*parts) if isinstance(item, lucene.OrOperation) else all_of(*parts)

    def _field(self, item: lucene.SearchField, outer: Name | str | None, depth: int) -> Node:
        if outer is not None:
            raise _wrong(item, f"{item.name[:64]!r} stands inside another field", 'put text that holds ":" in quotes')
        if item.name == "*":
            if isinstance(item.expr, lucene.Word) and item.expr.value == "*":
                return All()
            return self.node(item.expr, None, depth + 1)
        spelling = item.name.lower()
        name = spelling if spelling in {fields.SINCE, fields.UNTIL} else fields.find_name(item.name)
        if name is None:
            meant = fields.similar(item.name)
            hint = f"did you mean {meant}?" if meant else "`sealane audit fields` lists them"
            raise _wrong(item, f"there is no field {item.name[:64]!r}", hint)
        if isinstance(item.expr, lucene.Prohibit | lucene.Plus | lucene.Not):
            raise _wrong(item.expr, "a sign stands behind a field", "put it before the field, or the value in quotes")
        return self.node(item.expr, name, depth + 1)

    def _count(self, item: lucene.Item) -> None:
        self.clauses += 1
        if self.clauses > MAX_CLAUSES:
            raise _wrong(item, f"the query has more than {MAX_CLAUSES} clauses", "ask for less at once")

    def _leaf(self, item: lucene.Item, name: Name | str | None) -> Node:
        try:
            if isinstance(name, str):
                return self._bound(item, name)
            if name is not None:
                return any_of(*(self._of_atom(item, atom) for atom in name.atoms))
            return self._anywhere(item)
        except ValueError as error:
            shown = str(item).strip()[:64]
            raise _wrong(item, f"{shown!r} is no value here", str(error)) from None

    def _anywhere(self, item: lucene.Item) -> Node:
        if isinstance(item, lucene.Range | lucene.OpenRange):
            raise ValueError("say in which field: index:>1000, time:[2026-11 TO 2026-12]")  # noqa: TRY004
        if isinstance(item, lucene.Word):
            if (right := _WRONG_OPERATORS.get(item.value.lower())) is not None:
                raise ValueError(f"write {right} in capitals to connect, or put the word in quotes")
            if item.value.startswith("!"):
                raise ValueError('write NOT or - to exclude, or put "!" in quotes')
            if item.value == "*":
                return All()
        return any_of(*(self._of_atom(item, atom) for atom in ANYWHERE if _may_hold(item, atom)))

    def _bound(self, item: lucene.Item, name: str) -> Node:
        """`since:` and `until:`, both by the beginning of the time that is given."""
        text = _plain(item)
        if text is None:
            raise ValueError("give one time: 90m, 30d (ago), 2026-11-22, 2026-11-22T21:42Z")
        start = literals.moment_of(text, self.now, self.zone).start
        if name == fields.SINCE:
            return Between(fields.TIME, start, None)
        return Between(fields.TIME, None, start, include_high=False)

    def _of_atom(self, item: lucene.Item, atom: Atom) -> Node:
        match item:
            case lucene.Range():
                low, high = _bound_text(item.low), _bound_text(item.high)
                return self._range(atom, low, high, item.include_low, item.include_high)
            case lucene.From():
                return self._range(atom, _bound_text(item.a), None, item.include, True)
            case lucene.To():
                return self._range(atom, None, _bound_text(item.a), True, item.include)
            case lucene.Word(value="*"):
                return Has(atom)
        match atom.kind:
            case Kind.TEXT:
                return _text(item, atom)
            case Kind.WORDS:
                return _phrase(item, atom)
            case Kind.TIME:
                period = literals.period_of(_required(item), self.now, self.zone)
                return Between(atom, period.start, period.end, include_high=False)
            case _:
                return Is(atom, literals.number_of(_required(item), atom.kind))

    def _range(self, atom: Atom, low: str | None, high: str | None, include_low: bool, include_high: bool) -> Node:
        if low is None and high is None:
            return Has(atom)
        match atom.kind:
            case Kind.TEXT:
                bounds = [None if bound is None else literals.folded_text(bound) for bound in (low, high)]
                return Between(atom, bounds[0], bounds[1], include_low, include_high)
            case Kind.WORDS:
                raise ValueError("words have no order: ask for a word, or a phrase in quotes")
            case Kind.TIME:
                return self._time_range(atom, low, high, include_low, include_high)
            case _:
                numbers = [None if bound is None else literals.number_of(bound, atom.kind) for bound in (low, high)]
                return Between(atom, numbers[0], numbers[1], include_low, include_high)

    def _time_range(self, atom: Atom, low: str | None, high: str | None, include_low: bool, include_high: bool) -> Node:
        """A bound that is a whole day (month, minute …) is in or out as a whole."""
        start, end = (
            None if bound is None else literals.moment_of(bound, self.now, self.zone) for bound in (low, high)
        )
        return Between(
            atom,
            None if start is None else _edge(start, after=not include_low),
            None if end is None else _edge(end, after=include_high),
            include_high=False,
        )


def _meeting(item: lucene.BaseOperation) -> lucene.Item:
    """The first part that another operator joins to what stands before it than joined the parts up to there."""
    (_, first), *rest = _joined(item)[1:]
    return next((part for part, is_or in rest if is_or is not first), item)


def _joined(item: lucene.Item) -> list[tuple[lucene.Item, bool | None]]:
    """Its parts as they stand in the text, each with whether OR stands before it; None: nothing does."""
    if not isinstance(item, lucene.BaseOperation):
        return [(item, None)]
    parts: list[tuple[lucene.Item, bool | None]] = []
    for child in item.children:
        (first, _), *others = _joined(child)
        parts += [(first, isinstance(item, lucene.OrOperation) if parts else None), *others]
    return parts


def _edge(period: Period, *, after: bool) -> int:
    return period.end if after else period.start


def _text(item: lucene.Item, atom: Atom) -> Node:
    if isinstance(item, lucene.Phrase):
        return Is(atom, literals.folded_text(literals.text_of(item.value[1:-1])))
    pattern: Pattern = literals.pattern_of(_required(item, raw=True))
    if all(isinstance(piece, Wild) for piece in pattern):
        raise ValueError("a pattern needs a character beside its wildcards (a lone * asks for any value)")
    if len(pattern) == 1:
        return Is(atom, literals.folded_text(str(pattern[0])))
    return Like(atom, pattern)


def _phrase(item: lucene.Item, atom: Atom) -> Node:
    raw = literals.text_of(item.value[1:-1]) if isinstance(item, lucene.Phrase) else _required(item, raw=True)
    is_prefix = isinstance(item, lucene.Word) and raw.endswith("*") and not raw.endswith("\\*")
    if isinstance(item, lucene.Word):
        rest = raw[:-1] if is_prefix else raw
        if any(isinstance(piece, Wild) for piece in literals.pattern_of(rest)):
            raise ValueError("here a * can only stand at the end of a word")
        raw = literals.text_of(rest)
    wanted = words(raw)
    if not wanted:
        raise ValueError("it holds no word: letters or digits")
    if is_prefix and len(wanted) > 1:
        raise ValueError("a * ends one word: ask for its words one by one")
    return Phrase(atom, wanted, is_prefix)


def _may_hold(item: lucene.Item, atom: Atom) -> bool:
    """Whether a word without a field can be asked of this atom at all: words are no patterns."""
    if atom.kind is not Kind.WORDS:
        return True
    try:
        _phrase(item, atom)
    except ValueError:
        return False
    return True


def _required(item: lucene.Item, *, raw: bool = False) -> str:
    text = item.value if raw and isinstance(item, lucene.Word) else _plain(item)
    if text is None:
        raise ValueError("give one value")
    return str(text)


def _plain(item: lucene.Item) -> str | None:
    """The text of a word or a quoted text, wildcards as they stand."""
    match item:
        case lucene.Phrase():
            return literals.text_of(item.value[1:-1])
        case lucene.Word():
            return literals.text_of(item.value)
    return None


def _bound_text(item: lucene.Item) -> str | None:
    """A bound of a range, None if it is open."""
    if isinstance(item, lucene.Word) and item.value == "*":
        return None
    if isinstance(item, lucene.Word) and any(isinstance(one, Wild) for one in literals.pattern_of(item.value)):
        raise ValueError("a bound has no wildcards")
    text = _plain(item)
    if text is None:
        raise ValueError("a bound is one value; put quotes around one that begins with a sign")
    return text


def _wrong(item: Any, what: str, hint: str) -> QueryMalformed:
    return QueryMalformed(what, item.pos or 0, hint)
