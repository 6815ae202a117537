"""Is what a host reports what the log permits? Pure: findings are values, the watch records them and acts.

An arrival is permitted if the log holds a permit for this VM to this host that is still being settled, or a certified
migration. Everything else that puts a VM on another host than expected (save and restore, a copied image, a monitor
command, a migration by another road) is `placement.unpermitted`, whatever the host says of how it came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.host_reports import ACTIVE, HostState, ReportedGuest
from gateway.migrations import Migration, Migrations, State
from gateway.placement import Claim, Placement, overlapping
from policy.facts import VmFacts
from policy.inventory import Inventory

SETTLE_SECONDS: Final = 120.0  # a failed migration's receipts may be under way: then its guest may yet be certified


@dataclass(frozen=True, slots=True)
class Adopted:
    """A VM that nobody had placed, or one whose alarm was raised and that stayed, while the host where it was expected
    reports that it has it not: it is expected here from now on."""

    vm: VmFacts


@dataclass(frozen=True, slots=True)
class Unpermitted:
    """A VM that arrived without a permit. `last`: the latest migration of it that the log knows."""

    vm: VmFacts
    guest: ReportedGuest
    expected: Claim
    last: Migration | None


@dataclass(frozen=True, slots=True)
class Duplicate:
    vm: VmFacts
    hosts: frozenset[str]


@dataclass(frozen=True, slots=True)
class DuplicateEnded:
    vm_uuid: str
    hosts: frozenset[str]


Finding = Adopted | Unpermitted | Duplicate | DuplicateEnded


@dataclass(slots=True)
class Alarms:
    """What was recorded and holds on: the same thing is not recorded twice."""

    unpermitted: set[tuple[str, str]]
    duplicates: dict[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Scene:
    """What a report is judged against. `now`: the wall clock's, by which migrations are dated; reports are by the
    placement's own, which is never behind it.
    """

    placement: Placement
    inventory: Inventory
    migrations: Migrations
    alarms: Alarms
    now: float


def judge(host: str, state: HostState, scene: Scene) -> Iterator[Finding]:
    """What the guests of `host`, as just reported, mean. Nothing while a snapshot is incomplete."""
    if not state.complete:
        return
    placement, alarms = scene.placement, scene.alarms
    for guest in list(state.guests.values()):
        vm = scene.inventory.vm(guest.uuid)
        if vm is None or guest.presence != ACTIVE:
            continue
        hosts = _running_on(host, state, guest, scene)
        if hosts and alarms.duplicates.get(vm.uuid) != hosts:
            yield Duplicate(vm, hosts)
        yield from _arrival(host, state, guest, vm, scene)
    for uuid, hosts in list(alarms.duplicates.items()):
        if host in hosts and len(hosts & set(placement.active(uuid))) < 2 and _are_known(hosts, scene):
            yield DuplicateEnded(uuid, hosts)


def _running_on(host: str, state: HostState, guest: ReportedGuest, scene: Scene) -> frozenset[str]:
    """The hosts that run this VM at once, if it is more than one."""
    active = scene.placement.active(guest.uuid)
    active.setdefault(host, (state, guest))
    hosts = overlapping(active)
    migration = scene.migrations.active_of(guest.uuid, int(scene.now))
    if migration is not None and migration.moves_guest and hosts <= {migration.source, migration.destination}:
        return frozenset()  # its handover decides where the guest is; a duplicate is one when it has ended
    return hosts


def _arrival(host: str, state: HostState, guest: ReportedGuest, vm: VmFacts, scene: Scene) -> Iterator[Finding]:
    expected = scene.placement.expected(vm, scene.inventory)
    if expected is None:
        yield Adopted(vm)
        return
    if expected.host == host or state.seen(guest) <= expected.at:
        return
    if (vm.uuid, host) in scene.alarms.unpermitted:
        # Only a host that speaks and has it not: a silent one may run it, and whoever silences it would gain the VM.
        if _are_known(frozenset({expected.host}), scene) and expected.host not in scene.placement.active(vm.uuid):
            yield Adopted(vm)
        return
    last = scene.migrations.latest_of(vm.uuid, int(scene.now))
    if last is None or not may_be_of(last, host, guest, scene.placement.now(), scene.now):
        yield Unpermitted(vm, guest, expected, last)


def may_be_of(migration: Migration, host: str, guest: ReportedGuest, now: float, wall: float) -> bool:
    """Whether this migration can have brought the guest to `host`, or back to it, and is not settled yet.

    `now`: of the clock that the report is by (`Placement.now`); `wall`: of the one that migrations are dated by. Since
    when the guest is there is the host's own word: it alone could put off the alarm for ever.
    """
    if host not in {migration.source, migration.destination} or migration.jti is None:
        return False
    if not migration.is_final:
        return True
    if host == migration.destination and migration.state is State.COMPLETED:
        return guest.since >= migration.decided - SETTLE_SECONDS  # its receipt is still to come
    is_fresh = now - guest.since < SETTLE_SECONDS and wall - migration.settled_at < SETTLE_SECONDS
    return is_fresh and guest.since >= migration.decided - SETTLE_SECONDS


def _are_known(hosts: frozenset[str], scene: Scene) -> bool:
    """A host that fell silent does not end a duplicate: nobody knows."""
    return hosts <= {host for host, _ in scene.placement.fresh()}
