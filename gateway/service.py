"""The composition root: reads the configuration, puts the pieces together, serves, reloads, stops in order.

serve(config)      in a trio program; hands over a `Gateway` once it answers

`gateway.composition` makes the pieces, `gateway.process` is the process around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from audit.log import Log
from audit.record import format_time
from gateway.api.desk import Desk
from gateway.clocks import system_clock
from gateway.committer import Committer
from gateway.composition.pieces import Pieces, make_pieces
from gateway.composition.telling import start_details
from gateway.config import Address, GatewayConfig
from gateway.errors import GatewayError
from gateway.log_keeping import LogKeeping
from gateway.placement_watching import ALARM_KINDS, ALARM_MEMORY, PlacementWatching
from gateway.recording import Clock, Event, Recorder
from gateway.reloading import Reloader
from gateway.siem.delivery import Delivery

STOP_SECONDS: Final = 5.0

log = structlog.get_logger("gateway.service")


@dataclass(slots=True)
class Gateway:
    """A running gateway; `listen` is HOST:PORT as bound."""

    listen: str
    reloader: Reloader
    keeping: LogKeeping
    placement: PlacementWatching
    delivery: Delivery
    desk: Desk
    _stopping: trio.Event = field(default_factory=trio.Event)

    @property
    def committer(self) -> Committer:
        return self.keeping.committer

    async def reload(self) -> None:
        """Read its files again (SIGHUP)."""
        await self.reloader.reload()

    def stop(self) -> None:
        """End in order (SIGTERM)."""
        self._stopping.set()

    async def wait_stopping(self) -> None:
        await self._stopping.wait()


async def serve(
    config: GatewayConfig,
    *,
    clock: Clock | None = None,
    open_log: Callable[[], Log] | None = None,
    task_status: trio.TaskStatus[Gateway] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until `Gateway.stop` or cancellation. Errors at start: GatewayError, each naming what to correct.

    `clock` and `open_log` are for tests. Orderly stop: no new connection, answers under way finish, the stop is
    recorded, the log closed. Cancelled, it leaves out what takes time; nothing acknowledged is lost in any case.
    """
    async with AsyncExitStack() as stack:
        await _run(await make_pieces(config, stack, clock or system_clock(), open_log), task_status)


async def _run(pieces: Pieces, task_status: trio.TaskStatus[Gateway]) -> None:
    keeping, recorder = pieces.keeping, pieces.keeping.recorder
    async with trio.open_nursery() as writing:
        await keeping.start(writing)
        await _restore(pieces)
        async with trio.open_nursery() as serving:
            running = await _open(pieces, serving)
            serving.start_soon(_heartbeat, recorder, pieces.config.log.heartbeat_seconds)
            for task in pieces.background:
                serving.start_soon(task)
            task_status.started(running)
            log.info("gateway serves", listen=running.listen, name=pieces.config.gateway.name)
            await running.wait_stopping()
            pieces.gate.dispatch.close()
            await pieces.server.stop_gracefully(STOP_SECONDS)
            serving.cancel_scope.cancel()
        with trio.move_on_after(STOP_SECONDS):
            await pieces.desk.tile_reading.finish()
            await _record_or_log(recorder, Event("gateway.stopped"))
            await keeping.finish()
        writing.cancel_scope.cancel()


async def _restore(pieces: Pieces) -> None:
    """What it knew before it last ended, from its own log."""
    gate, reading = pieces.gate, pieces.desk.reading
    await reading.restore(int(time.time()))
    gate.time.not_before(await reading.newest_time())
    alarms_since = format_time(gate.clock.wall() - ALARM_MEMORY)
    pieces.placement.restore(await reading.records_since(ALARM_KINDS, alarms_since))
    if gate.break_glass is not None:
        await gate.break_glass.restore()
    if (office := pieces.desk.office) is not None:
        await office.revoking.finish(reading, office.terms.host_lifetime)


async def _open(pieces: Pieces, serving: trio.Nursery) -> Gateway:
    """Listen, and record the start; the record is durable before anyone is told that the gateway serves."""
    address = pieces.config.listen
    listeners = await serving.start(pieces.server.serve, address.host, address.port)
    bound = listeners[0].socket.getsockname()
    listen = str(Address(bound[0], bound[1]))
    details = start_details(pieces.config, listen, pieces.keeping.committer, pieces.reloader)
    await pieces.keeping.recorder.append(Event("gateway.started", details=details))
    return Gateway(listen, pieces.reloader, pieces.keeping, pieces.placement, pieces.delivery, pieces.desk)


async def _heartbeat(recorder: Recorder, seconds: int) -> None:
    """Silence in the log is provable only if there would have been something to read."""
    while True:
        await trio.sleep(seconds)
        await _record_or_log(recorder, Event("heartbeat"))


async def _record_or_log(recorder: Recorder, event: Event) -> None:
    """For events that nothing waits for."""
    try:
        await recorder.append(event)
    except GatewayError as error:
        log.warning("could not be recorded", kind=event.kind, error=error.detail)
