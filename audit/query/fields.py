"""The fields of the query language: what is stored of each record (atoms), and the names that people use for it.

A name stands for one or more atoms: `host` is either host by id or by name. Adding a field means: an atom here, its
value in `facets.py`, a line in docs/audit-queries.md, and one more `INDEX_VERSION` in `audit/index.py`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum
from typing import Final


class Kind(Enum):
    """How an atom's values are read and compared."""

    TEXT = "text"  # as a whole, folded; wildcards; ranges by code point
    WORDS = "words"  # word by word, folded; phrases; `*` at the end of the last word
    NUMBER = "number"
    BYTES = "bytes"  # a number; 5M, 2Gi
    MILLISECONDS = "milliseconds"  # a number; 300ms, 2s, 1m
    TIME = "time"  # microseconds since 1970, UTC


@dataclass(frozen=True, slots=True, eq=False)  # by identity: each is made once, here, and hashing is most of a rebuild
class Atom:
    """One stored field. `many`: a record may have several values of it."""

    name: str
    kind: Kind
    many: bool = False


@dataclass(frozen=True, slots=True)
class Name:
    """What people write. `atoms`: a value counts if it fits any of them."""

    name: str
    atoms: tuple[Atom, ...]
    help: str
    others: tuple[str, ...] = ()


INDEX: Final = Atom("index", Kind.NUMBER)
KIND: Final = Atom("kind", Kind.TEXT)
OUTCOME: Final = Atom("outcome", Kind.TEXT)
TIME: Final = Atom("time", Kind.TIME)
BOOT: Final = Atom("boot", Kind.TEXT)
MIGRATION: Final = Atom("migration", Kind.TEXT)
VM_ID: Final = Atom("vm.id", Kind.TEXT)
VM_NAME: Final = Atom("vm.name", Kind.TEXT)
SOURCE_ID: Final = Atom("source.id", Kind.TEXT)
SOURCE_NAME: Final = Atom("source.name", Kind.TEXT)
DESTINATION_ID: Final = Atom("destination.id", Kind.TEXT)
DESTINATION_NAME: Final = Atom("destination.name", Kind.TEXT)
WHO_ID: Final = Atom("who.id", Kind.TEXT)
WHO_NAME: Final = Atom("who.name", Kind.TEXT)
LOGIN: Final = Atom("login", Kind.TEXT)
ISSUER: Final = Atom("issuer", Kind.TEXT)
GROUP: Final = Atom("group", Kind.TEXT, many=True)
REASON: Final = Atom("reason", Kind.WORDS)
WHY: Final = Atom("why", Kind.WORDS)
POLICY: Final = Atom("policy", Kind.TEXT, many=True)
BUNDLE: Final = Atom("bundle", Kind.TEXT)
TICKET: Final = Atom("ticket", Kind.TEXT)
CLIENT: Final = Atom("client", Kind.TEXT)
PERMIT: Final = Atom("permit", Kind.TEXT)
ROLE: Final = Atom("role", Kind.TEXT)
TLS: Final = Atom("tls", Kind.TEXT)
BYTES: Final = Atom("bytes", Kind.BYTES)
DOWNTIME: Final = Atom("downtime", Kind.MILLISECONDS)

ATOMS: Final = (
    INDEX, KIND, OUTCOME, TIME, BOOT, MIGRATION, VM_ID, VM_NAME, SOURCE_ID, SOURCE_NAME, DESTINATION_ID,
    DESTINATION_NAME, WHO_ID, WHO_NAME, LOGIN, ISSUER, GROUP, REASON, WHY, POLICY, BUNDLE, TICKET, CLIENT, PERMIT,
    ROLE, TLS, BYTES, DOWNTIME,
)  # fmt: skip

NAMES: Final = (
    Name("vm", (VM_ID, VM_NAME), "the virtual machine: its name or UUID", ("guest",)),
    Name("vm.id", (VM_ID,), "its UUID", ("uuid", "vm.uuid")),
    Name("vm.name", (VM_NAME,), "its name; as asked for, where nobody knows such a VM"),
    Name(
        "host",
        (SOURCE_ID, SOURCE_NAME, DESTINATION_ID, DESTINATION_NAME),
        "either host: its name or SPIFFE id (in quotes)",
    ),
    Name("source", (SOURCE_ID, SOURCE_NAME), "the host that the VM leaves", ("from",)),
    Name("destination", (DESTINATION_ID, DESTINATION_NAME), "the host that it goes to, or should have", ("to", "dest")),
    Name("who", (WHO_ID, WHO_NAME), "who acted: a person's or host's name or id", ("actor", "person", "by", "user")),
    Name("who.id", (WHO_ID,), "by id only"),
    Name("who.name", (WHO_NAME,), "by name only"),
    Name("login", (LOGIN,), "how they were authenticated: oidc, local, client-certificate", ("authenticated",)),
    Name("issuer", (ISSUER,), "who vouched for them"),
    Name("group", (GROUP,), "a group they were in then", ("groups",)),
    Name("kind", (KIND,), "what happened: migration.decision, migration.receipt, audit.read, heartbeat …", ("type",)),
    Name("outcome", (OUTCOME,), "allowed, denied, completed, failed, cancelled, running …", ("result",)),
    Name("reason", (REASON,), "words of the reason that the requester gave"),
    Name("why", (WHY,), "words of why it was denied", ("denied",)),
    Name("policy", (POLICY,), "a policy that decided", ("policies", "rule")),
    Name("bundle", (BUNDLE,), "digest of the policy bundle that decided"),
    Name("ticket", (TICKET,), "the ticket that was named"),
    Name("migration", (MIGRATION,), "the migration's id", ("id",)),
    Name("permit", (PERMIT,), "the permit's id (jti)", ("jti",)),
    Name("client", (CLIENT,), "network address that the request came from", ("address", "ip")),
    Name("role", (ROLE,), "of a receipt: source or destination"),
    Name("tls", (TLS,), "of a receipt: key exchange group, such as X25519MLKEM768"),
    Name("bytes", (BYTES,), "of a receipt: guest data carried; 5M, 2Gi", ("size",)),
    Name("downtime", (DOWNTIME,), "of a receipt: how long the guest stood still; 300ms, 2s"),
    Name("time", (TIME,), "when: 2026-11, 2026-11-22, 2026-11-22T09:00+01:00, ranges", ("when", "date")),
    Name("index", (INDEX,), "the record's number in the log", ("number", "sequence")),
    Name("boot", (BOOT,), "boot of the gateway that wrote it"),
)

SINCE: Final = "since"  # since:30d and until:2026-11-22 stand for ranges of `time`
UNTIL: Final = "until"

# What a word without a field is looked for in.
ANYWHERE: Final = (
    VM_ID, VM_NAME, SOURCE_ID, SOURCE_NAME, DESTINATION_ID, DESTINATION_NAME, WHO_ID, WHO_NAME, MIGRATION, TICKET,
    OUTCOME, KIND, POLICY, PERMIT, REASON, WHY,
)  # fmt: skip

_BY_SPELLING: Final = {spelling: name for name in NAMES for spelling in (name.name, *name.others)}
SPELLINGS: Final = tuple(sorted([*_BY_SPELLING, SINCE, UNTIL]))


def find_name(text: str) -> Name | None:
    """The field that people mean, however they write its case."""
    return _BY_SPELLING.get(text.lower())


def similar(text: str) -> str | None:
    """The field that was perhaps meant."""
    found = difflib.get_close_matches(text.lower()[:64], SPELLINGS, n=1, cutoff=0.7)
    return found[0] if found else None
