"""The guests that libvirt runs: which domains are active, and how each came here (libvirt keeps the reason).

Events wake the watch at once; between them a look costs one short process, so it is taken seldom.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from xml.etree import ElementTree

import structlog
import trio

from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.guests import MAX_DEVICES, MAX_TEXT, Arrival, Presence, Sighting
from transport.hypervisors.virsh import LibvirtDomain, Virsh

log = structlog.get_logger("sealane.relay")

# virDomainState and the reasons that matter here (include/libvirt/libvirt-domain.h).
RUNNING, BLOCKED, PAUSED, SHUTDOWN, SHUTOFF, CRASHED, SUSPENDED = 1, 2, 3, 4, 5, 6, 7
_STATES: Final = {
    RUNNING: "running", BLOCKED: "blocked", PAUSED: "paused", SHUTDOWN: "shutdown", SHUTOFF: "shutoff",
    CRASHED: "crashed", SUSPENDED: "pmsuspended",
}  # fmt: skip
_CAME: Final = {1: Arrival.STARTED, 2: Arrival.MIGRATED, 3: Arrival.RESTORED, 4: Arrival.RESTORED, 10: Arrival.MIGRATED}
_PAUSED_MIGRATION, _PAUSED_STARTING, _PAUSED_POSTCOPY = 2, 11, 12
_EVENT_CAME: Final = {
    "Booted": Arrival.STARTED, "Migrated": Arrival.MIGRATED, "Restored": Arrival.RESTORED,
    "Snapshot": Arrival.RESTORED,
}  # fmt: skip
_RESTART_SECONDS: Final = 5.0
# No lifecycle event tells of a device that was plugged in later: each look reads some descriptions anew.
_DEVICES_SECONDS: Final = 30.0
_READ_AT_ONCE: Final = 16


class LibvirtGuests:
    """Domains of one libvirt. `recheck_seconds`: how often it is asked where no event says that something happened."""

    def __init__(self, uri: str, program: str, recheck_seconds: float) -> None:
        self._virsh = Virsh(uri, program)
        self._recheck_seconds = recheck_seconds
        self._known: dict[str, Sighting] = {}
        self._came: dict[str, Arrival] = {}  # by name, as events told
        self._read: dict[str, float] = {}  # by UUID, when its devices were
        self._asked: float | None = None
        self._is_woken = True
        self.hears_events = False

    async def look(self, now: float) -> tuple[list[Sighting], list[str]]:
        """New sightings, and the UUIDs of all active domains. HypervisorError leaves what was known."""
        is_steady = self.hears_events and all(each.presence is Presence.ACTIVE for each in self._known.values())
        is_fresh = self._asked is not None and now - self._asked < self._recheck_seconds
        if is_steady and is_fresh and not self._is_woken:
            return [], list(self._known)
        self._is_woken = False
        try:
            domains = await self._virsh.domains()
            due = self._due([domain.uuid for domain in domains], now)
            described = await self._virsh.domain_xmls([domain.uuid for domain in domains if domain.uuid in due])
            there = [domain for domain in domains if domain.uuid in self._known or domain.uuid in described]
            seen = [self._sighting(domain, described.get(domain.uuid)) for domain in there]
        except HypervisorError:
            self._is_woken = True
            raise
        self._known = {sighting.uuid: sighting for sighting in seen}
        self._read = {uuid: now if uuid in due else self._read[uuid] for uuid in self._known}
        self._came.clear()
        self._asked = now
        return seen, list(self._known)

    async def follow(self, wake: Callable[[], None]) -> None:
        """Listen to libvirt's lifecycle events for ever; `wake` asks for a look."""
        while True:
            try:
                async with self._virsh.lifecycle_events() as events:
                    self.hears_events = True
                    async for event in events:
                        if event.event == "Started" and event.detail in _EVENT_CAME and len(self._came) < 4096:
                            self._came[event.name] = _EVENT_CAME[event.detail]
                        self._is_woken = True
                        wake()
            except HypervisorError as error:
                log.warning("no events from libvirt; it is asked instead", cause=str(error))
            self.hears_events = False
            await trio.sleep(_RESTART_SECONDS)

    def _due(self, uuids: list[str], now: float) -> set[str]:
        """Whose devices are to be read: all that are new, and of the others those that were read longest ago."""
        old = sorted((self._read[uuid], uuid) for uuid in uuids if uuid in self._read)
        stale = [uuid for at, uuid in old if now - at >= _DEVICES_SECONDS]
        return {*stale[:_READ_AT_ONCE], *(uuid for uuid in uuids if uuid not in self._read)}

    def _sighting(self, domain: LibvirtDomain, xml: str | None) -> Sighting:
        """`xml`: its description, if it was read anew; that of a domain that is new always is."""
        known = self._known.get(domain.uuid)
        presence = presence_of(domain, was_active=known is not None and known.presence is not Presence.ARRIVING)
        came = self._came.get(domain.name) or (_CAME.get(domain.reason) if domain.state == RUNNING else None)
        if came is None and known is not None:
            came = known.arrival
        devices = devices_of(xml) if xml is not None else known.devices if known is not None else ()
        state = _STATES.get(domain.state, f"state-{domain.state}")
        return Sighting(domain.uuid, presence, state, came, domain.name[:MAX_TEXT], devices)


def presence_of(domain: LibvirtDomain, *, was_active: bool) -> Presence:
    """Whose the guest is. At both ends of a migration libvirt says "paused (migration)"; who had it, is leaving."""
    if domain.state == PAUSED and domain.reason in {_PAUSED_MIGRATION, _PAUSED_STARTING, _PAUSED_POSTCOPY}:
        return Presence.LEAVING if was_active else Presence.ARRIVING
    return Presence.ACTIVE


def devices_of(xml: str) -> tuple[str, ...]:
    """What may be in the way of a migration, by kind: host devices, TPM, shared memory, vhost-user, file systems."""
    try:
        domain = parse_domain(xml)
    except ValueError:
        return ("unreadable-domain-xml",)
    found: set[str] = set()
    for device in domain.iterfind("./devices/*"):
        kind = device.get("type") or device.get("model") or ""
        match device.tag:
            case "hostdev" | "tpm" | "shmem" | "filesystem" | "redirdev" | "smartcard" | "nvram" | "vsock" | "memory":
                found.add(f"{device.tag}:{kind}"[:MAX_TEXT])
            case "interface" if kind in {"hostdev", "vhostuser", "vdpa"}:
                found.add(f"interface:{kind}")
            case "disk" if kind in {"vhostuser", "nvme"}:
                found.add(f"disk:{kind}")
            case _:
                pass
    return tuple(sorted(found))[:MAX_DEVICES]


def parse_domain(xml: str) -> ElementTree.Element:
    """The <domain> element. ValueError for what is none; libvirt never writes a document type, so none is read."""
    if "<!" in xml.replace("<!--", ""):
        raise ValueError("domain XML with a document type")
    try:
        root = ElementTree.fromstring(xml)  # noqa: S314 - from libvirtd, and without entities: see above
    except ElementTree.ParseError as error:
        raise ValueError(f"domain XML: {error}") from None
    if root.tag != "domain":
        raise ValueError("not a <domain>")
    return root
