"""What one source of the inventory tells of VMs and hosts, before the sources are put together.

A file (TOML) or a document fetched over HTTP (JSON) of the same shape:

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
A source that is `partial` may leave out what another tells of a VM. Decoded strictly and as a whole: an unknown key,
a duplicate or a label in two spellings refuses it, and what was read before stays. Errors: InventoryRefused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Final, TypeVar

import msgspec

from policy.errors import FactRefused, InventoryRefused, TokenRefused
from policy.facts import HostFacts, MigrationAddress, VmFacts
from policy.jws import decode_object
from policy.settings import SettingRefused, convert_settings, decode_settings

MAX_BYTES: Final = 32 * 1024 * 1024

T = TypeVar("T")
# Their rules are those of the facts (`policy.facts`), which each value checks itself; here they are said.
Label = Annotated[str, msgspec.Meta(description="1 to 63 ASCII letters, digits and . _ : / -")]
Uuid = Annotated[str, msgspec.Meta(description="a lower-case UUID with hyphens")]
SpiffeId = Annotated[str, msgspec.Meta(description="spiffe://TRUST-DOMAIN/host/NAME")]
Address = Annotated[str, msgspec.Meta(description='an IP address and a port, such as "10.7.0.11:7443"')]


class _Migration(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    address: Address
    device: str | None = None
    dscp: int | None = None


class _Host(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    spiffe_id: SpiffeId
    site: Label
    zone: Label
    jurisdiction: Label
    address: Address
    libvirt_name: str | None = None
    migration: Annotated[tuple[_Migration, ...], msgspec.Meta(max_length=8)] = ()


class _PartialVm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    uuid: Uuid
    name: str | None = None
    zone: Label | None = None
    classification: Label | None = None
    tags: tuple[Label, ...] | None = None
    host: str | None = None


class _Vm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    name: str
    uuid: Uuid
    zone: Label
    classification: Label
    tags: tuple[Label, ...] = ()
    host: str | None = None


class _Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    hosts: tuple[_Host, ...] = ()
    vms: tuple[_Vm, ...] = ()


class _Partial(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    hosts: tuple[_Host, ...] = ()
    vms: tuple[_PartialVm, ...] = ()


@dataclass(frozen=True, slots=True)
class ToldVm:
    """What a source says of one VM; None: it does not say. `refused`: why what it says cannot be used.

    Of a VM that was refused nothing is known, here or from a source below: what it would have said is not guessed.
    """

    uuid: str
    name: str | None = None
    zone: str | None = None
    classification: str | None = None
    tags: frozenset[str] | None = None
    host: str | None = None
    refused: str | None = None

    def __post_init__(self) -> None:
        """Each part is checked as the fact that it will be. Raises FactRefused."""
        VmFacts(self.uuid, self.name or "a", self.zone or "a", self.classification or "a", self.tags or frozenset())
        for what, text in (("name", self.name), ("zone", self.zone), ("classification", self.classification)):
            if text == "":
                raise FactRefused(f"VM {what}", "must not be empty")


@dataclass(frozen=True, slots=True)
class Told:
    """Everything that a source says: VMs by UUID, hosts by SPIFFE id, in its order. `skipped`: entries of no use."""

    vms: Mapping[str, ToldVm]
    hosts: Mapping[str, HostFacts]
    skipped: tuple[str, ...] = ()


def parse_toml(content: bytes, name: str, *, partial: bool = False) -> Told:
    """An inventory file; `name` is what errors call it. Raises InventoryRefused."""
    try:
        shape: type[_Whole | _Partial] = _Partial if partial else _Whole
        return _told(decode_settings(content, shape), name)
    except SettingRefused as error:
        raise InventoryRefused(name, str(error)) from None


def parse_json(content: bytes, name: str, *, partial: bool = False) -> Told:
    """The same as JSON, in which no member may stand twice. Raises InventoryRefused."""
    try:
        shape: type[_Whole | _Partial] = _Partial if partial else _Whole
        return _told(convert_settings(decode_object(content), shape), name)
    except TokenRefused as error:
        raise InventoryRefused(name, error.detail) from error
    except SettingRefused as error:
        raise InventoryRefused(name, str(error)) from None


def _told(document: _Whole | _Partial, name: str) -> Told:
    hosts = tuple(_host(name, entry) for entry in document.hosts)
    vms = tuple(_vm(name, entry) for entry in document.vms)
    by_host_name = _unique(name, "host name", ((host.name, host) for host in hosts))
    _unique(name, "VM name", ((vm.name, vm) for vm in vms if vm.name is not None))
    _check_addresses(name, hosts)
    if hosts:
        for vm in vms:
            if vm.host is not None and vm.host not in by_host_name:
                raise InventoryRefused(name, f"VM {vm.name!a} is on host {vm.host!a}, which is not in the file")
    check_spelling(name, hosts, vms)
    return Told(
        vms=_unique(name, "VM uuid", ((vm.uuid, vm) for vm in vms)),
        hosts=_unique(name, "host spiffe_id", ((host.spiffe_id, host) for host in hosts)),
    )


def _host(source: str, entry: _Host) -> HostFacts:
    try:
        migration = tuple(MigrationAddress(each.address, each.device, each.dscp) for each in entry.migration)
        return HostFacts(**{**msgspec.structs.asdict(entry), "migration": migration})
    except FactRefused as error:
        raise InventoryRefused(source, f"host {entry.name!a}: {error}") from error


def _vm(source: str, entry: _Vm | _PartialVm) -> ToldVm:
    name = entry.name if entry.name is not None else entry.uuid
    if len(set(entry.tags or ())) != len(entry.tags or ()):
        raise InventoryRefused(source, f"VM {name!a}: a tag stands twice")
    tags = None if entry.tags is None else frozenset(entry.tags)
    try:
        return ToldVm(entry.uuid, entry.name, entry.zone, entry.classification, tags, entry.host)
    except FactRefused as error:
        raise InventoryRefused(source, f"VM {name!a}: {error}") from error


def _check_addresses(source: str, hosts: Iterable[HostFacts]) -> None:
    """No two hosts share an address or a name under which they are dialled: a stream would reach the wrong one."""
    hosts = tuple(hosts)
    _unique(source, "host address", ((each.address, host) for host in hosts for each in host.addresses))
    _unique(source, "host name or libvirt_name", ((text, host) for host in hosts for text in dialled_names(host)))
    for host in hosts:
        if host.address not in {each.address for each in host.addresses}:
            raise InventoryRefused(source, f"host {host.name!a}: `address` must be among its migration addresses")


def dialled_names(host: HostFacts) -> set[str]:
    """The names under which a host may be called."""
    return {host.name, (host.libvirt_name or host.name).lower()}


def _unique(source: str, what: str, pairs: Iterable[tuple[str, T]]) -> Mapping[str, T]:
    found: dict[str, T] = {}
    for key, value in pairs:
        if key in found:
            raise InventoryRefused(source, f"{what} {key!a} stands twice")
        found[key] = value
    return MappingProxyType(found)


def check_spelling(source: str, hosts: Iterable[HostFacts], vms: Iterable[ToldVm]) -> None:
    """Labels that differ only in case are one label misspelt, and a policy would silently miss one of them.

    Raises InventoryRefused.
    """
    hosts, vms = tuple(hosts), tuple(vms)
    for what, labels in {
        "zone": {host.zone for host in hosts} | {vm.zone for vm in vms if vm.zone},
        "classification": {vm.classification for vm in vms if vm.classification},
        "jurisdiction": {host.jurisdiction for host in hosts},
        "site": {host.site for host in hosts},
        "tag": {tag for vm in vms for tag in vm.tags or ()},
    }.items():
        spellings: dict[str, str] = {}
        for label in sorted(labels):
            other = spellings.setdefault(label.lower(), label)
            if other != label:
                raise InventoryRefused(source, f"{what} is spelt {other!a} and {label!a}: choose one")
