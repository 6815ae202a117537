"""A bundle's own tests in YAML: made-up people, VMs and hosts, and cases that say what must be decided.

```yaml
people:                                              # of all test files of the bundle
  olga:
    groups: [S-1-5-21-1-2-3-1104]                    # or groups_known: false
vms:
  ledger:
    zone: production
    classification: restricted
hosts:
  fra1:
    zone: production
    jurisdiction: DE
    site: fra
cases:
  - name: production operators move production VMs
    action: MigrateVm
    person: olga
    vm: ledger
    source: fra1
    destination: fra2
    expect: allow
    by: [production-operators-move]                  # optional: exactly these policies determine it
```
The YAML is a strict subset (`policy.yaml_text`). Errors: BundleRefused, naming file, line and case; the policy author
must act.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
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
from policy.settings import SettingRefused, convert_settings
from policy.told import Address, Label, SpiffeId, Uuid
from policy.yaml_text import Document, NotStrict, decode

_NOON: Final = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)  # a Monday; cases that depend on the time state their own
_VM_NAMESPACE: Final = uuid.UUID("5ea1a9e0-0000-4000-8000-000000000000")

# A text, because YAML has no moments of its own here.
Moment = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)\Z",
        description='a moment with its time zone, such as "2026-12-24T18:00:00Z"',
    ),
]

T = TypeVar("T")
F = TypeVar("F")


class PersonTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    issuer: str = "https://issuer.test"
    name: str | None = None
    groups: tuple[str, ...] = ()
    groups_known: bool = True
    authenticated_by: str = "oidc"
    actor: str | None = None


class VmTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`source` and `age_seconds` are of zone, classification and tags. `devices` left out: nobody reports them."""

    uuid: Uuid | None = None
    zone: Label
    classification: Label
    tags: tuple[Label, ...] = ()
    devices: tuple[str, ...] | None = None
    source: str = "inventory"
    age_seconds: int = 0


class HostTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    spiffe_id: SpiffeId | None = None
    site: Label
    zone: Label
    jurisdiction: Label
    address: Address = "192.0.2.1:7443"
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
    time: Moment | None = None
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
    cases: tuple[Case, ...] = ()


@dataclass(frozen=True, slots=True)
class Facts:
    """All people, VMs and hosts of the test files, by the names that cases use."""

    people: Mapping[str, Person]
    vms: Mapping[str, VmFacts]
    hosts: Mapping[str, HostFacts]


@dataclass(frozen=True, slots=True)
class Posed:
    """A case as a question, and where it stands."""

    file: str
    line: int
    case: Case
    question: Question


def run_cases(rules: Rules, texts: Mapping[str, str]) -> int:
    """Run every case of the test files (name → YAML text); returns how many. The first that fails raises."""
    posed = read_cases(texts)
    for each in posed:
        decision = evaluate(rules, "", request_of(each.question), entities_of(each.question))
        if failure := mismatch(each.case, decision):
            raise BundleRefused(each.file, f"line {each.line}: {failure}")
    return len(posed)


def read_cases(texts: Mapping[str, str]) -> list[Posed]:
    """All cases of the test files, none of them run. Raises BundleRefused."""
    files = {name: _decode(name, text) for name, text in texts.items()}
    facts = _facts({name: file for name, (file, _) in files.items()})
    posed = []
    for name, (file, document) in files.items():
        for number, case in enumerate(file.cases):
            line, _ = document.place(("cases", number))
            posed.append(Posed(name, line, case, _question(name, line, case, facts)))
    return posed


def read_facts(texts: Mapping[str, str]) -> Facts:
    """What the cases speak of, without them. Raises BundleRefused."""
    return _facts({name: _decode(name, text)[0] for name, text in texts.items()})


def _decode(name: str, text: str) -> tuple[CaseFile, Document]:
    try:
        document = decode(text)
    except NotStrict as error:
        raise BundleRefused(name, str(error)) from error
    try:
        return convert_settings(document.value, CaseFile), document
    except SettingRefused as error:
        line, column = document.place(error.path)
        raise BundleRefused(name, f"line {line}, column {column}: {error}") from None


def _facts(files: Mapping[str, CaseFile]) -> Facts:
    return Facts(
        _merge(files, lambda file: file.people, _person),
        _merge(files, lambda file: file.vms, _vm),
        _merge(files, lambda file: file.hosts, _host),
    )


def _merge(
    files: Mapping[str, CaseFile], tables: Callable[[CaseFile], Mapping[str, T]], make: Callable[[str, T], F]
) -> dict[str, F]:
    merged: dict[str, F] = {}
    for name, file in files.items():
        for key, table in tables(file).items():
            if key in merged:
                raise BundleRefused(name, f"{key!a} is already defined in another test file")
            try:
                merged[key] = make(key, table)
            except FactRefused as error:
                raise BundleRefused(name, f"{key!a}: {error}") from error
    return merged


def _question(file: str, line: int, case: Case, facts: Facts) -> Question:
    def of(made: Mapping[str, F], key: str) -> F:
        if key not in made:
            raise BundleRefused(file, f"line {line}: case {case.name!a}: {key!a} is not defined in any test file")
        return made[key]

    def host(key: str | None) -> HostFacts | None:
        return None if key is None else of(facts.hosts, key)

    try:
        return Question(
            action=case.action,
            person=of(facts.people, case.person),
            vm=None if case.vm is None else of(facts.vms, case.vm),
            source=host(case.source),
            destination=host(case.destination),
            context=Context(
                time=_NOON if case.time is None else _moment(case.time),
                reason_given=case.reason_given,
                protection=Protection(**msgspec.structs.asdict(case.protection)),
                ports=frozenset(case.ports),
                own_migration=case.own_migration,
                own_request=case.own_request,
                placement=Provenance(case.placement_source, case.placement_age_seconds),
            ),
            requester=None if case.requester is None else of(facts.people, case.requester),
        )
    except FactRefused as error:
        raise BundleRefused(file, f"line {line}: case {case.name!a}: {error}") from error


def _moment(text: str) -> datetime:
    """Raises FactRefused."""
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise FactRefused("time", f"{text} is no moment: {error}") from None


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


def mismatch(case: Case, decision: Decision) -> str:
    """What is otherwise than the case expects, in words; "" if nothing is."""
    reasons = {reason.id for reason in decision.reasons}
    outcome = "allow" if decision.allowed else "deny"
    if outcome != case.expect:
        why = f"by {', '.join(sorted(reasons))}" if decision.allowed else decision.denied_because
        return f"case {case.name!a} expects {case.expect}, but it is {outcome}: {why}"
    if case.by is not None and set(case.by) != reasons:
        expected, found = (", ".join(sorted(ids)) or "no policy" for ids in (case.by, reasons))
        return f"case {case.name!a} expects {expected} to determine it, but it is {found}"
    return ""


def probe_questions() -> tuple[Question, ...]:
    """One question for each action with every fact present: a schema that takes them takes what Sealane will send."""
    host = _host("probe", HostTable(site="probe", zone="probe", jurisdiction="probe"))
    vm = _vm("probe", VmTable(zone="probe", classification="probe", tags=("probe",), devices=("probe",)))
    person = _person("probe", PersonTable(actor="https://issuer.test#probe"))
    asks = _person("probe-requester", PersonTable())
    context = Context(time=_NOON)
    return tuple(Question(action, person, vm, host, host, context, requester=asks) for action in ACTIONS)
