"""The inventory: which VMs and hosts there are, and the facts about them that policies decide on, each with its source.

It is put together from what one or more sources tell (`policy.told`, `policy.sources`), in order of precedence: of each
fact the first that tells it counts. A source that is silent for too long hides all those below it, because it might
have said otherwise: what it could have told is unknown then, which denies. Hosts (relays) are no source of zone or
classification.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, TypeVar

from policy.errors import InventoryRefused
from policy.facts import NEVER_CONFIRMED, HostFacts, Provenance, VmFacts, VmProvenance
from policy.told import MAX_BYTES, Told, ToldVm, dialled_names, parse_toml

MAX_PROBLEMS: Final = 1000

Stamped = TypeVar("Stamped", VmFacts, HostFacts)


@dataclass(frozen=True, slots=True)
class Layer:
    """One source as it is now. `told`: None if nothing of it may be believed, and then `silent` says why."""

    name: str
    told: Told | None
    silent: str = ""
    tells_hosts: bool = True


@dataclass(frozen=True, slots=True)
class Inventory:
    """VMs by UUID and hosts by SPIFFE id. Names are case-sensitive.

    `unknown`: VMs of which something was told, but not enough: by UUID, why. `ambiguous`: names that several VMs have.
    `problems`: what an operator should correct. `confirmed`: seconds of `clock` at which each source was confirmed.
    """

    vms: Mapping[str, VmFacts]
    hosts: Mapping[str, HostFacts]
    _vm_uuids: Mapping[str, str]
    _host_ids: Mapping[str, str]
    _unknown_names: Mapping[str, str]
    _confirmed: Mapping[str, float]
    _clock: Callable[[], float] = field(compare=False)
    _silent: str
    unknown: Mapping[str, str]
    ambiguous: Mapping[str, tuple[str, ...]]
    problems: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> Inventory:
        """Read and check one file as the whole inventory. Raises InventoryRefused."""
        return cls.parse(read_file(path), str(path))

    @classmethod
    def parse(cls, content: bytes, name: str = "inventory") -> Inventory:
        """The same from bytes; `name` is what errors call the file. Raises InventoryRefused."""
        told = parse_toml(content, name)
        return merge([Layer("inventory", told)], {"inventory": time.monotonic()}, time.monotonic)

    def vm(self, name_or_uuid: str) -> VmFacts | None:
        """A VM by its exact name, or by its UUID in upper or lower case, with the ages of now."""
        by_name = self._vm_uuids.get(name_or_uuid)
        found = self.vms.get(by_name or name_or_uuid.lower())
        return None if found is None else _stamped(found, self._aged(found.provenance))

    def host(self, name_or_spiffe: str) -> HostFacts | None:
        """A host by its exact name or SPIFFE id, with the age of now."""
        found = self.hosts.get(self._host_ids.get(name_or_spiffe, name_or_spiffe))
        return None if found is None else _stamped(found, self._age(found.provenance))

    def why_unknown(self, name_or_uuid: str) -> str:
        """Why `vm` gives nothing for this name, for the requester and the operator; "" if no source knows it."""
        if (uuids := self.ambiguous.get(name_or_uuid)) is not None:
            return f"{len(uuids)} VMs have that name: name it by its UUID"
        uuid = self._unknown_names.get(name_or_uuid, name_or_uuid.lower())
        return self.unknown.get(uuid, self._silent)

    def _age(self, provenance: Provenance) -> Provenance:
        confirmed = self._confirmed.get(provenance.source)
        if confirmed is None:
            return provenance
        return Provenance(provenance.source, max(0, min(int(self._clock() - confirmed), NEVER_CONFIRMED)))

    def _aged(self, facts: VmProvenance) -> VmProvenance:
        return VmProvenance(self._age(facts.zone), self._age(facts.classification), self._age(facts.tags))


def _stamped(facts: Stamped, provenance: VmProvenance | Provenance) -> Stamped:
    """The same facts with other ages. Not by `replace`, which would check all of them again at each look-up."""
    stamped = copy(facts)
    object.__setattr__(stamped, "provenance", provenance)
    return stamped


def read_file(path: Path) -> bytes:
    """The content of an inventory file. Raises InventoryRefused."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InventoryRefused(str(path), f"cannot be read: {error.strerror}") from error
    if len(content) > MAX_BYTES:
        raise InventoryRefused(str(path), f"is larger than {MAX_BYTES // 1024 // 1024} MiB")
    return content


def merge(layers: Sequence[Layer], confirmed: dict[str, float], clock: Callable[[], float]) -> Inventory:
    """Put the sources together, the first first in precedence. `confirmed`, by source, is read at each look-up."""
    uuids = dict.fromkeys(uuid for layer in layers if layer.told is not None for uuid in layer.told.vms)
    vms: dict[str, VmFacts] = {}
    unknown: dict[str, str] = {}
    names: dict[str, list[str]] = {}
    problems = [f"{layer.name}: {text}" for layer in layers for text in (layer.told.skipped if layer.told else ())]
    spellings: dict[tuple[str, str], str] = {}
    hosts = _hosts(layers, problems, spellings)
    for uuid in uuids:
        found = _merge_vm(uuid, layers)
        if isinstance(found, VmFacts):
            found = _spelt_alike(found, spellings)
        if isinstance(found, VmFacts):
            vms[uuid] = found
        else:
            unknown[uuid] = found
        for name in {entry.name for entry in _entries(uuid, layers) if entry.name}:
            if not isinstance(found, VmFacts) or name == found.name:
                names.setdefault(name, []).append(uuid)
    ambiguous = {name: tuple(same) for name, same in names.items() if len(same) > 1}
    single = {name: same[0] for name, same in names.items() if len(same) == 1}
    problems += [f"VM {uuid}: {why}" for uuid, why in unknown.items()]
    problems += [f"{len(same)} VMs are called {name!a}: {', '.join(same[:5])}" for name, same in ambiguous.items()]
    silent = next((layer.silent for layer in layers if layer.told is None), "")
    return Inventory(
        vms=MappingProxyType(vms),
        hosts=MappingProxyType(hosts),
        _vm_uuids=MappingProxyType({name: uuid for name, uuid in single.items() if uuid in vms}),
        _host_ids=MappingProxyType({host.name: host.spiffe_id for host in hosts.values()}),
        unknown=MappingProxyType(unknown),
        ambiguous=MappingProxyType(ambiguous),
        problems=tuple(problems[:MAX_PROBLEMS]),
        _unknown_names=MappingProxyType({name: uuid for name, uuid in single.items() if uuid in unknown}),
        _confirmed=MappingProxyType(confirmed),  # theirs, not a copy: it grows younger with each answer
        _clock=clock,
        _silent=silent,
    )


def _entries(uuid: str, layers: Iterable[Layer]) -> list[ToldVm]:
    return [layer.told.vms[uuid] for layer in layers if layer.told is not None and uuid in layer.told.vms]


def _merge_vm(uuid: str, layers: Sequence[Layer]) -> VmFacts | str:
    """The facts of one VM, or why they are not known."""
    told: dict[str, tuple[object, Provenance]] = {}
    host: str | None = None
    wanted = ("name", "zone", "classification", "tags")
    for layer in layers:
        missing = [what for what in wanted if what not in told]
        if layer.told is None:
            if missing:
                return f"its {' and '.join(missing)} could be told by {layer.name}, and {layer.silent}"
            break
        entry = layer.told.vms.get(uuid)
        if entry is None:
            continue
        if entry.refused is not None and missing:
            return f"{layer.name}: {entry.refused}"
        for what in missing:
            if (value := getattr(entry, what)) is not None:
                told[what] = value, Provenance(layer.name)
        host = host or entry.host
    missing = [what for what in ("name", "zone", "classification") if what not in told]
    if missing:
        return f"no source tells its {' and '.join(missing)}: complete it in one of them"
    # No tags in any source is an answer, too: that of the last, which had the chance to tell some.
    tags, of_tags = told.get("tags", (frozenset(), Provenance(layers[-1].name)))
    return VmFacts(
        uuid=uuid,
        name=str(told["name"][0]),
        zone=str(told["zone"][0]),
        classification=str(told["classification"][0]),
        tags=tags,  # type: ignore[arg-type] # the one value that is no text
        host=host,
        provenance=VmProvenance(told["zone"][1], told["classification"][1], of_tags),
    )


def _hosts(layers: Sequence[Layer], problems: list[str], spellings: dict[tuple[str, str], str]) -> dict[str, HostFacts]:
    """Each host as the first source tells it that knows it; what would give it a second name or address is left out."""
    hosts: dict[str, HostFacts] = {}
    taken: dict[str, str] = {}
    for layer in layers:
        if not layer.tells_hosts:
            continue
        if layer.told is None:
            # It may say of each host below that it is in another zone.
            if any(each.tells_hosts for each in layers[layers.index(layer) + 1 :]):
                problems.append(f"hosts of the sources after {layer.name} are not known: {layer.silent}")
            break
        for host in layer.told.hosts.values():
            if host.spiffe_id in hosts:
                continue
            keys = dialled_names(host) | {each.address for each in host.addresses}
            clash = next((taken[key] for key in keys if key in taken), None)
            if clash is not None:
                problems.append(f"{layer.name}: host {host.spiffe_id} has name or address of {clash}: it is left out")
                continue
            taken |= dict.fromkeys(keys, host.spiffe_id)
            spellings.setdefault(("zone", host.zone.lower()), host.zone)
            hosts[host.spiffe_id] = replace(host, provenance=Provenance(layer.name))
    return hosts


def _spelt_alike(vm: VmFacts, spellings: dict[tuple[str, str], str]) -> VmFacts | str:
    """A label that another source spells in another case would slip past the policy for it."""
    labels = [("zone", vm.zone), ("classification", vm.classification), *(("tag", tag) for tag in sorted(vm.tags))]
    for what, label in labels:
        other = spellings.setdefault((what, label.lower()), label)
        if other != label:
            return f"its {what} is spelt {label!a}, and elsewhere {other!a}: choose one spelling"
    return vm
