"""What a requester, or whoever names a VM, would write to forge a line, a field or an escape at the receiver."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from audit.record import Actor, Vm
from audit.siem.document import Document, LogEntry, document_of
from tests.audit.samples import VM_ID
from tests.audit.siem.entries import log_entry

PIECES = (
    *("|", "\\", "=", "^", "\t", "\n", "\r", "\r\n", "\x00", "\x1b[2J", "\x7f", "\x85", "\u2028", "\u202e", "\ufeff"),
    *(
        '"',
        "]",
        '"]',
        "\\\\",
        "\\n",
        "\\u000a",
        " act=allowed",
        "^eventId=0000000000000000-7",
        "{",
        '{"',
        "}",
        "<14>1 ",
    ),
    *(
        "CEF:0|",
        "LEEF:2.0|",
        ' externalId=0000000000000000-7 "',
        "\n<14>1 2026-01-01T00:00:00Z h sealane - - - ok",
        "é",
    ),
    *("…", "\U0001d54a", "x|act=…\n<14>1 2026", "a" * 200),
)

hostile_text = st.lists(st.sampled_from(PIECES) | st.text(st.characters(exclude_categories=["Cs"]), max_size=12)).map(
    lambda pieces: "".join(pieces)[:1024] or "x"
)


@st.composite
def hostile_entries(draw: st.DrawFn) -> LogEntry:
    """An entry in which all that somebody can choose is hostile."""
    actor = Actor(draw(hostile_text), draw(hostile_text), draw(hostile_text), draw(hostile_text), (draw(hostile_text),))
    policies = [{"id": draw(hostile_text)}]
    return log_entry(
        draw(st.integers(0, 2**30)),
        kind=draw(st.sampled_from(["migration.decision", "migration.receipt", "siem.degraded", "x.y"])),
        actor=actor,
        vm=Vm(VM_ID, draw(hostile_text)),
        migration_id=draw(hostile_text),
        reason=draw(hostile_text),
        outcome=draw(st.sampled_from(["allowed", "denied", None])),
        details={"client_address": draw(hostile_text), "decision": {"policies": policies, "bundle_digest": "ab" * 32}},
    )


def document(**changes: Any) -> Document:
    """One ordinary document."""
    return document_of(log_entry(7, **changes))


def body(**changes: Any) -> dict[str, Any]:
    """Its body."""
    return document(**changes).body
