"""Which entries a sink gets, and what of them: its own filter, a query of the audit log, and its own redaction."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from functools import partial

import msgspec

from audit.errors import UNDECODABLE
from audit.query import facets_of, matches, parse
from audit.siem.document import Document, LogEntry, Render, document_of
from audit.siem.mapping import REDACTABLE


def selection(query: str | None, redact: Collection[str], now: datetime) -> Render:
    """How a sink sees an entry. A query leaves out permit entries unless it asks for them; without one all come.

    Times in `query` that are relative are so to `now`, the start. Raises QueryMalformed; ValueError for a field that
    cannot be redacted.
    """
    hidden = frozenset(redact)
    if wrong := hidden - REDACTABLE.keys():
        raise ValueError(f"{min(wrong)} cannot be redacted; what can: {', '.join(REDACTABLE)}")
    render = partial(document_of, redact=hidden)
    if query is None:
        return render
    where = parse(query, now).where

    def wanted(entry: LogEntry) -> Document | None:
        try:
            read = msgspec.json.decode(entry.entry, type=dict)
        except UNDECODABLE:
            return render(entry)  # which says that it is no entry
        return render(entry) if matches(where, facets_of(entry.index, read.get("record", read))) else None

    return wanted
