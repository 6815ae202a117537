"""A bundle's own tests: TOML tables of made-up people, VMs and hosts, and cases that say what must be decided.

```toml
[people.olga]                                        # tables are shared by all test files of the bundle
groups = ["S-1-5-21-1-2-3-1104"]                     # or groups_known = false
[vms.ledger]
zone = "production"
classification = "restricted"
[hosts.fra1]
zone = "production"
jurisdiction = "DE"
site = "fra"
[[case]]
name = "production operators move production VMs"
action = "MigrateVm"
person = "olga"
vm = "ledger"
source = "fra1"
destination = "fra2"
expect = "allow"
by = ["production-operators-move"]                   # optional: exactly these policies determine it
```
Errors: BundleRefused, naming file and case; the policy author must act.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from policy.decision import Decision, evaluate
from policy.errors import BundleRefused, FactRefused
from policy.facts import (
    ACTIONS,
    CLIENT_CERTIFICATE,
    Context,
    HostFacts,
    Person,
    Protection,
    Provenance,
    Question,
    VmFacts,
    VmProvenance,
)
from policy.request import entities_of, request_of
from policy.rules import Rules

_NOON: Final = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)  # a Monday; cases that depend on the time state their own
_VM_NAMESPACE: Final = uuid.UUID("5ea1a9e0-0000-4000-8000-000000000000")

T = TypeVar("T")


class PersonTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    issuer: str = "https://issuer.test"
    name: str | None = None
    groups: tuple[str, ...] = ()
    groups_known: bool = True
    authenticated_by: str = "oidc"
    actor: str | None = None


class VmTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`source` and `age_seconds` are of zone, classification and tags. `devices` left out: nobody reports them."""

    uuid: str | None = None
    zone: str
    classification: str
    tags: tuple[str, ...] = ()
    devices: tuple[str, ...] | None = None
    source: str = "inventory"
    age_seconds: int = 0


class HostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    spiffe_id: str | None = None
    site: str
    zone: str
    jurisdiction: str
    address: str = "192.0.2.1:7443"
    source: str = "inventory"
    age_seconds: int = 0


class ProtectionTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    tls_version: str = "TLSv1.3"
    key_exchange: str = "X25519MLKEM768"
    lane_cipher: str = "AES-256-GCM"
    vm_binding: bool = True


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One question and what must come of it. `vm`, `source`, `destination` left out: unknown to the inventory."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    action: str
    person: str
    vm: str | None = None
    source: str | None = None
    destination: str | None = None
    protection: ProtectionTable = ProtectionTable()
    ports: tuple[str, ...] = ("memory",)
    time: datetime = _NOON
    reason_given: bool = True
    own_migration: bool = False
    own_request: bool = False
    requester: str | None = None
    placement_source: str = "report"
    placement_age_seconds: int = 0
    expect: Literal["allow", "deny"]
    by: tuple[str, ...] | None = None


class CaseFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    people: dict[str, PersonTable] = {}
    vms: dict[str, VmTable] = {}
    hosts: dict[str, HostTable] = {}
    case: tuple[Case, ...] = ()


def run_cases(rules: Rules, texts: Mapping[str, str]) -> int:
    """Run every case of the test files (name → TOML text); returns how many. The first that fails raises."""
    files = {name: _decode(name, text) for name, text in texts.items()}
    people = _merge(files, lambda file: file.people)
    vms = _merge(files, lambda file: file.vms)
    hosts = _merge(files, lambda file: file.hosts)
    count = 0
    for name, file in files.items():
        for case in file.case:
            question = _question(name, case, people, vms, hosts)
            decision = evaluate(rules, "", request_of(question), entities_of(question))
            _check(name, case, decision)
            count += 1
    return count


def _decode(name: str, text: str) -> CaseFile:
    try:
        return msgspec.toml.decode(text, type=CaseFile)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BundleRefused(name, str(error)) from error


def _merge(files: Mapping[str, CaseFile], tables: Callable[[CaseFile], Mapping[str, T]]) -> dict[str, T]:
    merged: dict[str, T] = {}
    for name, file in files.items():
        for key, table in tables(file).items():
            if key in merged:
                raise BundleRefused(name, f"{key!a} is already defined in another test file")
            merged[key] = table
    return merged


def _question(
    file: str,
    case: Case,
    people: Mapping[str, PersonTable],
    vms: Mapping[str, VmTable],
    hosts: Mapping[str, HostTable],
) -> Question:
    def of(tables: Mapping[str, T], key: str) -> T:
        if key not in tables:
            raise BundleRefused(file, f"case {case.name!a}: {key!a} is not defined in any test file")
        return tables[key]

    def host(key: str | None) -> HostFacts | None:
        return None if key is None else _host(key, of(hosts, key))

    try:
        return Question(
            action=case.action,
            person=_person(case.person, of(people, case.person)),
            vm=None if case.vm is None else _vm(case.vm, of(vms, case.vm)),
            source=host(case.source),
            destination=host(case.destination),
            context=Context(
                time=case.time,
                reason_given=case.reason_given,
                protection=Protection(**msgspec.structs.asdict(case.protection)),
                ports=frozenset(case.ports),
                own_migration=case.own_migration,
                own_request=case.own_request,
                placement=Provenance(case.placement_source, case.placement_age_seconds),
            ),
            requester=None if case.requester is None else _person(case.requester, of(people, case.requester)),
        )
    except FactRefused as error:
        raise BundleRefused(file, f"case {case.name!a}: {error}") from error


def _person(key: str, table: PersonTable) -> Person:
    groups = frozenset(table.groups) if table.groups_known else None
    subject = f"{table.issuer}/{key}" if table.authenticated_by == CLIENT_CERTIFICATE else f"{table.issuer}#{key}"
    return Person(subject, table.issuer, table.name or key, groups, table.authenticated_by, actor=table.actor)


def _vm(key: str, table: VmTable) -> VmFacts:
    made_up = table.uuid or str(uuid.uuid5(_VM_NAMESPACE, key))
    told = Provenance(table.source, table.age_seconds)
    devices = None if table.devices is None else frozenset(table.devices)
    provenance = VmProvenance(told, told, told, Provenance("report", 0))
    tags = frozenset(table.tags)
    return VmFacts(made_up, key, table.zone, table.classification, tags, devices=devices, provenance=provenance)


def _host(key: str, table: HostTable) -> HostFacts:
    spiffe_id = table.spiffe_id or f"spiffe://bundle.test/host/{key}"
    told = Provenance(table.source, table.age_seconds)
    return HostFacts(spiffe_id, key, table.site, table.zone, table.jurisdiction, table.address, provenance=told)


def _check(file: str, case: Case, decision: Decision) -> None:
    reasons = {reason.id for reason in decision.reasons}
    outcome = "allow" if decision.allowed else "deny"
    if outcome != case.expect:
        why = f"by {', '.join(sorted(reasons))}" if decision.allowed else decision.denied_because
        raise BundleRefused(file, f"case {case.name!a} expects {case.expect}, but it is {outcome}: {why}")
    if case.by is not None and set(case.by) != reasons:
        expected, found = (", ".join(sorted(ids)) or "no policy" for ids in (case.by, reasons))
        raise BundleRefused(file, f"case {case.name!a} expects {expected} to determine it, but it is {found}")


def probe_questions() -> tuple[Question, ...]:
    """One question for each action with every fact present: a schema that takes them takes what Sealane will send."""
    host = _host("probe", HostTable(site="probe", zone="probe", jurisdiction="probe"))
    vm = _vm("probe", VmTable(zone="probe", classification="probe", tags=("probe",), devices=("probe",)))
    person = _person("probe", PersonTable(actor="https://issuer.test#probe"))
    asks = _person("probe-requester", PersonTable())
    context = Context(time=_NOON)
    return tuple(Question(action, person, vm, host, host, context, requester=asks) for action in ACTIONS)
