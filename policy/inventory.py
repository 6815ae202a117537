"""The inventory file: which VMs and hosts there are, and the facts about them that policies decide on.

```toml
[[hosts]]
name = "fra1"                                   # the last part of the SPIFFE id
spiffe_id = "spiffe://bank.example/host/fra1"
site = "fra"
zone = "production"
jurisdiction = "DE"
address = "10.7.0.11:7443"                      # of its relay
libvirt_name = "fra1.bank.example"              # optional: what libvirt calls the host, if not `name`

[[hosts.migration]]                             # optional: all addresses of its relay, best first; else `address` alone
address = "[fd00:7::11]:7443"
device = "bond1"                                # optional: interface by which this host's own streams leave
dscp = 10                                       # optional: mark of their packets

[[vms]]
name = "ledger-db"
uuid = "6f1c2a52-4c0e-4a57-9d3c-0b8f6f0f7a11"
zone = "production"
classification = "restricted"
tags = ["pci"]                                  # optional
host = "fra1"                                   # optional: where it runs
```
Decoded strictly and as a whole: an unknown key, a duplicate or a VM on an unknown host refuses the file, and what was
loaded before stays in force. Errors: InventoryRefused, the operator must act.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Final, TypeVar

import msgspec

from policy.errors import FactRefused, InventoryRefused
from policy.facts import HostFacts, MigrationAddress, VmFacts

MAX_BYTES: Final = 32 * 1024 * 1024

T = TypeVar("T")


class _Migration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    address: str
    device: str | None = None
    dscp: int | None = None


class _Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    spiffe_id: str
    site: str
    zone: str
    jurisdiction: str
    address: str
    libvirt_name: str | None = None
    migration: Annotated[tuple[_Migration, ...], msgspec.Meta(max_length=8)] = ()


class _Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    uuid: str
    zone: str
    classification: str
    tags: tuple[str, ...] = ()
    host: str | None = None


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    hosts: tuple[_Host, ...] = ()
    vms: tuple[_Vm, ...] = ()


@dataclass(frozen=True, slots=True)
class Inventory:
    """VMs by UUID and hosts by SPIFFE id, in the order of the file. Names are unique and case-sensitive."""

    vms: Mapping[str, VmFacts]
    hosts: Mapping[str, HostFacts]
    _vm_uuids: Mapping[str, str]
    _host_ids: Mapping[str, str]

    @classmethod
    def load(cls, path: Path) -> Inventory:
        """Read and check the file. Raises InventoryRefused."""
        try:
            with path.open("rb") as file:
                content = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise InventoryRefused(str(path), f"cannot be read: {error.strerror}") from error
        if len(content) > MAX_BYTES:
            raise InventoryRefused(str(path), f"is larger than {MAX_BYTES // 1024 // 1024} MiB")
        return cls.parse(content, str(path))

    @classmethod
    def parse(cls, content: bytes, name: str = "inventory") -> Inventory:
        """The same from bytes; `name` is what errors call the file. Raises InventoryRefused."""
        try:
            file = msgspec.toml.decode(content, type=_File)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InventoryRefused(name, str(error)) from error
        hosts = tuple(_host(name, entry) for entry in file.hosts)
        vms = tuple(_vm(name, entry) for entry in file.vms)
        by_host_name = _unique(name, "host name", ((host.name, host) for host in hosts))
        by_vm_name = _unique(name, "VM name", ((vm.name, vm) for vm in vms))
        _check_addresses(name, hosts)
        for vm in vms:
            if vm.host is not None and vm.host not in by_host_name:
                raise InventoryRefused(name, f"VM {vm.name!a} is on host {vm.host!a}, which is not in the file")
        _check_spelling(name, hosts, vms)
        return cls(
            vms=_unique(name, "VM uuid", ((vm.uuid, vm) for vm in vms)),
            hosts=_unique(name, "host spiffe_id", ((host.spiffe_id, host) for host in hosts)),
            _vm_uuids=MappingProxyType({key: vm.uuid for key, vm in by_vm_name.items()}),
            _host_ids=MappingProxyType({key: host.spiffe_id for key, host in by_host_name.items()}),
        )

    def vm(self, name_or_uuid: str) -> VmFacts | None:
        """A VM by its exact name, or by its UUID in upper or lower case. No VM's name looks like a UUID."""
        by_name = self._vm_uuids.get(name_or_uuid)
        return self.vms.get(by_name or name_or_uuid.lower())

    def host(self, name_or_spiffe: str) -> HostFacts | None:
        """A host by its exact name or SPIFFE id."""
        return self.hosts.get(self._host_ids.get(name_or_spiffe, name_or_spiffe))


def _host(file: str, entry: _Host) -> HostFacts:
    try:
        migration = tuple(MigrationAddress(each.address, each.device, each.dscp) for each in entry.migration)
        return HostFacts(**{**msgspec.structs.asdict(entry), "migration": migration})
    except FactRefused as error:
        raise InventoryRefused(file, f"host {entry.name!a}: {error}") from error


def _vm(file: str, entry: _Vm) -> VmFacts:
    if len(set(entry.tags)) != len(entry.tags):
        raise InventoryRefused(file, f"VM {entry.name!a}: a tag stands twice")
    try:
        return VmFacts(entry.uuid, entry.name, entry.zone, entry.classification, frozenset(entry.tags), entry.host)
    except FactRefused as error:
        raise InventoryRefused(file, f"VM {entry.name!a}: {error}") from error


def _check_addresses(file: str, hosts: Iterable[HostFacts]) -> None:
    """No two hosts share an address or a name under which they are dialled: a stream would reach the wrong one."""
    hosts = tuple(hosts)
    _unique(file, "host address", ((each.address, host) for host in hosts for each in host.addresses))
    names = ((text, host) for host in hosts for text in {host.name, (host.libvirt_name or host.name).lower()})
    _unique(file, "host name or libvirt_name", names)
    for host in hosts:
        if host.address not in {each.address for each in host.addresses}:
            raise InventoryRefused(file, f"host {host.name!a}: `address` must be among its migration addresses")


def _unique(file: str, what: str, pairs: Iterable[tuple[str, T]]) -> Mapping[str, T]:
    found: dict[str, T] = {}
    for key, value in pairs:
        if key in found:
            raise InventoryRefused(file, f"{what} {key!a} stands twice")
        found[key] = value
    return MappingProxyType(found)


def _check_spelling(file: str, hosts: Iterable[HostFacts], vms: Iterable[VmFacts]) -> None:
    """Labels that differ only in case are one label misspelt, and a policy would silently miss one of them."""
    hosts, vms = tuple(hosts), tuple(vms)
    for what, labels in {
        "zone": {host.zone for host in hosts} | {vm.zone for vm in vms},
        "classification": {vm.classification for vm in vms},
        "jurisdiction": {host.jurisdiction for host in hosts},
        "site": {host.site for host in hosts},
        "tag": {tag for vm in vms for tag in vm.tags},
    }.items():
        spellings: dict[str, str] = {}
        for label in sorted(labels):
            other = spellings.setdefault(label.lower(), label)
            if other != label:
                raise InventoryRefused(file, f"{what} is spelt {other!a} and {label!a}: choose one")
