"""A query of the audit log, as Elasticsearch is asked it: the same tree over the same folded values, hence one answer.

Nothing here analyses text: values and questions were folded by `audit.query`, and a leaf compares them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, assert_never

from audit.query.tree import All, And, Between, Has, Is, Like, Node, Not, Or, Pattern, Phrase, Wild
from audit.siem.mapping import facet_name

Json = dict[str, Any]
_NOTHING: Final[Json] = {"match_none": {}}
_LONGS: Final = range(-(2**63), 2**63)


def query_of(node: Node) -> Json:
    """The clause that fits the documents whose records fit `node`."""
    match node:
        case All():
            return {"match_all": {}}
        case And(parts):
            return {"bool": {"filter": [query_of(part) for part in parts]}}
        case Or(parts):
            return {"bool": {"should": [query_of(part) for part in parts], "minimum_should_match": 1}}
        case Not(part):
            return {"bool": {"must_not": [query_of(part)]}}
        case Has():
            return {"exists": {"field": field_of(node)}}
        case Is(_, value):
            if isinstance(value, int) and value not in _LONGS:
                return _NOTHING
            return {"term": {field_of(node): {"value": value}}}
        case Like(_, pattern):
            return {"wildcard": {field_of(node): {"value": _wildcard(pattern)}}}
        case Between():
            return _range(node)
        case Phrase():
            return _phrase(node)
        case _:
            assert_never(node)


def field_of(leaf: Has | Is | Like | Between | Phrase) -> str:
    """Where a document has the values of the leaf's atom."""
    return f"sealane.facets.{facet_name(leaf.atom)}"


def _phrase(node: Phrase) -> Json:
    field, words = field_of(node), node.words
    if not node.is_prefix:
        return {"match_phrase": {field: {"query": " ".join(words), "analyzer": "whitespace"}}}
    if len(words) == 1:
        return {"prefix": {field: {"value": words[0]}}}
    return {"intervals": {field: _one_after_the_other(words)}}


def _range(node: Between) -> Json:
    bounds: Json = {}
    for bound, name, is_included in ((node.low, "gt", node.include_low), (node.high, "lt", node.include_high)):
        if isinstance(bound, int) and bound not in _LONGS:
            # Out of a long's range: every value is on one side of it.
            if (bound > 0) == (name == "gt"):
                return _NOTHING
            continue
        if bound is not None:
            bounds[f"{name}e" if is_included else name] = bound
    return {"range": {field_of(node): bounds}} if bounds else {"exists": {"field": field_of(node)}}


def _one_after_the_other(words: Sequence[str]) -> Json:
    """The last one may go on. Not `match_phrase_prefix`, which tries only the first fifty ways in which it does."""
    whole = {"match": {"query": " ".join(words[:-1]), "analyzer": "whitespace", "max_gaps": 0, "ordered": True}}
    return {"all_of": {"ordered": True, "max_gaps": 0, "intervals": [whole, {"prefix": {"prefix": words[-1]}}]}}


def _wildcard(pattern: Pattern) -> str:
    return "".join(piece.value if isinstance(piece, Wild) else _literal(piece) for piece in pattern)


def _literal(text: str) -> str:
    r"""`\`, `*` and `?` as themselves: a name that holds one must not become a pattern."""
    return text.replace("\\", "\\\\").replace("*", "\\*").replace("?", "\\?")
