"""What relays report of the guests of their hosts: a snapshot, changes to it, and signs of life. Pure.

Reports carry ages; they become times of this gateway's clock when they arrive (seconds, as `Placement` gets them). How
long ago a host was heard is counted by a clock that nobody steps. What is heard in another order than it was sent is
not guessed at: the relay is asked for a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

MAX_GUESTS: Final = 2000  # of one host
ACTIVE: Final = "active"
HEARD_ON_SECONDS: Final = 60.0  # between two reports: after a longer silence a guest may have left and come back


@dataclass(frozen=True, slots=True)
class ReportedGuest:
    """One guest as its host's relay reported it; `since` and `seen` in seconds of the gateway's clock."""

    uuid: str
    presence: str
    run_state: str
    arrival: str
    is_sure: bool
    since: float
    seen: float
    name: str = ""
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Report:
    """One report, as it came. `full` begins a snapshot, `more` says that the next one belongs to it."""

    epoch: str
    sequence: int
    full: bool
    more: bool
    confirmed_ms_ago: int
    guests: Sequence[ReportedGuest]
    gone: Sequence[str]


def _as_long_as(before: ReportedGuest, guest: ReportedGuest) -> ReportedGuest:
    """What was active here is so since then: a host that says each time that it has just come would hide a copy."""
    if {before.presence, guest.presence} != {ACTIVE} or before.since >= guest.since:
        return guest
    return replace(guest, since=before.since)


class TooManyGuests(Exception):
    """A host reports more guests than any host has."""


@dataclass(slots=True)
class HostState:
    """What one host has reported. `complete`: its whole snapshot is here; until then nothing is known of it.

    `heard`: in seconds of a monotonic clock.
    """

    epoch: str = ""
    sequence: int = 0
    complete: bool = False
    heard: float = 0.0
    confirmed: float = 0.0
    guests: dict[str, ReportedGuest] = field(default_factory=dict)
    building: dict[str, ReportedGuest] | None = None

    def seen(self, guest: ReportedGuest) -> float:
        """Until when it was certainly as it stands here."""
        return max(guest.seen, self.confirmed) if guest.is_sure else guest.seen


class HostReports:
    """All hosts', by SPIFFE id."""

    def __init__(self) -> None:
        self._hosts: dict[str, HostState] = {}

    def take(self, host: str, report: Report, now: float, heard: float) -> bool:
        """Enter a report that arrived `now`, by a monotonic clock at `heard`; False if the relay must send a snapshot.

        Raises TooManyGuests.
        """
        state = self._hosts.setdefault(host, HostState())
        is_heard_on = state.complete and heard - state.heard <= HEARD_ON_SECONDS
        state.heard = heard
        if not report.full and (report.epoch, report.sequence) != (state.epoch, state.sequence + 1):
            state.building = None
            return False
        if not report.full and not state.complete and state.building is None:
            return False
        state.epoch, state.sequence = report.epoch, report.sequence
        if report.full:
            state.building = {}
        target = state.building if state.building is not None else state.guests
        if len(target) + len(report.guests) > MAX_GUESTS and not {g.uuid for g in report.guests} <= set(target):
            state.complete, state.building = False, None
            raise TooManyGuests(f"{host} reports more than {MAX_GUESTS} guests")
        for guest in report.guests:
            before = state.guests.get(guest.uuid) if is_heard_on else None
            target[guest.uuid] = guest if before is None else _as_long_as(before, guest)
        for uuid in report.gone:
            target.pop(uuid, None)
        if not report.more:
            if state.building is not None:
                state.guests, state.building, state.complete = state.building, None, True
            state.confirmed = now - report.confirmed_ms_ago / 1000
        return True

    def get(self, host: str) -> HostState | None:
        return self._hosts.get(host)

    def hosts(self) -> Mapping[str, HostState]:
        return self._hosts

    def fresh(self, since: float) -> Iterator[tuple[str, HostState]]:
        """The hosts of which we know at this moment what runs on them: heard `since` then, by the monotonic clock."""
        for host, state in self._hosts.items():
            if state.complete and state.heard >= since:
                yield host, state

    def active(self, vm_uuid: str, since: float) -> dict[str, tuple[HostState, ReportedGuest]]:
        """Where this VM is active by fresh reports."""
        found = {}
        for host, state in self.fresh(since):
            guest = state.guests.get(vm_uuid)
            if guest is not None and guest.presence == ACTIVE:
                found[host] = (state, guest)
        return found
