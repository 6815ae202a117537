"""The address book that relays get: every host's SPIFFE id, its names, and where its relay is reached.

A projection of the inventory, with a version (SHA-256 of its content) by which a relay knows whether it has it already.
It holds no secret and proves nothing: who answers at an address is judged by certificate and permit.
"""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec

from policy.facts import HostFacts
from policy.inventory import Inventory


def address_book(inventory: Inventory) -> dict[str, Any]:
    """`{"version", "hosts": [{"spiffe_id", "name", "libvirt_name", "addresses": [{"address", "device", "dscp"}]}]}`."""
    hosts = [_entry(host) for host in inventory.hosts.values()]
    version = hashlib.sha256(msgspec.json.encode(hosts, order="sorted")).hexdigest()
    return {"version": version, "hosts": hosts}


def _entry(host: HostFacts) -> dict[str, Any]:
    return {
        "spiffe_id": host.spiffe_id,
        "name": host.name,
        "libvirt_name": host.libvirt_name or host.name,
        "addresses": [{"address": each.address, "device": each.device, "dscp": each.dscp} for each in host.addresses],
    }
