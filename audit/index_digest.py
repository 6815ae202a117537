"""What a run of entries adds to the query index, worked out without its database: by any process. `index.py` stores it.

Texts have numbers of the digest's own; the database has others, and whoever stores it translates each text once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from audit import index_arrivals
from audit.errors import UNDECODABLE
from audit.index_schema import PLAIN, TERMS, ZONE_WIDTH, Store
from audit.proof import leaf_hash
from audit.query import fields
from audit.query.facets import PERMIT_KIND, UNREADABLE_KIND, facets_of

NO_TERM: Final = -1

# Where a field stands: going over what a record has is most of a rebuild's time.
_TERM_PLACES = {column.atom: (place, column, column.store is Store.TEXT) for place, column in enumerate(TERMS)}
_PLAIN_PLACES = {column.atom: place for place, column in enumerate(PLAIN, 1)}
_NO_TERMS = (NO_TERM,) * len(TERMS)
_NOTHING_PLAIN = (None,) * len(PLAIN)

Row = tuple[list[int], list[int | str | None]]
"""Numbers of what stands in TERMS (NO_TERM: nothing); the position, and what stands in PLAIN."""


@dataclass(slots=True)
class Digest:
    """Of the entries [first, end), the last of which has the leaf hash `last`."""

    first: int
    end: int
    last: bytes
    texts: dict[str, int] = field(default_factory=dict)
    sentences: dict[str, int] = field(default_factory=dict)
    sets: dict[tuple[int, ...], int] = field(default_factory=dict)  # of texts
    rows: list[Row] = field(default_factory=list)
    tallies: dict[tuple[int, int], int] = field(default_factory=dict)  # by column and number
    zones: dict[int, tuple[int, int]] = field(default_factory=dict)
    arrivals: dict[str, index_arrivals.Arrival | None] = field(default_factory=dict)

    @property
    def numbers(self) -> int:
        """How many were given, to texts, sentences and sets together."""
        return len(self.texts) + len(self.sentences) + len(self.sets)


def digest(first: int, entries: Sequence[bytes]) -> Digest:
    """Of at least one entry. One that cannot be read has a row of kind `unreadable`: it must hide nothing."""
    made = Digest(first, first + len(entries), leaf_hash(entries[-1]))
    for index, entry in enumerate(entries, first):
        document = document_of(entry)
        index_arrivals.apply_to(made.arrivals, document)
        _add(made, index, document)
    return made


def _add(made: Digest, index: int, document: dict[str, Any]) -> None:
    terms = list(_NO_TERMS)
    plain: list[int | str | None] = [index, *_NOTHING_PLAIN]
    for atom, found in facets_of(index, document).items():
        if (known := _TERM_PLACES.get(atom)) is None:
            if (place := _PLAIN_PLACES.get(atom)) is not None:  # the position is the row's own
                plain[place] = found[0]
            continue
        place, column, is_text = known
        if is_text:
            number = made.texts.get(found[0])  # type: ignore[arg-type]  # a text
            if number is None:
                number = _text(made, found[0])
        elif column.store is Store.SENTENCE:
            sentence = str(found[0])
            number = made.sentences.get(sentence)
            if number is None:
                number = made.sentences[sentence] = made.numbers
        else:
            number = _set(made, found)
        terms[place] = number
        if column.indexed:
            tally = column.number, number
            made.tallies[tally] = made.tallies.get(tally, 0) + 1
    time = plain[_PLAIN_PLACES[fields.TIME]]
    if isinstance(time, int):
        low, high = made.zones.get(index // ZONE_WIDTH, (time, time))
        made.zones[index // ZONE_WIDTH] = min(low, time), max(high, time)
    made.rows.append((terms, plain))


def _text(made: Digest, value: str | int) -> int:
    text = str(value)
    number = made.texts.get(text)
    if number is None:
        number = made.texts[text] = made.numbers
    return number


def _set(made: Digest, values: Iterable[str | int]) -> int:
    members = tuple(_text(made, value) for value in values)
    number = made.sets.get(members)
    if number is None:
        number = made.sets[members] = made.numbers
    return number


def document_of(entry: bytes) -> dict[str, Any]:
    """What stands in an entry, as `facets_of` takes it; what cannot be read has the kind `unreadable`."""
    try:
        document = msgspec.json.decode(entry)
    except UNDECODABLE:
        return {"kind": UNREADABLE_KIND}
    if isinstance(document, dict):
        if document.get("kind") == PERMIT_KIND:
            return document
        record = document.get("record")
        if isinstance(record, dict) and isinstance(record.get("kind"), str) and record["kind"]:
            return record
    return {"kind": UNREADABLE_KIND}
