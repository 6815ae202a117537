"""What a running migration stands on: enough of its decision to ask the same question again, hours and restarts later.

Made of the decision's record alone, also when it has just been made, so that a restart knows exactly the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from gateway.sites.told import host_of_entity, vm_of_entity
from policy.errors import FactRefused
from policy.facts import HostFacts, Person, VmFacts
from policy.many_groups import expand_entities


@dataclass(frozen=True, slots=True)
class Standing:
    """`person`: as they were known then. `time`: of the decision; a maintenance window that closes revokes nothing.

    `obligations`: what the policies that permitted it say of a revocation. `observed`: they did not permit it.
    `placed_by`: who said where the VM is. `devices`: as its host's relay reported them then. `post_copy`: whether
    the guest may come to run at the destination before its memory is there. `opens_libvirt`: it was automatic
    admission, which asks the policy for opening libvirt beside the move. `told_*`: what another site said of what our
    inventory does not know, where one took part.
    """

    person: Person
    action: str
    ports: tuple[str, ...]
    reason_given: bool
    time: datetime
    obligations: tuple[str, ...]
    observed: bool
    placed_by: str = "unknown"
    devices: frozenset[str] | None = None
    post_copy: bool = False
    opens_libvirt: bool = False
    told_hosts: Mapping[str, HostFacts] = field(default_factory=dict, hash=False)
    told_vm: VmFacts | None = None


def standing_of(record: Mapping[str, Any]) -> Standing | None:
    """Of a `migration.decision` record (as JSON) that permitted something; None if it does not tell enough."""
    details, actor = record.get("details", {}), record.get("actor")
    context = details.get("policy_request", {}).get("context", {})
    decision = details.get("decision", {})
    if not details.get("permit") or actor is None or not context:
        return None
    try:
        groups, program = _as_decided(actor["id"], details["policy_entities"])
        person = Person(
            actor["id"],
            actor["issuer"] or "",
            actor["name"],
            groups,
            actor["authenticated_by"],
            details.get("account"),
            actor=program,
            told_until=_told_until(details),
        )
        return Standing(
            person=person,
            action=details["action"],
            ports=tuple(context["ports"]),
            reason_given=context["reason_given"],
            time=datetime.fromisoformat(context["time"]["__extn"]["arg"]),
            obligations=_obligations(decision.get("policies", ())),
            observed=bool(decision.get("observed")),
            placed_by=context.get("placement", {}).get("source", "unknown"),
            devices=_devices(details["policy_entities"]),
            post_copy=bool(context.get("post_copy", False)),
            opens_libvirt="asked_by" in details,
            **(_told_by_site(details["policy_entities"]) if details.get("site") else {}),
        )
    except (KeyError, TypeError, ValueError, FactRefused):
        return None


def _told_by_site(entities: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    of_kind = {kind: [e for e in entities if e["uid"]["type"] == f"Sealane::{kind}"] for kind in ("Host", "Vm")}
    hosts = [host for entity in of_kind["Host"] if (host := host_of_entity(entity)) is not None]
    vms = [vm for entity in of_kind["Vm"] if (vm := vm_of_entity(entity)) is not None]
    return {"told_hosts": {host.spiffe_id: host for host in hosts}, "told_vm": vms[0] if vms else None}


def _as_decided(person: str, entities: Sequence[Mapping[str, Any]]) -> tuple[frozenset[str] | None, str | None]:
    """All groups, also of a person in very many, and the program that acted for them."""
    for entity in expand_entities([dict(each) for each in entities]):
        if entity["uid"] == {"type": "Sealane::Person", "id": person}:
            known = entity["attrs"]["groups_known"]
            groups = frozenset(parent["id"] for parent in entity["parents"]) if known else None
            return groups, entity["attrs"].get("actor")
    return None, None


def _told_until(details: Mapping[str, Any]) -> int | None:
    until = details.get("token_until")
    return until if type(until) is int else None


def _devices(entities: Sequence[Mapping[str, Any]]) -> frozenset[str] | None:
    for entity in entities:
        if entity["uid"]["type"] == "Sealane::Vm" and "devices" in entity["attrs"]:
            return frozenset(entity["attrs"]["devices"])
    return None


def _obligations(policies: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(each["on_revocation"] for each in policies if each["effect"] == "permit" and each.get("on_revocation"))
