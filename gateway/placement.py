"""Where a VM is: what the inventory says, until a destination certifies that the guest runs there.

Derived from the inventory file and the log alone, so it survives a restart. When the operator gives a VM another
host in the inventory, that is newer knowledge: the reload (recorded) forgets what receipts said of this VM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from policy.facts import HostFacts, VmFacts
from policy.inventory import Inventory


class Placement:
    """Overrides of the inventory: VM UUID to SPIFFE id of the host that last certified to run it."""

    def __init__(self) -> None:
        self._certified: dict[str, str] = {}

    def certify(self, vm_uuid: str, host: str) -> None:
        self._certified[vm_uuid] = host

    def forget(self, vm_uuids: Iterable[str]) -> None:
        for uuid in vm_uuids:
            self._certified.pop(uuid, None)

    def host_of(self, vm: VmFacts, inventory: Inventory) -> HostFacts | None:
        """None if nobody has said where it is, or on a host that the inventory does not know (any more)."""
        if (certified := self._certified.get(vm.uuid)) is not None:
            return inventory.host(certified)
        return inventory.host(vm.host) if vm.host is not None else None

    def overridden(self) -> Mapping[str, str]:
        return dict(self._certified)
