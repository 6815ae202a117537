"""Where a VM is: what fresh reports of relays show, else what is expected: receipts, earlier reports, the inventory.

What is *expected* is derived from inventory and log alone, so it survives a restart: the destination of the last
certified migration, else where a report first showed the VM, else the host that the inventory gives it. When the
operator gives a VM another host there, that is newer knowledge: the reload (recorded) forgets what was known before.
A report outweighs what is expected only if it saw the VM after that was learned.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.host_reports import HostReports, HostState, Report, ReportedGuest
from policy.facts import HostFacts, VmFacts
from policy.inventory import Inventory

OVERLAP_SECONDS: Final = 1.0  # two hosts' reports travel; less than this is no proof that a VM runs twice


@dataclass(frozen=True, slots=True)
class Claim:
    """A VM is expected on `host` (a SPIFFE id) since `at` (unix seconds). `source`: receipt, report or inventory."""

    host: str
    at: float
    source: str


@dataclass(frozen=True, slots=True)
class Location:
    """Where a VM is taken to be, who says so and how old that is. `problem`: a code where reports contradict.

    `by_libvirt`: its host's relay sees it as a domain of libvirt, which moves it then. `devices`: of the same report.
    """

    host: HostFacts | None
    source: str = "none"
    age_seconds: int | None = None
    problem: str | None = None
    detail: str = ""
    by_libvirt: bool = False
    devices: frozenset[str] | None = None


class Placement:
    """`now`: unix seconds of a clock that never goes back (`SteadyTime`): reports and what is expected are held against
    each other by it. `silence_seconds`: then a host's reports are stale, by `monotonic`.
    """

    def __init__(
        self,
        now: Callable[[], float] = time.time,
        silence_seconds: float = 60.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.reports = HostReports()
        self.silence_seconds = silence_seconds
        self.now = now
        self._monotonic = monotonic
        self._claims: dict[str, Claim] = {}
        self._forgotten: dict[str, float] = {}

    def certify(self, vm_uuid: str, host: str, at: float | None = None) -> None:
        """A destination certified that the guest runs there."""
        self._claims[vm_uuid] = Claim(host, self.now() if at is None else at, "receipt")

    def adopt(self, vm_uuid: str, host: str, at: float | None = None) -> None:
        """From now on the VM is expected where a report showed it; it has been recorded."""
        self._claims[vm_uuid] = Claim(host, self.now() if at is None else at, "report")

    def forget(self, vm_uuids: Iterable[str], at: float | None = None) -> None:
        for uuid in vm_uuids:
            self._claims.pop(uuid, None)
            self._forgotten[uuid] = self.now() if at is None else at

    def expected(self, vm: VmFacts, inventory: Inventory) -> Claim | None:
        """What inventory and log say; None if neither says anything."""
        if (claim := self._claims.get(vm.uuid)) is not None:
            return claim
        known = inventory.vm(vm.uuid)  # `vm` may be a copy that was placed already
        host = inventory.host(known.host) if known is not None and known.host is not None else None
        return Claim(host.spiffe_id, self._forgotten.get(vm.uuid, 0.0), "inventory") if host is not None else None

    def active(self, vm_uuid: str) -> dict[str, tuple[HostState, ReportedGuest]]:
        """Where fresh reports show the VM active."""
        return self.reports.active(vm_uuid, self._monotonic() - self.silence_seconds)

    def take(self, host: str, report: Report) -> bool:
        """See HostReports."""
        return self.reports.take(host, report, self.now(), self._monotonic())

    def fresh(self) -> Iterator[tuple[str, HostState]]:
        """The hosts of which we know at this moment what runs on them."""
        return self.reports.fresh(self._monotonic() - self.silence_seconds)

    def is_fresh(self, state: HostState) -> bool:
        """Of one of them."""
        return state.complete and self.silent_seconds(state) <= self.silence_seconds

    def silent_seconds(self, state: HostState) -> float:
        """For how long the host was not heard, whatever the wall clock did since."""
        return self._monotonic() - state.heard

    def locate(self, vm: VmFacts, inventory: Inventory) -> Location:
        now = self.now()
        claim = self.expected(vm, inventory)
        active = {
            host: (state, guest)
            for host, (state, guest) in self.active(vm.uuid).items()
            if claim is None or host == claim.host or state.seen(guest) > claim.at
        }
        if len(twice := overlapping(active)) > 1:
            names = " and ".join(sorted(host.rpartition("/")[2] for host in twice))
            found = inventory.host(claim.host) if claim is not None else inventory.host(min(twice))
            return Location(found, "report", 0, "running_on_two_hosts", f"{vm.name} runs on {names} at once")
        if active:
            # Where it is expected and seen, it is: ages are the reporting host's own word, and by them another host
            # could draw the VM to itself, and with it the zone that the policy sees.
            is_as_expected = claim is not None and claim.host in active
            host = claim.host if claim and is_as_expected else max(active, key=lambda each: active[each][1].since)
            state, guest = active[host]
            # Only libvirt's guests have a name on their host.
            seen_seconds = max(0, int(now - state.seen(guest)))
            devices = frozenset(guest.devices)
            return Location(inventory.host(host), "report", seen_seconds, by_libvirt=bool(guest.name), devices=devices)
        if claim is None:
            return Location(None)
        age = int(max(0.0, now - claim.at)) if claim.at else None
        return Location(inventory.host(claim.host), claim.source, age)

    def host_of(self, vm: VmFacts, inventory: Inventory) -> HostFacts | None:
        """None if nobody has said where it is, or on a host that the inventory does not know (any more)."""
        return self.locate(vm, inventory).host

    def restore(self, vm_uuid: str, host: str, at: float, source: str) -> None:
        """At start: what the log says of a VM."""
        self._claims[vm_uuid] = Claim(host, at, source)


def overlapping(active: Mapping[str, tuple[HostState, ReportedGuest]]) -> frozenset[str]:
    """The hosts that certainly had the VM at one and the same time; empty if no two did."""
    found: set[str] = set()
    hosts = sorted(active)
    for i, one in enumerate(hosts):
        for other in hosts[i + 1 :]:
            (a, guest_a), (b, guest_b) = active[one], active[other]
            both_until = min(a.seen(guest_a), b.seen(guest_b))
            if both_until - max(guest_a.since, guest_b.since) >= OVERLAP_SECONDS:
                found |= {one, other}
    return frozenset(found)
