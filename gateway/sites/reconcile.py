"""Two sites' logs held against each other: each has its half of every migration between them. Pure.

By migration: our gateway's decision and what it noted of the other's, that one's decision, and one receipt in each
log. What one of them has and the other lacks, or tells otherwise, is a finding: a gateway or a host that lies, a log
that was cut, or a permit that was used behind one site's back.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from gateway.host_receipts import GRACE_SECONDS, LACKS_MEMORY, different_counts, kind_of, other_than_sent
from gateway.sites.shared import read_body
from policy.permit import trust_domain_of
from transport.errors import UNDECODABLE

KINDS: Final = ("migration.decision", "migration.other_site", "migration.receipt")
_ARRIVED: Final = frozenset({"running", "completed", "handed-over"})
_SAME_IN_RECEIPTS: Final = (
    *("migration_id", "source", "destination", "vm"),
    *("tls", "source_fingerprint", "destination_fingerprint"),
)
_OF_RECEIPT: Final = ("role", "jti", "body", "body_sha256", "signature", "chain")

Numbered = tuple[int, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class SiteFinding:
    """`what` is missing_here, missing_there, one, differ or uncounted; `record`: of our log, None where it has none."""

    what: str
    migration_id: str
    record: int | None
    other_record: int | None
    why: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)  # type: ignore[no-any-return]  # fifty times as fast as `asdict`


@dataclass(frozen=True, slots=True)
class SiteReport:
    """`pending` are not due yet. Findings by migration, ours first."""

    migrations: int
    matched: int
    pending: int
    findings: tuple[SiteFinding, ...]

    def counts(self) -> dict[str, int]:
        kinds = ("missing_here", "missing_there", "one", "differ", "uncounted")
        found = {what: sum(one.what == what for one in self.findings) for what in kinds}
        return {"migrations": self.migrations, "matched": self.matched, "pending": self.pending, **found}


@dataclass(slots=True)
class _Half:
    """What one log has of a migration."""

    index: int
    decision: Mapping[str, Any]
    answer: Mapping[str, Any] | None = None  # what the source's gateway noted of the other's
    receipts: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def site(self) -> Mapping[str, Any]:
        return self.decision["details"]["site"]  # type: ignore[no-any-return]

    @property
    def permit(self) -> Mapping[str, Any] | None:
        found = self.decision["details"].get("permit")
        return found if isinstance(found, Mapping) else None


def shared_with(trust_domain: str, records: Iterable[Numbered]) -> list[tuple[int, dict[str, Any]]]:
    """Of these records (JSON, oldest first) those of migrations to or from that site, and of each what concerns both.

    Who asked, and by which policy it was decided, stays here.
    """
    shared: list[tuple[int, dict[str, Any]]] = []
    known: set[str] = set()
    for index, record in records:
        details, migration_id = record.get("details") or {}, record.get("migration_id") or ""
        site = details.get("site")
        if isinstance(site, Mapping) and site.get("trust_domain") == trust_domain:
            known.add(migration_id)
        if migration_id in known:
            shared.append((index, brief(record)))
    return shared


def brief(record: Mapping[str, Any]) -> dict[str, Any]:
    """What of a record concerns both sites; the same of what was cut already."""
    details = record.get("details") or {}
    told = {name: record.get(name) for name in ("kind", "outcome", "migration_id", "time", "source", "destination")}
    told["vm"] = {"uuid": (record.get("vm") or {}).get("uuid")}
    if record["kind"] == "migration.receipt":
        told["details"] = {name: details.get(name) for name in _OF_RECEIPT}
    else:
        names = ("site", "permit", *(name for name in details if name.startswith(("other_", "permit_"))))
        told["details"] = {name: details.get(name) for name in names}
    return told


def halves_between(
    ours: Sequence[Numbered], theirs: Sequence[Numbered]
) -> tuple[list[tuple[int, dict[str, Any]]], list[tuple[int, dict[str, Any]]]]:
    """Of two whole logs, what each has of migrations with the other: by the trust domains of the hosts in them.

    A log is of the trust domain on whose side its records with `site` are. Migrations with third sites are left out.
    """
    domains = [_own_domains(records) for records in (ours, theirs)]
    return (
        [each for domain in sorted(domains[1]) for each in shared_with(domain, ours)],
        [each for domain in sorted(domains[0]) for each in shared_with(domain, theirs)],
    )


def _own_domains(records: Iterable[Numbered]) -> set[str]:
    found: set[str] = set()
    for _, record in records:
        site = (record.get("details") or {}).get("site")
        if isinstance(site, Mapping) and (host := record.get(str(site.get("role")))) is not None:
            found.add(trust_domain_of(str(host)))
    return found


def compare_sites(ours: Iterable[Numbered], theirs: Iterable[Numbered], now: int) -> SiteReport:
    """Over `shared_with` of either log; `now` in unix seconds."""
    here, there = _halves(ours), _halves(theirs)
    due = pending = 0
    findings: list[SiteFinding] = []
    for migration_id in dict.fromkeys((*here, *there)):
        mine, other = here.get(migration_id), there.get(migration_id)
        if _never_left(mine, other):
            continue
        if _is_pending(mine, other, now):
            pending += 1
            continue
        due += 1
        findings += _findings(migration_id, mine, other)
    differing = len({one.migration_id for one in findings})
    return SiteReport(due + pending, due - differing, pending, tuple(findings))


def _halves(records: Iterable[Numbered]) -> dict[str, _Half]:
    halves: dict[str, _Half] = {}
    for index, record in records:
        migration_id = record.get("migration_id") or ""
        match record["kind"]:
            case "migration.decision":
                # Of one id the first counts: a second request for it is refused, and on record as that.
                halves.setdefault(migration_id, _Half(index, record))
            case "migration.other_site" if migration_id in halves:
                halves[migration_id].answer = record
            case "migration.receipt" if migration_id in halves:
                halves[migration_id].receipts.append(record["details"])
    return halves


def _never_left(mine: _Half | None, other: _Half | None) -> bool:
    """Denied before the other site was asked, or it never answered: its log need not know."""
    half = mine or other
    if half is None or (mine is not None and other is not None):
        return False
    return half.permit is None or (half.site["role"] == "source" and not _was_admitted(half))


def _is_pending(mine: _Half | None, other: _Half | None, now: int) -> bool:
    """A receipt may yet come; and what was just decided may have reached one log and not yet the other."""
    halves = [half for half in (mine, other) if half is not None]
    permits = [half.permit for half in halves if half.permit is not None]
    is_complete = mine is not None and other is not None and all(half.receipts for half in halves)
    return not is_complete and any(int(each["session_until"]) + GRACE_SECONDS > now for each in permits)


def _findings(migration_id: str, mine: _Half | None, other: _Half | None) -> Iterator[SiteFinding]:
    if mine is None or other is None:
        what = "missing_here" if mine is None else "missing_there"
        unknown = "only one of the two logs knows of this migration"
        yield SiteFinding(what, migration_id, mine.index if mine else None, other.index if other else None, (unknown,))
        return
    records = mine.index, other.index
    source, destination = (mine, other) if mine.site["role"] == "source" else (other, mine)
    if why := tuple(_decisions_differ(source, destination)):
        yield SiteFinding("differ", migration_id, *records, why)
    left, arrived = _newest(source, "source"), _newest(destination, "destination")
    if _was_admitted(source) and (left is None) != (arrived is None):
        missing = "source" if left is None else "destination"
        yield SiteFinding("one", migration_id, *records, (f"the {missing}'s site has no receipt of its host",))
    elif left is not None and arrived is not None and (why := tuple(_receipts_differ(left, arrived))):
        yield SiteFinding(kind_of(why), migration_id, *records, why)


def _was_admitted(source: _Half) -> bool:
    return source.answer is not None and source.answer.get("outcome") == "allowed"


def _decisions_differ(source: _Half, destination: _Half) -> Iterator[str]:
    if (source.site["role"], destination.site["role"]) != ("source", "destination"):
        yield "both logs say that they are of the same side"
        return
    for name in ("source", "destination"):
        if source.decision.get(name) != destination.decision.get(name):
            yield f"they name another {name}"
    if source.decision["vm"].get("uuid") != destination.decision["vm"].get("uuid"):
        yield "they name another VM"
    permits = source.permit, destination.permit
    if permits[0] is None:
        yield "the destination's gateway was asked for what the source's did not permit"
        return
    said = source.answer["details"] if source.answer is not None else {}
    if permits[0]["jti"] != destination.site.get("other_jti"):
        yield "the destination's gateway was shown another permit than the source's logged"
    if _was_admitted(source) != (permits[1] is not None):
        yield "the source's gateway has another answer on record than the destination's gave"
    elif permits[1] is not None and said.get("other_jti") != permits[1]["jti"]:
        yield "the source's gateway got another permit than the destination's logged"
    if said and said.get("permit_sha256") != destination.site.get("other_permit_sha256"):
        yield "they have another digest of the source's permit"


def _newest(half: _Half, role: str) -> Mapping[str, Any] | None:
    return next((each for each in reversed(half.receipts) if each.get("role") == role), None)


def _receipts_differ(source: Mapping[str, Any], destination: Mapping[str, Any]) -> Iterator[str]:
    try:
        ours, theirs = (read_body(each["body"]) for each in (source, destination))
    except (KeyError, TypeError, *UNDECODABLE):
        yield "a receipt cannot be read"
        return
    outcomes = ours.get("outcome"), theirs.get("outcome")
    if (outcomes[0] in _ARRIVED) != (outcomes[1] in _ARRIVED):
        yield f"the source says {outcomes[0]}, the destination {outcomes[1]}"
    if outcomes[0] == "completed" and theirs.get("lacks_memory") is True:
        yield LACKS_MEMORY
    for name in _SAME_IN_RECEIPTS:
        mine, others = ours.get(name), theirs.get(name)
        if mine != others and mine is not None and others is not None:
            yield f"the receipts name another {name}"
    for one, other, role in ((ours, theirs, "source"), (theirs, ours, "destination")):
        if one.get("permit_sha256") != other.get("other_permit_sha256"):
            yield f"the {role}'s permit is another in its peer's receipt"
    yield from other_than_sent(ours, source, theirs, destination)
    if outcomes[0] in _ARRIVED and outcomes[1] in _ARRIVED:
        yield from different_counts(ours, theirs)
