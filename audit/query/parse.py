"""From a query's text to its tree: bounded, and complete when it returns. The syntax itself is read by `lucene.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, tzinfo
from typing import Final

from audit.errors import QueryMalformed
from audit.query import fields
from audit.query.facets import PERMIT_KIND
from audit.query.tree import All, Is, Node, Not, Query, all_of, leaves

MAX_CHARS: Final = 4096


def parse(text: str, now: datetime, zone: tzinfo = UTC, *, within: Node | None = None) -> Query:
    """The query in `text`, asked at `now` (timezone-aware); times without a zone are of `zone`.

    `within` must hold too. Permit entries are left out unless their kind is named. An empty text asks for everything.
    Raises QueryMalformed, and nothing else, whatever the text.
    """
    if len(text) > MAX_CHARS:
        raise QueryMalformed(f"the query is longer than {MAX_CHARS} characters", MAX_CHARS, "ask for less at once")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise QueryMalformed("the query holds text that is not Unicode", error.start) from None
    where: Node = All()
    if text.strip():
        from audit.query.lucene import where_of  # noqa: PLC0415 - without a text, a host without luqum can ask too

        where = where_of(text, now, zone)
    if within is not None:
        where = all_of(within, where)
    asks_for_permits = Is(fields.KIND, PERMIT_KIND) in leaves(where)
    return Query(text, where if asks_for_permits else all_of(where, Not(Is(fields.KIND, PERMIT_KIND))))


def names_in(text: str) -> Sequence[str]:
    """Completions of a field's name that has been begun: each with its colon."""
    begun = text.lower()
    return [f"{spelling}:" for spelling in fields.SPELLINGS if spelling.startswith(begun)]
