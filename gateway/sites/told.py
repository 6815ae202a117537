"""Between our facts and what another site tells: whose word it is stays visible in every one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.errors import RequestRefused
from gateway.sites.request import MAX_GROUPS, ToldHost, ToldPerson, ToldVm
from gateway.sites.settings import OtherSite
from policy.errors import FactRefused
from policy.facts import FROM_SITE, HostFacts, Person, Provenance, VmFacts, VmProvenance, group_id


def told_host(host: HostFacts) -> ToldHost:
    address = host.addresses[0].address
    return ToldHost(host.spiffe_id, host.name, host.site, host.zone, host.jurisdiction, address)


def told_vm(vm: VmFacts) -> ToldVm:
    devices = None if vm.devices is None else tuple(sorted(vm.devices))
    return ToldVm(vm.uuid, vm.name, vm.zone, vm.classification, tuple(sorted(vm.tags)), devices)


def told_person(person: Person, named: frozenset[str]) -> ToldPerson:
    """`named`: the groups that our policies name; others say nothing that we decided on. Errors: RequestRefused."""
    groups = None if person.groups is None else tuple(sorted(person.groups & named))
    if groups is not None and len(groups) > MAX_GROUPS:
        raise RequestRefused(f"{person.name} is in more than {MAX_GROUPS} groups that policies name")
    return ToldPerson(person.id, person.name, groups)


def host_of(told: ToldHost, site: OtherSite) -> HostFacts:
    """Errors: FactRefused."""
    return HostFacts(
        spiffe_id=told.spiffe_id,
        name=told.name,
        site=told.site,
        zone=told.zone,
        jurisdiction=told.jurisdiction,
        address=told.address,
        provenance=Provenance(site.source_of_facts, 0),
    )


def vm_of(told: ToldVm, site: OtherSite) -> VmFacts:
    """Errors: FactRefused."""
    by = Provenance(site.source_of_facts, 0)
    return VmFacts(
        uuid=told.uuid,
        name=told.name,
        zone=told.zone,
        classification=told.classification,
        tags=frozenset(told.tags),
        provenance=VmProvenance(by, by, by, by),
        devices=None if told.devices is None else frozenset(told.devices),
    )


def person_of(told: ToldPerson, site: OtherSite) -> Person:
    """As that site vouches for them: under its trust domain, whatever they are called there. Errors: FactRefused.

    Whoever it lets ask is in the group `site`.
    """
    issuer = f"spiffe://{site.trust_domain}"
    groups = None
    if told.groups is not None:
        groups = frozenset({group_id(issuer, "site"), *(group_id(issuer, each) for each in told.groups)})
    return Person(f"{issuer}#{told.id}", issuer, told.name, groups, FROM_SITE)


def host_of_entity(entity: Mapping[str, Any]) -> HostFacts | None:
    """A host as a decision's record has it; None if that is no whole one."""
    try:
        attributes, port = entity["attrs"], entity["attrs"]["port"]
        address = attributes["address"]["__extn"]["arg"]
        return HostFacts(
            spiffe_id=entity["uid"]["id"],
            name=attributes["name"],
            site=attributes["site"],
            zone=attributes["zone"],
            jurisdiction=attributes["jurisdiction"],
            address=f"[{address}]:{port}" if ":" in address else f"{address}:{port}",
            provenance=Provenance(attributes["provenance"]["source"], 0),
        )
    except (KeyError, TypeError, FactRefused):
        return None


def vm_of_entity(entity: Mapping[str, Any]) -> VmFacts | None:
    """A VM as a decision's record has it; None if that is no whole one."""
    try:
        attributes = entity["attrs"]
        by = [Provenance(attributes["provenance"][fact]["source"], 0) for fact in ("zone", "classification", "tags")]
        return VmFacts(
            uuid=entity["uid"]["id"],
            name=attributes["name"],
            zone=attributes["zone"],
            classification=attributes["classification"],
            tags=frozenset(attributes["tags"]),
            provenance=VmProvenance(*by),
        )
    except (KeyError, TypeError, FactRefused):
        return None
