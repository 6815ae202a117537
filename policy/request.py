"""A question as Cedar's JSON: the request and the slice of entities that it speaks of.

Names and ids travel as JSON values only, never inside Cedar text: a VM called `"} permit(…)` is a VM with an odd
name. Both parts go into the decision record as they are; whoever holds them can decide the same question again.
Format: Cedar's "entities JSON" and "context JSON" (https://docs.cedarpolicy.com/auth/entities-syntax.html).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from policy.facts import (
    ACTIONS_ON_VMS,
    APPROVAL,
    Context,
    GatewayFacts,
    HostFacts,
    Person,
    Provenance,
    Question,
    VmFacts,
    split_address,
)

Json = dict[str, Any]
# Stands for a VM or host that the inventory does not know. No real id can equal it: those are UUIDs and SPIFFE ids.
UNKNOWN = "unknown"
_FACTS = {"Vm": ("zone", "classification", "tags", "devices"), "Host": ("zone", "jurisdiction", "site")}


def request_of(question: Question) -> Json:
    """Principal, action, resource and context; a VM action on an unknown VM still says that it was about a VM."""
    if question.action in ACTIONS_ON_VMS:
        resource = _uid("Vm", question.vm.uuid if question.vm else UNKNOWN)
        context = _move_context(question)
    else:
        resource = _uid("Gateway", question.gateway.name)
        context = _circumstances(question)
    return {
        "principal": _uid("Person", question.person.id),
        "action": _uid("Action", question.action),
        "resource": resource,
        "context": context,
    }


def entities_of(question: Question) -> list[Json]:
    """The complete slice: whatever the request refers to and the gateway knows, each once."""
    entities = [_person(question.person)]
    if question.action in ACTIONS_ON_VMS:
        entities += [_vm(question.vm)] if question.vm else []
        hosts = {host.spiffe_id: host for host in (question.source, question.destination) if host}
        entities += [_host(host) for host in hosts.values()]
        if question.action == APPROVAL and question.requester and question.requester.id != question.person.id:
            entities.append(_person(question.requester))
    else:
        entities.append(_gateway(question.gateway))
    return entities


def facts_of(request: Json, entities: list[Json]) -> list[Json]:
    """The facts of VM and hosts that a decision was built on, one by one with source and age, for people to read."""
    told: list[Json] = []
    names = {entity["uid"]["id"]: entity["attrs"].get("name", "") for entity in entities}
    for entity in entities:
        kind, attributes = entity["uid"]["type"].removeprefix("Sealane::"), entity["attrs"]
        for fact in (each for each in _FACTS.get(kind, ()) if each in attributes):
            provenance = attributes["provenance"].get(fact, attributes["provenance"])
            told.append({"of": attributes["name"], "fact": fact, "value": attributes[fact], **provenance})
        if kind == "Vm" and (placement := request.get("context", {}).get("placement")) is not None:
            source = request["context"]["source"]["__entity"]["id"]
            told.append({"of": attributes["name"], "fact": "host", "value": names.get(source, UNKNOWN), **placement})
    return told


def references(value: object) -> Iterator[tuple[str, str, str]]:
    """Every entity that a request refers to, as (where, type, id); `where` is "principal", "context.source", …"""
    rest: list[tuple[str, Any]] = [("", value)]
    while rest:  # no recursion: it takes a fifth of the time, and a damaged record may be deep
        where, inner = rest.pop()
        if not isinstance(inner, dict):
            continue
        target = inner.get("__entity", inner)
        if isinstance(target, dict) and len(target) == 2 and "type" in target and "id" in target:
            kind, name = target["type"], target["id"]
            if isinstance(kind, str) and isinstance(name, str):
                yield where, kind, name
                continue
        rest += [(f"{where}.{key}" if where else key, each) for key, each in reversed(inner.items())]


def _uid(kind: str, name: str) -> Json:
    return {"type": f"Sealane::{kind}", "id": name}


def _entity(kind: str, name: str, attributes: Json, parents: list[Json] | None = None) -> Json:
    return {"uid": _uid(kind, name), "attrs": attributes, "parents": parents or []}


def _person(person: Person) -> Json:
    attributes = {
        "issuer": person.issuer,
        "name": person.name,
        "authenticated_by": person.authenticated_by,
        "groups_known": person.groups is not None,
        **({} if person.actor is None else {"actor": person.actor}),
    }
    return _entity("Person", person.id, attributes, [_uid("Group", group) for group in sorted(person.groups or ())])


def _vm(vm: VmFacts) -> Json:
    attributes = {
        "name": vm.name,
        "zone": vm.zone,
        "classification": vm.classification,
        "tags": sorted(vm.tags),
        "provenance": {
            "zone": _provenance(vm.provenance.zone),
            "classification": _provenance(vm.provenance.classification),
            "tags": _provenance(vm.provenance.tags),
            **({} if vm.devices is None else {"devices": _provenance(vm.provenance.devices)}),
        },
        **({} if vm.devices is None else {"devices": sorted(vm.devices)}),
    }
    return _entity("Vm", vm.uuid, attributes)


def _host(host: HostFacts) -> Json:
    address, port = split_address(host.address)
    attributes = {
        "name": host.name,
        "site": host.site,
        "zone": host.zone,
        "jurisdiction": host.jurisdiction,
        "address": {"__extn": {"fn": "ip", "arg": address}},
        "port": port,
        "provenance": _provenance(host.provenance),
    }
    return _entity("Host", host.spiffe_id, attributes)


def _provenance(provenance: Provenance) -> Json:
    return {"source": provenance.source, "age_seconds": provenance.age_seconds}


def _gateway(gateway: GatewayFacts) -> Json:
    return _entity("Gateway", gateway.name, {"name": gateway.name})


def _move_context(question: Question) -> Json:
    context = question.context
    protection = context.protection
    facts: Json = {
        "source": _host_reference(question.source),
        "destination": _host_reference(question.destination),
        "protection": {
            "tls_version": protection.tls_version,
            "key_exchange": protection.key_exchange,
            "lane_cipher": protection.lane_cipher,
            "vm_binding": protection.vm_binding,
        },
        "placement": _provenance(context.placement),
        "ports": sorted(context.ports),
        "time": _datetime(context.time),
        "reason_given": context.reason_given,
    }
    if context.post_copy:  # left out otherwise: schemas of earlier versions know nothing of it, and then deny it
        facts["post_copy"] = True
    if question.action == APPROVAL:
        requester = question.requester.id if question.requester else UNKNOWN
        facts["requester"] = {"__entity": _uid("Person", requester)}
    return facts


def _circumstances(question: Question) -> Json:
    context: Context = question.context
    facts: Json = {"time": _datetime(context.time), "reason_given": context.reason_given}
    if question.action == "CancelMigration":
        facts["own_migration"] = context.own_migration
    elif question.action == "EndBreakGlass":
        facts["own_request"] = context.own_request
    return facts


def _host_reference(host: HostFacts | None) -> Json:
    return {"__entity": _uid("Host", host.spiffe_id if host else UNKNOWN)}


def _datetime(time: datetime) -> Json:
    """Cedar's datetime has milliseconds; what is finer is cut off."""
    text = time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"__extn": {"fn": "datetime", "arg": text}}
