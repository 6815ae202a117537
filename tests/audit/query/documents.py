"""Records as JSON for the tests of queries; strategies draw records and queries of few values, so that they meet."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from audit.query import fields
from audit.query.fields import Atom, Kind
from audit.query.text import words
from audit.query.tree import All, And, Between, Has, Is, Like, Node, Not, Or, Phrase, Wild

DECISION: dict[str, Any] = {
    "kind": "migration.decision",
    "outcome": "denied",
    "time": "2026-11-22T21:42:21.123456Z",
    "boot_id": "boot-1",
    "migration_id": "m-1",
    "vm": {"uuid": "5f0c6d5e-3f0a-4a53-9a55-0a4d8f0f3d10", "name": "Web-1"},
    "actor": {
        "id": "okta#alice",
        "name": "Alice",
        "authenticated_by": "oidc",
        "issuer": "https://issuer.example",
        "groups": ["S-1-5-32-544", "Ops"],
    },
    "source": "spiffe://bank.example/host/a",
    "destination": None,
    "reason": "Kernel update, tonight!",
    "details": {
        "asked": {"vm": "web-1", "destination": "host-zz", "ticket": "CHG-42"},
        "client_address": "192.0.2.7",
        "decision": {
            "denied_because": "forbidden by residency",
            "policies": [{"id": "residency", "effect": "forbid"}, {"id": "allow-operators", "effect": "permit"}],
            "bundle_digest": "ab" * 32,
        },
    },
}
RECEIPT: dict[str, Any] = {
    "kind": "migration.receipt",
    "outcome": "completed",
    "time": "2026-11-22T21:43:00.000000Z",
    "details": {
        "role": "source",
        "jti": "J-9",
        "tls": {"version": "TLSv1.3", "group": "X25519MLKEM768", "cipher": "x"},
        "downtime_ms": 240,
        "sent_bytes": 5_000_000,
        "received_bytes": 12,
    },
}

_TEXTS = st.sampled_from(
    ["a", "ab", "abc", "b", "a*c", "a?c", "A[b]c", "Ünï", "ẞ", "a\0b", "'; --", "%_", "\U0010ffff", "a\U0010ffff"]
)
_SENTENCES = st.sampled_from(["a", "a b", "b a b", "ab ba", "A, b! c?", "ünï a", "a_b 1", "...", "a\nb"])
_NUMBERS = st.one_of(st.integers(0, 3), st.sampled_from([240, 2**62, 2**63 - 1]))
_TIMES = st.sampled_from(
    ["2026-11-22T21:42:21.123456Z", "2026-11-22T21:42:21.123457Z", "2026-11-23T00:00:00.000000Z", "not a time", None]
)


def _maybe(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values)


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A record as JSON: any member may be missing, null or of another type."""
    if draw(st.integers(0, 5)) == 0:
        names = ("migration_id", "jti", "vm", "source", "destination")
        return {"kind": "sealane-permit", "claims": {name: draw(_maybe(_TEXTS)) for name in names}, "decision": {}}
    host = _maybe(_TEXTS.map(lambda name: f"spiffe://t/host/{name}"))
    odd: st.SearchStrategy[Any] = st.sampled_from([None, 7, [], "text", {"name": 1}])
    return {
        "kind": draw(st.sampled_from(["migration.decision", "heartbeat", "a"])),
        "outcome": draw(_maybe(_TEXTS)),
        "time": draw(_TIMES),
        "boot_id": draw(_TEXTS),
        "migration_id": draw(_maybe(_TEXTS)),
        "vm": draw(st.one_of(odd, st.fixed_dictionaries({"uuid": _maybe(_TEXTS), "name": _maybe(_TEXTS)}))),
        "actor": draw(
            st.one_of(
                odd,
                st.fixed_dictionaries(
                    {
                        "id": _TEXTS,
                        "name": _TEXTS,
                        "issuer": _maybe(_TEXTS),
                        "groups": _maybe(st.lists(_TEXTS, max_size=3)),
                    }
                ),
            )
        ),
        "source": draw(host),
        "destination": draw(host),
        "reason": draw(_maybe(_SENTENCES)),
        "details": draw(
            st.one_of(
                odd,
                st.fixed_dictionaries(
                    {
                        "decision": st.fixed_dictionaries(
                            {
                                "denied_because": _maybe(_SENTENCES),
                                "policies": st.lists(st.fixed_dictionaries({"id": _TEXTS}), max_size=3),
                                "bundle_digest": _maybe(_TEXTS),
                            }
                        ),
                        "asked": st.fixed_dictionaries({"destination": _TEXTS, "ticket": _maybe(_TEXTS)}),
                        "client_address": _maybe(_TEXTS),
                        "downtime_ms": _maybe(_NUMBERS),
                        "sent_bytes": _maybe(_NUMBERS),
                        "jti": _maybe(_TEXTS),
                        "role": _maybe(_TEXTS),
                    }
                ),
            )
        ),
    }


_TEXT_ATOMS = st.sampled_from([atom for atom in fields.ATOMS if atom.kind is Kind.TEXT])
_WORD_ATOMS = st.sampled_from([fields.REASON, fields.WHY])
_NUMBER_ATOMS = st.sampled_from([fields.INDEX, fields.BYTES, fields.DOWNTIME])
_FOLDED = _TEXTS.map(lambda text: text.lower().replace("\0", "\ufffd"))
_MICROS = st.sampled_from([1795383741123456, 1795383741123457, 1795392000000000, 0, 2**63 - 1])


@st.composite
def _patterns(draw: st.DrawFn) -> tuple[str | Wild, ...]:
    pieces: list[str | Wild] = []
    for piece in draw(st.lists(st.one_of(_FOLDED, st.sampled_from(Wild)), min_size=1, max_size=4)):
        if isinstance(piece, str) and pieces and isinstance(pieces[-1], str):
            continue
        pieces.append(piece)
    return tuple(pieces)


@st.composite
def _betweens(draw: st.DrawFn, atoms: st.SearchStrategy[Atom], values: st.SearchStrategy[Any]) -> Between:
    low, high = draw(_maybe(values)), draw(values)
    return Between(draw(atoms), low, high, draw(st.booleans()), draw(st.booleans()))


LEAVES: st.SearchStrategy[Node] = st.one_of(
    st.just(All()),
    st.builds(Has, st.sampled_from(fields.ATOMS)),
    st.builds(Is, _TEXT_ATOMS, _FOLDED),
    st.builds(Is, _NUMBER_ATOMS, _NUMBERS),
    st.builds(Like, _TEXT_ATOMS, _patterns()),
    _betweens(_TEXT_ATOMS, _FOLDED),
    _betweens(_NUMBER_ATOMS, _NUMBERS),
    _betweens(st.just(fields.TIME), _MICROS),
    st.builds(Phrase, _WORD_ATOMS, _SENTENCES.map(words).filter(bool), st.booleans()),
)
NODES: st.SearchStrategy[Node] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(And, st.lists(inner, min_size=1, max_size=3).map(tuple)),
        st.builds(Or, st.lists(inner, min_size=1, max_size=3).map(tuple)),
    ),
    max_leaves=8,
)
