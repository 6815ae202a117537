"""Calls about where things are: hosts with what their relays report, VMs with where they run and who says so."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query
from starlette.responses import Response

from gateway.api.answers import JsonAnswer
from gateway.api.desk import Address, Asking, AtDesk
from gateway.api.inventory_calls import require_read_inventory
from gateway.gate import Gate
from policy.facts import HostFacts, VmFacts

router = APIRouter()
MAX_SHOWN = 1000
Prefix = Annotated[str, Query(max_length=255)]
Limit = Annotated[int, Query(ge=1, le=MAX_SHOWN)]


@router.get("/v1/hosts", summary="The hosts, and what their relays report")
async def hosts(desk: AtDesk, person: Asking, address: Address, prefix: Prefix = "", limit: Limit = 200) -> Response:
    """Needs ReadInventory. By name, from `prefix` on; `more` if there are more than `limit`."""
    await require_read_inventory(desk, person, address)
    gate = desk.gate
    found = sorted((each for each in gate.inventory.hosts.values() if each.name.startswith(prefix)), key=_name)
    shown = [_host(gate, each) for each in found[:limit]]
    return JsonAnswer({"hosts": shown, "more": len(found) > limit})


@router.get("/v1/vms", summary="The VMs, and where each runs")
async def vms(desk: AtDesk, person: Asking, address: Address, prefix: Prefix = "", limit: Limit = 200) -> Response:
    """Needs ReadInventory. By name, from `prefix` on; `more` if there are more than `limit`."""
    await require_read_inventory(desk, person, address)
    gate = desk.gate
    found = sorted((each for each in gate.inventory.vms.values() if each.name.startswith(prefix)), key=_name)
    return JsonAnswer({"vms": [_vm(gate, each) for each in found[:limit]], "more": len(found) > limit})


def _name(each: HostFacts | VmFacts) -> str:
    return each.name


def _host(gate: Gate, host: HostFacts) -> dict[str, Any]:
    state = gate.placement.reports.get(host.spiffe_id)
    age = None if state is None else gate.placement.silent_seconds(state)
    is_fresh = state is not None and gate.placement.is_fresh(state)
    known = [gate.inventory.vm(uuid) for uuid in state.guests] if state is not None else []
    return {
        "name": host.name,
        "spiffe_id": host.spiffe_id,
        "zone": host.zone,
        "libvirt_name": host.libvirt_name or host.name,
        "addresses": [each.address for each in host.addresses],
        "revoked": gate.is_revoked(host.spiffe_id),
        "relay_reachable": gate.dispatch.is_reachable(host.spiffe_id, gate.relay_silence_seconds),
        "placement": "none" if state is None else "fresh" if is_fresh else "stale",
        "placement_age_seconds": None if age is None else int(age),
        "guests": None if state is None else len(state.guests),
        "guests_not_in_inventory": sum(vm is None for vm in known),
    }


def _vm(gate: Gate, vm: VmFacts) -> dict[str, Any]:
    location = gate.placement.locate(vm, gate.inventory)
    return {
        "name": vm.name,
        "uuid": vm.uuid,
        "zone": vm.zone,
        "host": location.host.name if location.host is not None else None,
        "placed_by": location.source,
        "age_seconds": location.age_seconds,
        "problem": location.detail or None,
        "by_libvirt": location.by_libvirt,
    }
