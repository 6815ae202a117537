"""The relay's watch over its host: looks at the guests now and then, and reports what runs here to the gateway.

What the gateway does with it (which VM is where, alarms for one that came without a permit) is not known here. A host
that lies gains nothing: where it says a VM is decides who must send it, never what policy allows.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Protocol

import msgspec
import structlog
import trio

from transport.errors import TransportError
from transport.hypervisors.errors import HypervisorError
from transport.hypervisors.guests import GuestBook, Sighting
from transport.hypervisors.libvirt_guests import LibvirtGuests
from transport.hypervisors.qmp_guests import QmpGuests
from transport.relay.config import RelayConfig
from transport.relay.gateway_answers import understood
from transport.relay.libvirt_orders import libvirt_uri
from transport.relay.placement_report import Reporter, decode_answer

Send = Callable[[bytes], Awaitable[bytes]]

log = structlog.get_logger("sealane.relay")


class Guests(Protocol):
    """A way to look at the guests of this host: sightings that are new, and the UUIDs of all that are there."""

    async def look(self, now: float, /) -> tuple[list[Sighting], list[str]]: ...


def sources_of(config: RelayConfig) -> list[Guests]:
    """What the configuration lets us look at; empty where the relay only carries sockets."""
    placement, hypervisor = config.placement, config.hypervisor
    found: list[Guests] = []
    if hypervisor.kind == "qmp" and placement.watch_qmp:
        found.append(QmpGuests(hypervisor.qmp_socket, placement.recheck_seconds))
    if uri := libvirt_uri(config):
        found.append(LibvirtGuests(uri, placement.virsh, placement.recheck_seconds))
    return found


class Watch:
    """One relay's. `send` brings a report to the gateway and returns its answer; TransportError when it cannot."""

    def __init__(
        self, sources: list[Guests], scan_seconds: float, report_seconds: float, send: Send, also: Sequence[Send] = ()
    ) -> None:
        """`also`: to further gateways, which get a whole snapshot each time: changes are forgotten once told."""
        self.book = GuestBook()
        self._sources = sources
        self._scan_seconds = scan_seconds
        self._report_seconds = report_seconds
        self._send = send
        self._reporter = Reporter(self.book, os.urandom(16).hex(), report_seconds)
        self._also = [(Reporter(self.book, os.urandom(16).hex(), report_seconds), each) for each in also]
        self._last_report = -float("inf")
        self._turn = trio.Lock()
        self._trouble = ""
        self._woken = trio.Event()

    async def run(self) -> None:
        """For ever. Says once what is in the way, and once that it is over."""
        async with trio.open_nursery() as nursery:
            for source in self._sources:
                if isinstance(source, LibvirtGuests):
                    nursery.start_soon(source.follow, self.wake)
            while True:
                self._woken = trio.Event()
                await self.look_and_report()
                with trio.move_on_after(self._scan_seconds):
                    await self._woken.wait()

    def wake(self) -> None:
        """Look now: something happened."""
        self._woken.set()

    async def look_and_report(self, *, at_once: bool = False) -> None:
        """One look, and a report if anything changed, the last one is long ago, or `at_once`."""
        async with self._turn:
            trouble = ""
            try:
                await self.look()
                now = trio.current_time()
                changed, gone = self.book.take_changes()
                self.book.put_back(changed, gone)
                is_due = now - self._last_report >= self._report_seconds
                if changed or gone or is_due or at_once or self._reporter.needs_snapshot:
                    await self._report_to_all()
            except (TransportError, HypervisorError, OSError) as error:
                trouble = f"{type(error).__name__}: {error}"
            if trouble and not self._trouble:
                log.warning("placement is not reported", cause=trouble)
            elif self._trouble and not trouble:
                log.info("placement is reported again")
            self._trouble = trouble

    async def look(self) -> None:
        """See what runs here. If one way of looking fails, nothing is entered: half a picture shows VMs as gone."""
        now = trio.current_time()
        looks = [await source.look(now) for source in self._sources]
        seen = [sighting for sightings, _ in looks for sighting in sightings]
        self.book.update(seen, {uuid for _, present in looks for uuid in present}, trio.current_time())

    async def _report_to_all(self) -> None:
        """The first failure is raised when each of the others has been told: one that is away delays none."""
        failures: list[TransportError | OSError] = []

        async def to(report: Callable[[], Awaitable[None]]) -> None:
            try:
                await report()
            except (TransportError, OSError) as error:  # OSError: a receipt, told first, cannot be read now
                failures.append(error)

        if not self._also:
            await self._report()
            return
        await to(self._report)
        async with trio.open_nursery() as nursery:
            for reporter, send in self._also:
                nursery.start_soon(to, partial(_snapshot, reporter, send))
        if failures:
            raise failures[0]

    async def _report(self) -> None:
        for _ in range(2):  # a second time if the gateway wants a snapshot
            wants_snapshot = False
            try:
                for report in self._reporter.reports(trio.current_time()):
                    answer = understood(decode_answer, await self._send(msgspec.json.encode(report)))
                    wants_snapshot |= answer.resync
            except BaseException:
                self._reporter.needs_snapshot = True  # what was lost is in the snapshot
                raise
            self._last_report = trio.current_time()
            if not wants_snapshot:
                return
            self._reporter.needs_snapshot = True


async def _snapshot(reporter: Reporter, send: Send) -> None:
    reporter.needs_snapshot = True
    for report in list(reporter.reports(trio.current_time())):
        await send(msgspec.json.encode(report))
