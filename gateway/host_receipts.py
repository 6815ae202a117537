"""Receipts of source and destination, held against each other and against the permits that were given: pure.

Every permit should end in two receipts that tell one story. After its time (`session_until`, and a grace for spooled
receipts) a migration with one, with none, or with two that differ is a finding: a host that keeps silent, one that
lies, or a permit that nobody used. Which of them, a person must find out; that there is none speaks for all the others.
A relay that was restarted in a session lacks its counts, and says so: that is no contradiction, and a finding all the
same, of a kind of its own, or a host could hide by it that it carried something else.
A permit that was withdrawn has none, and must have none: no relay ever had it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from gateway.counted import counted
from gateway.sites.shared import read_body
from transport.errors import UNDECODABLE

KINDS: Final = ("migration.decision", "evacuation.decision", "migration.withdrawn", "migration.receipt")
GRACE_SECONDS: Final = 3_600
MAX_RECORDED_FINDINGS: Final = 100

LACKS_MEMORY: Final = "the source says completed, the destination that memory had not come"
UNCOUNTED: Final = {
    role: f"the {role}'s relay says that it was restarted in the session, so that it does not know what it carried"
    for role in ("source", "destination")
}
ANOTHER_RECEIPT: Final = {
    role: f"the {role} got another receipt from its peer than the gateway did" for role in ("source", "destination")
}
BEFORE_RESTART: Final = {role: f"{why}: before that was restarted, maybe" for role, why in ANOTHER_RECEIPT.items()}
_EXPLAINED: Final = frozenset({*UNCOUNTED.values(), *BEFORE_RESTART.values()})

_ARRIVED: Final = frozenset({"running", "completed", "handed-over"})
_SAME: Final = (
    *("jti", "permit_sha256", "source", "destination", "vm"),
    *("tls", "source_fingerprint", "destination_fingerprint"),
)

_WHATS: Final = ("none", "one", "differ", "uncounted")
_LOOKED_AT: Final = ("permit", "site", "role", "body", "body_sha256")

Numbered = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Finding:
    """`what` is none, one, differ or uncounted; `record` the decision's index; `why` in words for each difference."""

    what: str
    migration_id: str
    record: int
    vm: str | None
    source: str | None
    destination: str | None
    why: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]  # fifty times as fast as `asdict`


@dataclass(frozen=True, slots=True)
class Report:
    """`permits` were looked at, `pending` are not due yet. Findings in the order of the log."""

    permits: int
    matched: int
    pending: int
    findings: tuple[Finding, ...]

    def counts(self) -> dict[str, int]:
        kinds = {what: sum(one.what == what for one in self.findings) for what in _WHATS}
        return {"permits": self.permits, "matched": self.matched, "pending": self.pending, **kinds}


@dataclass(slots=True)
class _Case:
    index: int
    record: Mapping[str, Any]
    due: int
    is_withdrawn: bool = False
    receipts: list[Mapping[str, Any]] = field(default_factory=list)


class _Permit(msgspec.Struct, frozen=True):
    session_until: Annotated[int, Meta(ge=0, le=2**53)]


class _OfDecision(msgspec.Struct, frozen=True):
    permit: _Permit | None = None
    site: dict[str, Any] | None = None


class _OfReceipt(msgspec.Struct, frozen=True):
    role: Literal["source", "destination"]
    body: str
    body_sha256: str | None = None


def require_record(record: Mapping[str, Any]) -> None:
    """Of one of KINDS in a log that others wrote, that it has what is compared. Raises msgspec.ValidationError."""
    if record["kind"].endswith(".decision"):
        msgspec.convert(record["details"], _OfDecision)
    elif record["kind"] == "migration.receipt":
        msgspec.convert(record["details"], _OfReceipt)


def brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """What `compare_receipts` looks at: of a decision, a hundredth of it."""
    details = record.get("details") or {}
    kept = {name: record.get(name) for name in ("kind", "migration_id", "source", "destination", "vm")}
    return {**kept, "details": {name: details[name] for name in _LOOKED_AT if name in details}}


def compare_receipts(records: Iterable[Numbered], now: int) -> Report:
    """Over records as JSON, oldest first, of KINDS; `now` in unix seconds."""
    cases: dict[str, _Case] = {}
    for index, record in records:
        migration_id, details = record.get("migration_id") or "", record.get("details") or {}
        is_decision = record["kind"] in {"migration.decision", "evacuation.decision"}
        if is_decision and isinstance(permit := details.get("permit"), Mapping):
            if (details.get("site") or {}).get("role"):
                continue  # the other half is in another site's log: `sealane audit reconcile sites`
            cases[migration_id] = _Case(index, record, int(permit["session_until"]) + GRACE_SECONDS)
        elif migration_id not in cases:
            continue
        elif record["kind"] == "migration.withdrawn":
            cases[migration_id].is_withdrawn = True
        elif record["kind"] == "migration.receipt":
            cases[migration_id].receipts.append(details)
    # A permit of an evacuation that nobody used is as it should be, and so is one that nobody got.
    unused = {name for name, each in cases.items() if each.is_withdrawn or _is_of_evacuation(each)}
    cases = {name: each for name, each in cases.items() if each.receipts or name not in unused}
    due = {name: case for name, case in cases.items() if case.due <= now or case.is_withdrawn or _is_complete(case)}
    findings = tuple(finding for name, case in due.items() if (finding := _finding(name, case)) is not None)
    return Report(len(cases), len(due) - len(findings), len(cases) - len(due), findings)


def _is_of_evacuation(case: _Case) -> bool:
    return case.record.get("kind") == "evacuation.decision"


def _is_complete(case: _Case) -> bool:
    return {receipt.get("role") for receipt in case.receipts} == {"source", "destination"}


def _finding(migration_id: str, case: _Case) -> Finding | None:
    roles = [str(receipt.get("role")) for receipt in case.receipts]
    why: tuple[str, ...]
    if case.is_withdrawn:
        what, why = "differ", (f"the {' and the '.join(sorted(set(roles)))} used a permit that was withdrawn",)
    elif not roles:
        what, why = "none", ("neither host has certified what became of this permit",)
    elif len(set(roles)) == 1:
        other = "destination" if roles[0] == "source" else "source"
        what, why = "one", (f"the {other} has certified nothing",)
    else:
        why = tuple(_differences(case.receipts))
        what = kind_of(why)
    if not why:
        return None
    record = case.record
    vm = record.get("vm") or {}
    hosts = (record.get("source"), record.get("destination"))
    return Finding(what, migration_id, case.index, vm.get("name") or vm.get("uuid"), *hosts, why)


def kind_of(why: Collection[str]) -> str:
    """Of a finding about two receipts: differ, or uncounted where a restart explains all of it."""
    return "uncounted" if _EXPLAINED.issuperset(why) else "differ"


def _differences(receipts: list[Mapping[str, Any]]) -> Iterator[str]:
    """Between the newest receipt of each role: after a recovery a host sends a second one."""
    newest = {str(receipt.get("role")): receipt for receipt in receipts}
    try:
        source, destination = (read_body(newest[role]["body"]) for role in ("source", "destination"))
    except (KeyError, TypeError, *UNDECODABLE):
        yield "a receipt cannot be read"
        return
    outcomes = source.get("outcome"), destination.get("outcome")
    if (outcomes[0] in _ARRIVED) != (outcomes[1] in _ARRIVED):
        yield f"the source says {outcomes[0]}, the destination {outcomes[1]}"
    if outcomes[0] == "completed" and destination.get("lacks_memory") is True:
        yield LACKS_MEMORY
    for name in _SAME:
        ours, theirs = source.get(name), destination.get(name)
        if ours != theirs and ours is not None and theirs is not None:
            yield f"they name another {name}"
    yield from other_than_sent(source, newest["source"], destination, newest["destination"])
    if outcomes[0] in _ARRIVED and outcomes[1] in _ARRIVED:
        yield from different_counts(source, destination)


def other_than_sent(
    source: Mapping[str, Any], sent: Mapping[str, Any], destination: Mapping[str, Any], answered: Mapping[str, Any]
) -> Iterator[str]:
    """Whether each end got from its peer what the gateway got: bodies, and the records' details that hold them.

    The source's was sent before it had the destination's, and has that one's digest only as it was kept.
    """
    if (held := source.get("peer_receipt_sha256")) is not None and held != answered.get("body_sha256"):
        yield (BEFORE_RESTART if destination.get("lacks_counts") is True else ANOTHER_RECEIPT)["source"]
    as_sent = msgspec.json.encode({**source, "peer_receipt_sha256": None}, order="sorted")
    known = {sent.get("body_sha256"), hashlib.sha256(as_sent).hexdigest()}
    if (held := destination.get("peer_receipt_sha256")) is not None and held not in known:
        yield (BEFORE_RESTART if source.get("lacks_counts") is True else ANOTHER_RECEIPT)["destination"]


def different_counts(source: Mapping[str, Any], destination: Mapping[str, Any]) -> Iterator[str]:
    """What one end sent, the other received: bytes and frames, channel by channel. Or which end lacks its counts."""
    if source.get("lacks_counts") is True or destination.get("lacks_counts") is True:
        both = {"source": source, "destination": destination}
        yield from (UNCOUNTED[role] for role, body in both.items() if body.get("lacks_counts") is True)
        return
    ours, theirs = ({one["channel"]: one for one in body.get("channels", ())} for body in (source, destination))
    if set(ours) != set(theirs):
        yield f"the source counts {counted(len(ours), 'channel')}, the destination {len(theirs)}"
    digests = {"source": source.get("content_digests"), "destination": destination.get("content_digests")}
    if digests["source"] != digests["destination"]:
        silent = next((role for role, each in digests.items() if each is None), None)
        yield f"the {silent} certifies no content, its peer does" if silent else "they certify different content"
    for channel in sorted(set(ours) & set(theirs)):
        for unit in ("bytes", "frames"):
            for sent, received in (("sent", "received"), ("received", "sent")):
                here, there = ours[channel].get(f"{sent}_{unit}"), theirs[channel].get(f"{received}_{unit}")
                if here != there:
                    yield f"channel {channel}: the source {sent} {here} {unit}, the destination {received} {there}"
