"""What a search at the SIEM may ask for: the types of a document's fields, and which of them a sink may be denied.

Elasticsearch gets exactly this as its mapping. `dynamic: false` stores a field that is not here and indexes it not: a
later Sealane with more fields is never refused by the index of the current month.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from audit.query import ATOMS, Atom, Kind
from audit.query import fields as f

KEYWORD: Final = {"type": "keyword", "ignore_above": 1024}
_LONG: Final = {"type": "long"}

# The values that audit queries compare, folded already: the same text asked here and of the gateway has one answer.
# Searched, and never sorted or counted by: without doc values the server has less to do.
_FACET: Final[Mapping[Kind, Mapping[str, Any]]] = {
    Kind.TEXT: {"type": "keyword", "doc_values": False},
    # Words with a space between, as `audit.query` splits them: nothing here may split them again.
    Kind.WORDS: {"type": "text", "analyzer": "whitespace", "norms": False},
    Kind.NUMBER: {"type": "long", "doc_values": False},
    Kind.BYTES: _LONG,
    Kind.MILLISECONDS: _LONG,
    Kind.TIME: {"type": "long", "doc_values": False},
}
_FACET_NAMES: Final = {atom: atom.name.replace(".", "_") for atom in ATOMS}


def facet_name(atom: Atom) -> str:
    """The member of `sealane.facets` that holds the atom's values."""
    return _FACET_NAMES[atom]


MAPPING: Final[dict[str, Any]] = {
    "dynamic": False,
    "properties": {
        "@timestamp": {"type": "date_nanos"},
        "message": {"type": "text", "norms": False},
        "ecs": {"properties": {"version": KEYWORD}},
        "event": {
            "properties": {
                **dict.fromkeys(("id", "kind", "category", "type", "action", "outcome", "module", "dataset"), KEYWORD),
                "hash": KEYWORD,
                "reason": KEYWORD,
                "sequence": _LONG,
                "original": {"type": "keyword", "index": False, "doc_values": False},
            }
        },
        "user": {"properties": {"id": KEYWORD, "name": KEYWORD, "domain": KEYWORD}},
        "source": {"properties": {"address": KEYWORD}},
        "destination": {"properties": {"address": KEYWORD}},
        "rule": {"properties": {"name": KEYWORD, "version": KEYWORD}},
        "related": {"properties": {"user": KEYWORD, "hosts": KEYWORD}},
        "sealane": {
            "properties": {
                **dict.fromkeys(("origin", "kind", "outcome", "migration_id", "source", "destination"), KEYWORD),
                "document": _LONG,
                "redacted": KEYWORD,
                "vm": {"properties": {"uuid": KEYWORD, "name": KEYWORD}},
                "actor": {"properties": {"groups": KEYWORD, "authenticated_by": KEYWORD}},
                "jurisdiction": {
                    "properties": {"source": KEYWORD, "destination": KEYWORD, "crossed": {"type": "boolean"}}
                },
                "facets": {"properties": {facet_name(atom): _FACET[atom.kind] for atom in ATOMS}},
            }
        },
    },
}

# What a sink may be denied, and the facets that tell it as well: who and what was concerned, never what the record is
# and where it stands in the log.
REDACTABLE: Final[Mapping[str, tuple[Atom, ...]]] = {
    "user.id": (f.WHO_ID,),
    "user.name": (f.WHO_NAME,),
    "user.domain": (f.ISSUER,),
    "source.address": (f.CLIENT,),
    "destination.address": (f.DESTINATION_ID, f.DESTINATION_NAME),
    "event.reason": (f.REASON, f.TICKET),
    "sealane.source": (f.SOURCE_ID, f.SOURCE_NAME),
    "sealane.destination": (f.DESTINATION_ID, f.DESTINATION_NAME),
    "sealane.vm.uuid": (f.VM_ID,),
    "sealane.vm.name": (f.VM_NAME,),
    "sealane.migration_id": (f.MIGRATION,),
    "sealane.actor.groups": (f.GROUP,),
    "sealane.actor.authenticated_by": (f.LOGIN,),
}
