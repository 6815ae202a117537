"""Calls about the inventory: what is known of VMs and hosts, from which source, how old."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AtDesk, Desk
from gateway.errors import NotKnown
from gateway.inventories import conditions_document
from gateway.requiring import Wanted, require
from policy.facts import HostFacts, Person, Provenance, VmFacts

router = APIRouter()
Name = Annotated[str, Query(min_length=1, max_length=1024)]


@router.get("/v1/inventory", summary="The sources of the inventory, and what is wrong in them")
async def inventory(desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadInventory."""
    await require_read_inventory(desk, person, address)
    sources = desk.gate.sources
    return JsonAnswer(conditions_document(sources.conditions(), sources.inventory))


@router.get("/v1/inventory/named", summary="What is known of the VM or host of this name, and from where")
async def named(name: Name, desk: AtDesk, person: Asking, address: Address) -> Response:
    """Needs ReadInventory. `unknown_because` where something is told of a VM, but not enough to decide on it."""
    await require_read_inventory(desk, person, address)
    gate = desk.gate
    if gate.inventory.vm(name) is None and gate.inventory.host(name) is None:
        await gate.sources.ask_again()
    vm, host = gate.inventory.vm(name), gate.inventory.host(name)
    because = "" if vm is not None else gate.inventory.why_unknown(name)
    if vm is None and host is None and not because:
        raise NotKnown("no source of the inventory knows a VM or host of this name")
    placed = gate.placement.host_of(vm, gate.inventory) if vm is not None else None
    return JsonAnswer(
        {
            "vm": None if vm is None else _vm_document(vm, placed),
            "host": None if host is None else _host_document(host),
            "unknown_because": because or None,
        }
    )


async def require_read_inventory(desk: Desk, person: Person, address: str) -> None:
    """Errors: NotAllowed, recorded."""
    wanted = Wanted("ReadInventory", "reading the inventory", "inventory.read", {})
    await require(desk.gate, wanted, person, desk.now(), address, recorded=False)


def _vm_document(vm: VmFacts, placed: HostFacts | None) -> dict[str, Any]:
    told = vm.provenance
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "host": placed.name if placed is not None else None,
        "facts": {
            "zone": _fact(vm.zone, told.zone),
            "classification": _fact(vm.classification, told.classification),
            "tags": _fact(sorted(vm.tags), told.tags),
        },
    }


def _host_document(host: HostFacts) -> dict[str, Any]:
    words = {"zone": host.zone, "jurisdiction": host.jurisdiction, "site": host.site, "address": host.address}
    return {
        "name": host.name,
        "spiffe_id": host.spiffe_id,
        "facts": {fact: _fact(value, host.provenance) for fact, value in words.items()},
    }


def _fact(value: str | list[str], provenance: Provenance) -> dict[str, Any]:
    return {"value": value, "source": provenance.source, "age_seconds": provenance.age_seconds}
