"""Reports of placement as they come in: entered, judged against the log, recorded; and hosts that fall silent.

Records: `placement.adopted`, `placement.unpermitted`, `placement.duplicate`, `placement.duplicate_ended`,
`placement.silent`, `placement.heard`. What cannot be recorded now is not forgotten: the next report is judged, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any, Final

import structlog
import trio

from audit.record import Vm
from certs.identity import SpiffeId
from gateway.errors import GatewayError, RequestRefused
from gateway.gate import Gate
from gateway.host_reports import HostState, Report, TooManyGuests
from gateway.placement_judging import Adopted, Alarms, Duplicate, DuplicateEnded, Scene, Unpermitted, judge
from gateway.recording import Event, host_actor
from gateway.throttle import Throttle
from gateway.turns import Turns

log = structlog.get_logger("gateway.placement")

ALARM_KINDS: Final = (
    "placement.adopted",
    "placement.unpermitted",
    "placement.duplicate",
    "placement.duplicate_ended",
)
ALARM_MEMORY: Final = timedelta(days=90)  # of the log, at start
ALARMS_AT_ONCE: Final = 500  # of one host; then one more every ALARM_SECONDS
ALARM_SECONDS: Final = 2.0


class PlacementWatching:
    """One gateway's."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._alarms = Alarms(set(), {})
        self._silent: set[str] = set()
        self._turns = Turns(1, 1)
        # A host that makes things up fills no log; what is held back is found again with a later report.
        self._throttle = Throttle(ALARMS_AT_ONCE, ALARM_SECONDS, trio.current_time)

    async def take(self, host: SpiffeId, report: Report) -> bool:
        """Enter a report; False: the relay must send a snapshot. Errors: RequestRefused, Overloaded, LogUnavailable."""
        name = str(host)
        async with self._turns.of(name):
            now = self._now()
            try:
                taken = self._gate.placement.take(name, report)
            except TooManyGuests as error:
                raise RequestRefused(str(error)) from error
            state = self._gate.placement.reports.get(name)
            assert state is not None
            if name in self._silent:
                await self._gate.recorder.append(Event("placement.heard", actor=host_actor(name)))
                self._silent.discard(name)
            if taken and not report.more:
                await self._judge(name, state, now)
            return taken

    async def run(self) -> None:
        """Notice hosts that fall silent, for ever."""
        placement = self._gate.placement
        while True:
            await trio.sleep(max(0.05, placement.silence_seconds / 4))
            try:
                await self.notice_silence()
            except GatewayError as error:
                log.warning("a silent host could not be recorded", error=error.detail)

    async def notice_silence(self) -> None:
        """Record each host whose relay reported before and does not any more, once. Errors: LogUnavailable."""
        placement = self._gate.placement
        async with self._turns.of(""):
            for host, state in list(placement.reports.hosts().items()):
                seconds = placement.silent_seconds(state)
                if host in self._silent or seconds <= placement.silence_seconds:
                    continue
                details = {"silent_ms": round(seconds * 1000), "guests": len(state.guests)}
                await self._gate.recorder.append(Event("placement.silent", source=host, details=details))
                log.warning("no placement reports from a host", host=host, **details)
                self._silent.add(host)

    def restore(self, records: Iterable[tuple[int, Mapping[str, Any]]]) -> None:
        """At start, from the log in order: alarms that were raised are not raised again."""
        for _, record in records:
            vm = (record.get("vm") or {}).get("uuid") or ""
            details = record.get("details", {})
            match record["kind"]:
                case "placement.unpermitted":
                    self._alarms.unpermitted.add((vm, record["destination"]))
                case "placement.duplicate":
                    self._alarms.duplicates[vm] = frozenset(details.get("hosts", ()))
                case "placement.duplicate_ended":
                    self._alarms.duplicates.pop(vm, None)
                case "placement.adopted":
                    self._alarms.unpermitted -= {(each, details["host"]) for each in details.get("vms", ())}
                case _:
                    pass

    async def _judge(self, host: str, state: HostState, now: float) -> None:
        gate, alarms = self._gate, self._alarms
        left = {(vm, where) for vm, where in alarms.unpermitted if where == host and vm not in state.guests}
        alarms.unpermitted -= left
        adopted: list[str] = []
        scene = Scene(gate.placement, gate.inventory, gate.migrations, alarms, now)
        for finding in list(judge(host, state, scene)):
            if isinstance(finding, Adopted):
                adopted.append(finding.vm.uuid)
            elif self._throttle.admits(host):
                await self._record(host, finding)
        for at in range(0, len(adopted), 500):
            part = adopted[at : at + 500]
            await gate.recorder.append(
                Event("placement.adopted", actor=host_actor(host), details={"host": host, "vms": part})
            )
            for uuid in part:
                gate.placement.adopt(uuid, host)
                alarms.unpermitted.discard((uuid, host))

    async def _record(self, host: str, finding: Unpermitted | Duplicate | DuplicateEnded) -> None:
        alarms, append = self._alarms, self._gate.recorder.append
        match finding:
            case Unpermitted(vm=vm):
                await append(unpermitted_event(host, finding, self._gate.placement.now()))
                log.error("VM arrived without a permit", vm=vm.name, host=host, arrival=finding.guest.arrival)
                alarms.unpermitted.add((vm.uuid, host))
            case Duplicate(vm=vm, hosts=hosts):
                details = {"hosts": sorted(hosts), "reported_by": host}
                await append(Event("placement.duplicate", "detected", vm=Vm(vm.uuid, vm.name), details=details))
                log.error("VM runs on more than one host", vm=vm.name, hosts=sorted(hosts))
                alarms.duplicates[vm.uuid] = hosts
            case DuplicateEnded(vm_uuid=uuid, hosts=hosts):
                known = self._gate.inventory.vm(uuid)
                named = Vm(uuid, known.name if known is not None else None)
                await append(Event("placement.duplicate_ended", vm=named, details={"hosts": sorted(hosts)}))
                alarms.duplicates.pop(uuid, None)

    def _now(self) -> float:
        return self._gate.clock.wall().timestamp()


def unpermitted_event(host: str, finding: Unpermitted, now: float) -> Event:
    """Complete in itself: what was expected and why, what was seen, and which migration the log knows last."""
    guest, last, expected = finding.guest, finding.last, finding.expected
    return Event(
        "placement.unpermitted",
        "detected",
        actor=host_actor(host),
        vm=Vm(finding.vm.uuid, finding.vm.name),
        source=expected.host,
        destination=host,
        details={
            "arrival": guest.arrival,
            "run_state": guest.run_state,
            "here_for_ms": max(0, round((now - guest.since) * 1000)),
            "name_on_host": guest.name,
            "devices": list(guest.devices),
            "expected_by": expected.source,
            "last_migration": None
            if last is None
            else {"migration_id": last.migration_id, "state": last.state.value, "record_index": last.record_index},
        },
    )
