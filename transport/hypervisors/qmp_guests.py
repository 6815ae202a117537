"""QEMUs without libvirt: which of the configured monitors exist, which process is behind each, and what it says.

A look opens the monitor for some milliseconds, because only one program can hold it; whoever carries a migration waits
that long at most. Between looks the kernel tells whether the process is still the same, which costs next to nothing.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import msgspec

from transport.hypervisors.errors import (
    HypervisorError,
    HypervisorGone,
    HypervisorRefused,
    HypervisorUnreachable,
)
from transport.hypervisors.guests import MAX_DEVICES, MAX_GUESTS, MAX_TEXT, UUID, Arrival, Presence, Sighting
from transport.hypervisors.process import is_gone, process_identity
from transport.hypervisors.qmp import QmpConnection

LOOK_SECONDS: Final = 1.0
_ARRIVING: Final = frozenset({"inmigrate", "prelaunch", "preconfig"})
_LEAVING: Final = frozenset({"postmigrate", "finish-migrate"})
_ENDED: Final = frozenset({"shutdown"})
_CHILD: Final = re.compile(r"child<([A-Za-z0-9._+-]{1,63})>")
_UUID_IN_NAME: Final = r"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"


class _Status(msgspec.Struct, frozen=True):
    status: str


class _Uuid(msgspec.Struct, frozen=True, rename={"uuid": "UUID"}):
    uuid: str


class _Migration(msgspec.Struct, frozen=True, rename="kebab"):
    status: str = "none"
    blocked_reasons: list[str] = []


class _Property(msgspec.Struct, frozen=True):
    name: str
    type: str


@dataclass(slots=True)
class _Known:
    """The process that was behind a monitor, what was seen, and when (monotonic seconds)."""

    process: str
    sighting: Sighting
    looked: float


class QmpGuests:
    """The guests behind `template`, a path that holds `{uuid}` once.

    `recheck_seconds`: how long a running guest's state is believed without asking again.
    """

    def __init__(self, template: str, recheck_seconds: float) -> None:
        self._template = template
        self._recheck_seconds = recheck_seconds
        self._known: dict[str, _Known] = {}

    async def look(self, now: float) -> tuple[list[Sighting], list[str]]:
        """New sightings, and the UUIDs of all guests that are there. Raises OSError if the folder cannot be read."""
        sockets = monitors(self._template)
        seen: list[Sighting] = []
        for uuid in [uuid for uuid in self._known if uuid not in sockets]:
            if _has_ended(self._known[uuid].process):
                del self._known[uuid]
        for uuid, path in sockets.items():
            known = self._known.get(uuid)
            if known is not None and not self._is_due(known, now):
                continue
            if (found := await self._look_at(uuid, path, now)) is not None:
                seen.append(found)
        return seen, sorted(self._known)

    def _is_due(self, known: _Known, now: float) -> bool:
        """A process that ended, a guest on its way and one that could not be asked are looked at each time."""
        sighting = known.sighting
        is_steady = sighting.presence is Presence.ACTIVE and sighting.run_state == "running" and sighting.is_sure
        return not is_steady or now - known.looked >= self._recheck_seconds or _has_ended(known.process)

    async def _look_at(self, uuid: str, path: Path, now: float) -> Sighting | None:
        known = self._known.get(uuid)
        try:
            process, sighting = await look_at(uuid, path)
        except HypervisorError:
            if known is None or _has_ended(known.process):
                self._known.pop(uuid, None)  # a socket that a dead QEMU left behind
                return None
            # Somebody holds the monitor (a migration of ours, say), or QEMU hangs: that it is there is all we know.
            known.sighting = replace(known.sighting, is_sure=False)
            return known.sighting
        if sighting is None:
            self._known.pop(uuid, None)
            return None
        self._known[uuid] = _Known(process, sighting, now)
        return sighting


def monitors(template: str) -> dict[str, Path]:
    """The sockets that exist under `template`, by UUID, at most MAX_GUESTS. OSError if the folder cannot be read."""
    head, _, tail = template.partition("{uuid}")
    folder, _, prefix = head.rpartition("/")
    suffix, slash, rest = tail.partition("/")
    pattern = re.compile(re.escape(prefix) + _UUID_IN_NAME + re.escape(suffix))
    found: dict[str, Path] = {}
    try:
        with os.scandir(folder or "/") as entries:
            for entry in entries:
                if (match := pattern.fullmatch(entry.name)) is None:
                    continue
                path = Path(entry.path) / rest if slash else Path(entry.path)
                if path.is_socket():
                    found[match[1]] = path
                if len(found) >= MAX_GUESTS:
                    break
    except FileNotFoundError:
        return {}  # no VM was ever started here
    return found


async def look_at(uuid: str, path: Path) -> tuple[str, Sighting | None]:
    """Process and sighting of the QEMU behind `path`; None if it has no guest, or that of another UUID.

    Raises HypervisorError: HypervisorTimeout also where another program holds the monitor.
    """
    async with await QmpConnection.connect(path, deadline_seconds=LOOK_SECONDS) as qmp:
        found = await qmp.query("query-uuid", _Uuid, deadline_seconds=LOOK_SECONDS)
        state = (await qmp.query("query-status", _Status, deadline_seconds=LOOK_SECONDS)).status[:MAX_TEXT]
        if found.uuid.lower() != uuid or UUID.fullmatch(uuid) is None or state in _ENDED:
            return "", None
        migration = await qmp.query("query-migrate", _Migration, deadline_seconds=LOOK_SECONDS)
        devices = await _devices(qmp)
        process = process_identity(qmp.peer.pid)
    if not process:
        raise HypervisorGone(f"the process behind {path} has ended")
    presence = presence_of(state)
    # A source whose migration completed is in postmigrate; a guest that runs after a completed one came by it.
    came = Arrival.MIGRATED if presence is Presence.ACTIVE and migration.status == "completed" else None
    blocked = tuple(f"blocked:{reason[: MAX_TEXT - 8]}" for reason in migration.blocked_reasons)
    return process, Sighting(uuid, presence, state, came, devices=(*devices, *blocked)[:MAX_DEVICES])


def presence_of(run_state: str) -> Presence:
    """Whose the guest is, by QEMU's run state (qapi/run-state.json)."""
    if run_state in _ARRIVING:
        return Presence.ARRIVING
    return Presence.LEAVING if run_state in _LEAVING else Presence.ACTIVE


async def _devices(qmp: QmpConnection) -> tuple[str, ...]:
    """The types of what was plugged in (-device), as QEMU's object model names them."""
    found: set[str] = set()
    for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
        try:
            listed = await qmp.query("qom-list", list[_Property], {"path": folder}, deadline_seconds=LOOK_SECONDS)
        except HypervisorRefused:
            continue
        found |= {match[1] for each in listed if (match := _CHILD.fullmatch(each.type)) is not None}
    return tuple(sorted(found))[:MAX_DEVICES]


def _has_ended(process: str) -> bool:
    try:
        return is_gone(process)
    except HypervisorUnreachable:
        return False  # nobody can say: it is not taken for dead
