"""Carriage at the source: take the order, verify the permit, offer it, let the hypervisor send, hand the guest over.

`carry_as_source` is the story. Whatever interrupts it, `handover.settle_source` brings the session to its end, by the
same code that a restarted relay runs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from certs.tls import local_leaf_sha256
from policy.permit import VerifiedPermit
from transport.errors import (
    ConnectionBroken,
    LocalBroken,
    TransportError,
)
from transport.hypervisors.errors import HypervisorError, MigrationCancelled
from transport.hypervisors.moving import AS_CONFIGURED, How
from transport.relay.board import Entry
from transport.relay.ends import SourceEnd, make_session_folder, remove_session_folder, session_folder
from transport.relay.failures import cause_of
from transport.relay.handover import close_source, settle_source
from transport.relay.host import RelayHost, now
from transport.relay.inlets import SourceLanes
from transport.relay.interrupted import key_of
from transport.relay.news import News, Tell
from transport.relay.permits import other_in_journal
from transport.relay.receipts import ReceiptFacts
from transport.relay.source_line import SourceLine
from transport.relay.source_session import SourceSession, exchange_receipts_as_source
from transport.wire.control import Role
from transport.wire.messages import Handover, Outcome, Receipt

log = structlog.get_logger("sealane.relay")
EndOf = Callable[[VerifiedPermit], SourceEnd | None]
_REVOCABLE = frozenset({"begun", "accepted"})  # the guest was not given away yet


@dataclass(frozen=True, slots=True)
class MigrationOrder:
    """What the gateway asks of the source relay. `address`: "host:port" of the destination relay."""

    permit: str
    address: str
    downtime_limit_ms: int = 300
    deadline_seconds: float = math.inf
    how: How = AS_CONFIGURED
    other_permit: str | None = None  # of the destination's site, where that is another


async def carry_as_source(
    host: RelayHost,
    order: MigrationOrder,
    tell: Tell,
    cancelled: trio.Event,
    socket_path: Path | None = None,
    end: EndOf | None = None,
) -> News:
    """Move one VM, or carry one program's stream; returns the last news, which has been told too.

    `end`: what sends, where it is not what the configuration says; asked once the permit is verified.

    `cancelled` asks to give it up, which is heeded until the guest is handed over. Raises `OfferRefused`,
    `TransportError` or `HypervisorError` only while nothing has been touched; later failures are news.
    """
    permit = host.permits.verify(order.permit, order.other_permit, source=host.spiffe_id, destination=None)
    claims = permit.claims
    patience = min(host.config.limits.queue_seconds, max(0.0, claims.exp - now().timestamp()))
    async with AsyncExitStack() as held:
        await held.enter_async_context(host.board.places.place(claims.migration_id, claims.vm, patience, cancelled))
        with host.board.session("source", claims, cancelled) as entry:
            way = _Way(permit, cancelled, socket_path, None if end is None else end(permit))
            session = await _carry_permitted(host, order, way, entry, entry.telling(tell), held.aclose)
            return await close_source(session, entry.telling(tell))


@dataclass(frozen=True, slots=True)
class _Way:
    """What carries one permitted move, beside its order."""

    permit: VerifiedPermit
    cancelled: trio.Event
    socket_path: Path | None
    end: SourceEnd | None  # None: the configured one


async def _carry_permitted(
    host: RelayHost,
    order: MigrationOrder,
    way: _Way,
    entry: Entry,
    tell: Tell,
    leave_place: Callable[[], Awaitable[None]],
) -> SourceSession:
    """The session, its guest being in its one place; `close_source` follows."""
    permit, cancelled, socket_path = way.permit, way.cancelled, way.socket_path
    seconds = _deadline(host, order, permit)
    new_end: SourceEnd = way.end or host.source_end(permit, {}, order.downtime_limit_ms, seconds, order.how)
    async with host.leaving(permit.claims.vm), new_end as end:
        session = await _begin(host, order, permit, end)
        entry.lanes = lambda: session.facts.channels
        entry.is_reconnecting = lambda: session.is_reconnecting
        entry.trouble_of = lambda: session.trouble
        entry.is_idle = lambda: host.interrupted.why_not(*key_of(permit.claims)) is None
        folder = session_folder(host.spool.run_dir, session.session_id)
        try:
            await host.on_disk(make_session_folder, host.spool.run_dir, session.session_id, host.qemu_uid)
            await _carry_until_cancelled(session, end, tell, cancelled, seconds, socket_path or folder / "memory.sock")
        except (TransportError, HypervisorError, BaseExceptionGroup) as error:
            cause = cause_of(error)
            if session.outcome == "completed":  # between bare sockets, with everything acknowledged
                log.info("receipts were not exchanged", session=session.session_id, cause=str(cause))
            else:
                session.fail(cause)
                end.broke(session.message)
        finally:
            # What follows carries nothing, and may wait for days for a destination that is gone, or for a client.
            await leave_place()
            await _settle_even_when_stopped(session, end, tell)
            await host.on_disk(remove_session_folder, folder)
    return session


async def _settle_even_when_stopped(session: SourceSession, end: SourceEnd, tell: Tell) -> None:
    """Only a relay that stops is cancelled here. It takes a moment to settle; what is left, its successor does."""
    try:
        await settle_source(session, end, tell)
    except trio.Cancelled:
        with trio.move_on_after(session.host.config.limits.stop_seconds, shield=True):
            await settle_source(session, end, tell)
        raise


async def _begin(host: RelayHost, order: MigrationOrder, permit: VerifiedPermit, end: SourceEnd) -> SourceSession:
    """Check the VM, then note the session durably: from here on it is owed an end.

    While we hold QEMU's monitor nobody else begins with this VM, so that nothing comes between the check and the note.
    """
    process = await end.prepare()
    if end.hands_over:
        await host.on_disk(host.spool.require_free_source, permit.claims.vm)
    session_id = os.urandom(16).hex()
    facts = ReceiptFacts(Role.SOURCE, permit, end.vm_binding, now(), local_leaf_sha256(host.credentials))
    journal = await host.on_disk(
        host.spool.begin,
        Role.SOURCE,
        session_id,
        session_id=session_id,
        vm=permit.claims.vm,
        permit=permit.token,
        **other_in_journal(permit),
        address=order.address,
        process=process,
        started=facts.started.isoformat(),
        **end.facts,
    )
    return SourceSession(host, permit, order.address, journal, facts, order.how.movement)


async def _carry_until_cancelled(
    session: SourceSession,
    end: SourceEnd,
    tell: Tell,
    cancelled: trio.Event,
    seconds: float,
    socket_path: Path,
) -> None:
    async with trio.open_nursery() as nursery:

        async def stop_when_asked() -> None:
            with trio.move_on_after(seconds):
                await cancelled.wait()
            if session.journal.state in _REVOCABLE:  # a guest in post-copy would lose the memory that is still here
                nursery.cancel_scope.cancel()

        nursery.start_soon(stop_when_asked)
        await _carry(session, end, tell, socket_path)
        nursery.cancel_scope.cancel()
    if session.journal.state not in _REVOCABLE or session.outcome == "completed":
        return
    if cancelled.is_set():
        raise MigrationCancelled("the migration was cancelled on request")
    raise LocalBroken(f"the migration did not end within its deadline of {seconds:.0f} s")


async def _carry(session: SourceSession, end: SourceEnd, tell: Tell, socket_path: Path) -> None:
    """Offer, carry, hand over, exchange receipts: over one connection, or as many as the network needs."""
    host = session.host
    line = SourceLine(session)
    channels = line.channels
    channels.pace = host.pace_of(session.permit)
    session.facts.channels = channels.counts
    with ExitStack() as held:
        held.callback(channels.close)
        async with trio.open_nursery() as nursery:
            await nursery.start(line.run)
            inlets = end.inlets(socket_path)
            for inlet in inlets:
                held.enter_context(inlet.listening)
            lanes = SourceLanes(channels, line.most_channels)
            for inlet in inlets:
                nursery.start_soon(lanes.accept_forever, inlet)
            await tell(News("running"))
            milestones = _Milestones(session, line, end, tell)
            await end.migrate(lanes, milestones, lambda seen: tell(News("running", seen)))
            if end.hands_over:
                # Past this point a request to cancel comes too late; every wait has its own deadline.
                nursery.cancel_scope.shield = True
                if session.journal.state in ("begun", "accepted"):
                    await _hand_over(session, line, end, tell)
                await channels.wait_drained(host.config.limits.drain_seconds)
            else:
                await channels.wait_arrived()
                session.outcome = "completed"
            await exchange_receipts_as_source(session, lambda ours: line.ask(ours, Receipt))
            await line.say_bye()
            nursery.cancel_scope.cancel()


@dataclass(frozen=True, slots=True)
class _Milestones:
    """What the end says of its guest, made durable and passed on."""

    session: SourceSession
    line: SourceLine
    end: SourceEnd
    tell: Tell

    async def accepted(self) -> None:
        await self.session.note_accepted()

    async def switched(self) -> None:
        with trio.CancelScope(shield=True):  # the point of no return lies behind
            await _hand_over(self.session, self.line, self.end, self.tell, post_copy=True)
        if self.session.journal.state != "outcome-running":
            raise ConnectionBroken("the destination did not take the guest although it was stopped for post-copy")


async def _hand_over(
    session: SourceSession, line: SourceLine, end: SourceEnd, tell: Tell, *, post_copy: bool = False
) -> None:
    """Durably give the guest away, then say so, then wait for what D durably chose."""
    began = trio.current_time()
    await session.host.enter(session.journal, "handed-over", **({"post_copy": True} if post_copy else {}))
    outcome = await line.ask(Handover(post_copy), Outcome)
    handover_ms = math.ceil((trio.current_time() - began) * 1000)
    session.facts.downtime_ms = handover_ms
    await session.decided(outcome.outcome)
    last = await end.last_numbers() if outcome.outcome == "running" and not post_copy else None
    if last is not None:
        session.facts.downtime_ms += last.downtime_ms or 0
    await tell(News("handing_over", last, session.facts.downtime_ms))


def _deadline(host: RelayHost, order: MigrationOrder, permit: VerifiedPermit) -> float:
    """Seconds that this migration may take: the shortest of configuration, order and permit."""
    left = permit.claims.session_until - now().timestamp()
    return max(1.0, min(host.config.limits.migration_deadline_seconds, order.deadline_seconds, left))
