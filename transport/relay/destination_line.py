"""One connection of a session at the destination: answer S, carry its channels and do what it says, until Bye.

Whatever breaks it raises; what must outlive it stands in the session (`Live`), which the next connection takes up.
"""

from __future__ import annotations

from typing import Literal, Protocol

import structlog
import trio

from transport.errors import ConnectionBroken, ProtocolViolation
from transport.relay.channel import Channel, PortName
from transport.relay.channels import Channels
from transport.relay.control import ControlLink
from transport.relay.destination_session import DestinationSession
from transport.relay.ends import Arrival
from transport.relay.host import now
from transport.relay.listener import LaneDesk
from transport.relay.receipts import outcome_of, receipt_sha256, verify_peer_receipt
from transport.relay.tls_lane import Lane, LaneEnds, as_server
from transport.wire.control import Phase, Role
from transport.wire.messages import Answer, Bye, Cancel, Handover, Message, Offer, Open, Outcome, Receipt

log = structlog.get_logger("sealane.relay")


class Settle(Protocol):
    """Durably chooses and acts; goes on when the connection on which it was asked for ends."""

    async def __call__(self, *, handed_over: bool, post_copy: bool = False) -> Literal["running", "discarded"]: ...


class DestinationLine:
    """Of one session, whose channels it takes up if they may go on."""

    def __init__(self, session: DestinationSession, link: ControlLink, desk: LaneDesk, settle: Settle) -> None:
        self._session = session
        self._link = link
        self._desk = desk
        self._settle = settle
        self._host = session.host
        self._limits = session.host.config.limits
        self._live = session.live if session.may_go_on else None
        self._channels = (
            self._live.channels
            if self._live is not None
            else Channels(Role.DESTINATION, self._limits, session.host.cores, session.host.memory)  # carry nothing
        )

    async def carry(self, offer: Offer) -> None:
        """Until Bye. Raises TransportError and HypervisorError, in groups of their own."""
        link, channels = self._link, self._channels
        if len(offer.next) < len(channels.all):
            raise ProtocolViolation("a resumption that leaves channels out")
        channels.rewind(offer.next)
        link.sent_frames, link.acknowledged = channels.sent_frames, channels.acknowledged
        await link.send(Answer(channels.next(), self._desk.max_channels))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channels.acknowledge, link, self._limits.ack_interval_seconds)
            if self._live is not None:
                nursery.start_soon(self._live.watch)
                nursery.start_soon(self._look_ahead)
            for channel in channels.all:
                nursery.start_soon(self._carry_lane, channel)
            message: Message | None = None
            while not isinstance(message, Bye):
                message = await link.next()
                with channels.patience.deaf():
                    await self._do(message, nursery)
            nursery.cancel_scope.cancel()

    async def _look_ahead(self) -> None:
        await self._channels.wait_written("memory")
        await self._session.look_ahead()

    async def _do(self, message: Message, nursery: trio.Nursery) -> None:
        link, session = self._link, self._session
        if link.order.phase is Phase.SETTLED and isinstance(message, (Open, Handover, Cancel)):
            return  # it was under way when we chose, and changes nothing
        match message:
            case Open(port=port):
                channel = await self._open(port)
                nursery.start_soon(self._carry_lane, channel)
            case Handover(post_copy=post_copy):
                is_asked_again = not session.is_undecided
                outcome = await self._settle(handed_over=True, post_copy=post_copy)
                if not is_asked_again:
                    log.info("handover", vm=session.permit.claims.vm, outcome=outcome)
                await link.send(Outcome(outcome))
            case Cancel():
                outcome = await self._settle(handed_over=False)
                await link.send(Outcome(outcome))
            case Receipt() as receipt:
                assert session.facts.peer is not None
                verify_peer_receipt(receipt, session.facts.peer)
                await self._channels.wait_drained(self._limits.drain_seconds)
                session.facts.peer_receipt_sha256 = receipt_sha256(receipt)
                session.source_certifies = outcome_of(receipt)
                await link.send(await session.keep_receipt())
            case Bye():
                pass

    async def _open(self, port: PortName) -> Channel:
        """Dial the hypervisor for the next channel, one after the other, in the order in which S accepted: QEMU counts
        on it. A connection that is lost meanwhile waits: a hypervisor that was dialled twice would take the second for
        another channel."""
        session, channels = self._session, self._channels
        if not session.may_go_on or session.live is None:
            # Neither the permit's times nor its use were looked at again, so nothing is carried on it.
            raise ProtocolViolation("a channel on a connection that only settles")
        if port not in session.permit.claims.ports:
            raise ProtocolViolation(f"port {port} is not the permit's")
        nursery = await session.live.nursery()
        arrival = Arrival(session.folder, self._limits.dial_seconds, nursery, session.note_loaded)
        with trio.CancelScope(shield=True):
            local = await session.end.dial(port, arrival)
        # Not the first memory channel: it says at once that QEMU has died. Disks may come before it.
        is_further = any(each.port == port for each in channels.counts)
        may_leave = session.end.hands_over and port == "memory" and is_further
        return channels.add(port, local, may_leave=may_leave)

    async def _carry_lane(self, channel: Channel) -> None:
        number, seconds = channel.counts.channel, self._limits.handshake_seconds
        sock = None
        with trio.move_on_after(seconds):
            sock = await self._desk.take(number)
        if sock is None:
            raise ConnectionBroken("a lane that was announced did not come")
        lane: Lane = sock
        if self._channels.is_tls:
            facts, identity = self._session.facts, self._host.identity
            assert facts.peer is not None
            own = facts.own_leaf_sha256
            ends = LaneEnds(identity.of_lanes(own), facts.peer.leaf_sha256, self._desk.keys, now(), seconds)
            lane = await as_server(sock, identity.context_of_lanes(own), number, ends)
        await self._channels.carry(channel, self._desk.keys, lane)
