"""Conditions without a text: what the options of a command and the parameters of a call stand for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from audit.errors import QueryRefused, RecordInvalid
from audit.query import fields
from audit.query.facets import microseconds
from audit.query.text import fold
from audit.query.tree import Between, Is, Node, all_of, any_of
from audit.record import parse_time

FIELDS: Final = {
    "migration": "migration",
    "vm": "vm",
    "host": "host",
    "actor": "who",
    "outcome": "outcome",
    "kind": "kind",
}
NAMES: Final = (*FIELDS, "since", "until")


def terms(given: Mapping[str, str | None]) -> Node:
    """All that are given, by NAMES, must hold: exactly that value, folded, of the field of that name.

    `since` (inclusive) and `until` (exclusive) are times in a record's form. Raises QueryRefused.
    """
    parts: list[Node] = []
    for term, field in FIELDS.items():
        if (value := given.get(term)) is not None:
            parts.append(_named(field, value))
    since, until = _micros(given.get("since")), _micros(given.get("until"))
    if since is not None or until is not None:
        parts.append(Between(fields.TIME, since, until, include_high=False))
    return all_of(*parts)


def _named(name: str, value: str) -> Node:
    field = fields.find_name(name)
    assert field is not None
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise QueryRefused(f"{name} holds text that is not Unicode") from error
    return any_of(*(Is(atom, fold(value)) for atom in field.atoms))


def _micros(time: str | None) -> int | None:
    if time is None:
        return None
    try:
        parse_time(time)
    except RecordInvalid as error:
        raise QueryRefused("since and until must be like 2026-11-22T21:42:21.123456Z") from error
    return microseconds(time)
