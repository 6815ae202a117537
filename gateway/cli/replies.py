"""The shapes of the gateway's answers, as far as the command reads them.

Unknown members are let through (a newer gateway may say more); a member of the wrong type is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from transport.errors import UNDECODABLE

# Bounded, so that no answer can hold a number that arithmetic here chokes on.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class ApiError(msgspec.Struct, frozen=True):
    """`{"error": {...}}` of every call."""

    code: str = "unknown"
    message: str = ""
    who_must_act: str = ""
    next_step: str = ""


class ErrorReply(msgspec.Struct, frozen=True):
    """The envelope of ApiError. What was recorded before it failed has the index of its record."""

    error: ApiError
    record_index: Count | None = None


class EnrolmentTokenReply(msgspec.Struct, frozen=True):
    """`expires` in Unix seconds."""

    host: str
    token: str
    expires: int


class RolloverProgress(msgspec.Struct, frozen=True):
    """`lacking`: why some of the hosts that are not ready are not. `waits`: what else the next step waits for."""

    hosts: int
    ready: int
    lacking: dict[str, str]
    waits: list[str] = []


class RolloverReply(msgspec.Struct, frozen=True):
    """`left`: what to do with what a step leaves behind."""

    what: str
    stage: str
    progress: RolloverProgress | None
    facts: dict[str, dict[str, str]]
    next_step: str
    left: str = ""


class RolloversReply(msgspec.Struct, frozen=True):
    rollovers: list[RolloverReply]


class TokenReply(msgspec.Struct, frozen=True):
    """expires_in: seconds."""

    access_token: str
    expires_in: Count


class OfferedIssuer(msgspec.Struct, frozen=True):
    """Where the gateway says that people sign in."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...] = ("openid",)
    resource: str | None = None


class IdentityReply(msgspec.Struct, frozen=True):
    """local: the gateway has people of its own, with passwords."""

    local: bool = True
    issuers: tuple[OfferedIssuer, ...] = ()


class Permission(msgspec.Struct, frozen=True):
    """What policy says of one action."""

    allowed: bool
    denied_because: str | None = None


class WhoamiReply(msgspec.Struct, frozen=True):
    """groups: None where they are unknown. groups_from: in words. expires_at: unix seconds.

    actor: who acts for the person.
    """

    id: str
    name: str
    issuer: str
    authenticated_by: str
    groups: tuple[str, ...] | None = None
    groups_from: str | None = None
    groups_unknown_because: str | None = None
    expires_at: Count | None = None
    permissions: dict[str, Permission] = {}
    actor: str | None = None


class PolicyReason(msgspec.Struct, frozen=True):
    """One policy that took part. effect: `permit` or `forbid`."""

    id: str
    effect: str
    reason: str | None = None


class Fact(msgspec.Struct, frozen=True):
    """What the inventory said of a VM or host for a decision: which source, and how long ago it was confirmed."""

    of: str
    fact: str
    value: str | tuple[str, ...]
    source: str
    age_seconds: Count


class Decision(msgspec.Struct, frozen=True):
    """What policy said, and which policies said so. observed: let through although policy says no."""

    allowed: bool
    denied_because: str | None = None
    policies: tuple[PolicyReason, ...] = ()
    errors: tuple[str, ...] = ()
    bundle_digest: str = ""
    observed: bool = False
    facts: tuple[Fact, ...] = ()


class FindingReply(msgspec.Struct, frozen=True):
    code: str
    severity: str
    who_must_act: str
    message: str


class PreflightReply(msgspec.Struct, frozen=True):
    """What both hosts say against a move."""

    can_move: bool
    findings: tuple[FindingReply, ...] = ()


class DecisionReply(msgspec.Struct, frozen=True):
    """Of a check, and of a request for a migration (then with its id)."""

    decision: Decision
    record_index: Count
    migration_id: str | None = None
    preflight: PreflightReply | None = None
    explanation: tuple[str, ...] = ()


class VmName(msgspec.Struct, frozen=True):
    uuid: str
    name: str


class RefusedThere(msgspec.Struct, frozen=True):
    because: str
    hosts: tuple[str, ...]


class ProspectsReply(msgspec.Struct, frozen=True):
    """One VM of a host that is to be emptied. destinations: where it may go, best first."""

    vm: VmName
    destinations: tuple[str, ...]
    refused: tuple[RefusedThere, ...]
    cannot: str | None = None


class DrainReply(msgspec.Struct, frozen=True):
    """POST /v1/drain/check. `links`: hosts of another site than the one that is emptied, with that site. `is_heard`:
    whether the host's own relay says what runs there."""

    host: str
    vms: Count
    may_move: Count
    hosts: Count
    prospects: tuple[ProspectsReply, ...]
    record_index: Count
    links: dict[str, str] = {}
    is_heard: bool = True


class Progress(msgspec.Struct, frozen=True, rename={"pass_number": "pass"}):
    """Bytes and bytes per second as QEMU counts them; pass: of the pre-copy, from 1."""

    transferred_bytes: Count = 0
    remaining_bytes: Count = 0
    total_bytes: Count = 0
    rate_bytes_per_second: Count = 0
    pass_number: Count = 0
    downtime_ms: Count | None = None
    message: str | None = None


class SourceReply(msgspec.Struct, frozen=True):
    """One source of the inventory. age_seconds: since it was last confirmed; None: never."""

    name: str
    believed: bool
    age_seconds: Count | None = None
    failure: str | None = None
    vms: Count = 0
    hosts: Count = 0
    digest: str | None = None


class HostReply(msgspec.Struct, frozen=True):
    """A host. placement: none (its relay reports nothing), fresh or stale. revoked: its certificate, for all known."""

    name: str
    zone: str
    relay_reachable: bool
    placement: str
    addresses: tuple[str, ...] = ()
    spiffe_id: str = ""
    libvirt_name: str = ""
    placement_age_seconds: Count | None = None
    guests: Count | None = None
    guests_not_in_inventory: Count = 0
    revoked: bool = False


class HostsReply(msgspec.Struct, frozen=True):
    """GET /v1/hosts."""

    hosts: tuple[HostReply, ...]
    more: bool = False


class PlacedVmReply(msgspec.Struct, frozen=True):
    """A VM and where it is; placed_by: report, receipt, inventory or none. problem: reports contradict."""

    name: str
    uuid: str
    zone: str
    host: str | None
    placed_by: str
    age_seconds: Count | None = None
    problem: str | None = None
    by_libvirt: bool = False


class VmsReply(msgspec.Struct, frozen=True):
    """GET /v1/vms."""

    vms: tuple[PlacedVmReply, ...]
    more: bool = False


class InventoryReply(msgspec.Struct, frozen=True):
    """GET /v1/inventory. vms, hosts: how many are known; problems: what an operator should correct."""

    sources: tuple[SourceReply, ...]
    vms: Count
    hosts: Count
    unknown_vms: Count = 0
    problems: tuple[str, ...] = ()


class ToldReply(msgspec.Struct, frozen=True):
    """A fact with where it is from."""

    value: str | tuple[str, ...]
    source: str
    age_seconds: Count


class NamedVm(msgspec.Struct, frozen=True):
    name: str
    uuid: str
    facts: dict[str, ToldReply]
    host: str | None = None


class NamedHost(msgspec.Struct, frozen=True):
    name: str
    spiffe_id: str
    facts: dict[str, ToldReply]


class NamedReply(msgspec.Struct, frozen=True):
    """GET /v1/inventory/named."""

    vm: NamedVm | None = None
    host: NamedHost | None = None
    unknown_because: str | None = None


class VmOfMigration(msgspec.Struct, frozen=True):
    uuid: str | None = None
    name: str | None = None


class MigrationReply(msgspec.Struct, frozen=True):
    """GET /v1/migrations/{id}."""

    migration_id: str
    state: str
    progress: Progress | None = None
    outcome: str | None = None
    message: str | None = None
    receipts: tuple[dict[str, Any], ...] = ()
    revoked: Revoked | None = None
    vm: VmOfMigration | None = None
    source: str | None = None


class VmOfGrant(msgspec.Struct, frozen=True):
    uuid: str
    name: str


class NamedPerson(msgspec.Struct, frozen=True):
    id: str
    name: str


# Until the year 9999, so that it can be shown.
Moment = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799)]


class GrantReply(msgspec.Struct, frozen=True, kw_only=True):
    """One breaking of glass. Times are unix seconds; until: None while nobody has approved it."""

    id: str
    state: str
    vm: VmOfGrant
    source: str
    destination: str
    requested_by: NamedPerson
    requested_at: Moment
    ticket: str
    reason: str
    minutes: Count
    ports: tuple[str, ...]
    answer_until: Moment
    approved_by: str | None = None
    until: Moment | None = None
    ended_by: str | None = None
    ended_because: str | None = None
    record_index: Count


class GrantsReply(msgspec.Struct, frozen=True):
    """GET /v1/break-glass."""

    break_glass: tuple[GrantReply, ...]


class Revoked(msgspec.Struct, frozen=True):
    """Why a running migration would not be allowed any more, and what the policy obliges to."""

    obligation: str
    because: str


def receipt_bodies(reply: MigrationReply) -> list[Mapping[str, Any]]:
    """The bodies of the receipts, source first; what is not a JSON object is left out."""
    bodies = [_body(receipt) for receipt in reply.receipts]
    found = [body for body in bodies if body is not None]
    return sorted(found, key=lambda body: str(body.get("role")) != "source")


def _body(receipt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    body = receipt.get("body", receipt)
    if isinstance(body, str):
        try:
            body = msgspec.json.decode(body)
        except UNDECODABLE:
            return None
    return body if isinstance(body, Mapping) else None
