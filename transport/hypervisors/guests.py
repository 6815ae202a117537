"""Which guests run on a host: what was seen of each, and what came of it over time.

Pure: whoever looks (`qmp_guests`, `libvirt_guests`) brings sightings, `GuestBook` keeps since when and how each came.
Times are seconds of the caller's monotonic clock.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
MAX_GUESTS: Final = 2000
MAX_DEVICES: Final = 32
MAX_TEXT: Final = 64


class Presence(StrEnum):
    """ACTIVE: the guest is this host's, running or paused. ARRIVING and LEAVING: the other end has it, or may have."""

    ACTIVE = "active"
    ARRIVING = "arriving"
    LEAVING = "leaving"


class Arrival(StrEnum):
    """How it came. FOUND: it was here when the relay began to look."""

    FOUND = "found"
    STARTED = "started"
    MIGRATED = "migrated"
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one look at a guest showed. `run_state` and `devices` in the hypervisor's words, `arrival` if it tells.

    `is_sure` is False when the guest is there and its state could not be asked (its monitor is taken, it hangs).
    """

    uuid: str
    presence: Presence
    run_state: str
    arrival: Arrival | None = None
    name: str = ""
    devices: tuple[str, ...] = ()
    is_sure: bool = True


@dataclass(frozen=True, slots=True)
class Guest:
    """A guest of this host. `since`: active here since then, as far as we saw; `seen`: last looked at with success."""

    sighting: Sighting
    arrival: Arrival
    since: float
    seen: float


class GuestBook:
    """What this host knows of its guests. `changed` and `gone` since the last `take_changes`."""

    def __init__(self) -> None:
        self._guests: dict[str, Guest] = {}
        self._changed: set[str] = set()
        self._gone: set[str] = set()
        self._is_first = True

    @property
    def guests(self) -> Mapping[str, Guest]:
        return self._guests

    def update(self, seen: Iterable[Sighting], present: Iterable[str], now: float) -> None:
        """Enter what was seen `now`; who is not in `present` is gone. At most MAX_GUESTS are kept."""
        kept = set(present)
        for uuid in [uuid for uuid in self._guests if uuid not in kept]:
            del self._guests[uuid]
            self._changed.discard(uuid)
            self._gone.add(uuid)
        for sighting in seen:
            if sighting.uuid in kept and (sighting.uuid in self._guests or len(self._guests) < MAX_GUESTS):
                self._enter(sighting, now)
        self._is_first = False

    def _enter(self, sighting: Sighting, now: float) -> None:
        before = self._guests.get(sighting.uuid)
        after = _next(before, sighting, now, is_first=self._is_first)
        self._guests[sighting.uuid] = after
        if before is None or (before.sighting, before.arrival) != (after.sighting, after.arrival):
            self._changed.add(sighting.uuid)
            self._gone.discard(sighting.uuid)

    def take_changes(self) -> tuple[list[Guest], list[str]]:
        """Guests that are new or changed, and UUIDs that are gone; forgotten here."""
        changed = [self._guests[uuid] for uuid in sorted(self._changed)]
        gone = sorted(self._gone)
        self._changed.clear()
        self._gone.clear()
        return changed, gone

    def put_back(self, changed: Iterable[Guest], gone: Iterable[str]) -> None:
        """What could not be told is a change again."""
        self._changed |= {guest.sighting.uuid for guest in changed if guest.sighting.uuid in self._guests}
        self._gone |= {uuid for uuid in gone if uuid not in self._guests}

    def confirmed(self, now: float) -> float:
        """Every guest that could be asked was as it stands here at this moment or later."""
        return min((guest.seen for guest in self._guests.values() if guest.sighting.is_sure), default=now)


def _next(before: Guest | None, sighting: Sighting, now: float, *, is_first: bool) -> Guest:
    if before is None:
        fallback = Arrival.FOUND if is_first else Arrival.STARTED
        return Guest(sighting, sighting.arrival or fallback, now, now)
    if not sighting.is_sure:
        # It is there, and no more is known than before.
        unsure = replace(before.sighting, is_sure=False)
        return replace(before, sighting=unsure)
    came_now = before.sighting.presence is Presence.ARRIVING and sighting.presence is Presence.ACTIVE
    if came_now:
        return Guest(sighting, sighting.arrival or Arrival.MIGRATED, now, now)
    return replace(before, sighting=sighting, seen=now)
