"""The one listening port: tells TLS from a lane's preface, and spends little on whoever has not proven itself.

Until a peer is authenticated its connection counts as a stranger (`strangers`); strangers are not logged one by one.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from transport.errors import ConnectionBroken, ProtocolViolation
from transport.relay.limits import LimitsSection
from transport.relay.strangers import Entrance
from transport.relay.tcp import tune_tcp
from transport.wire.keys import ConnectionKeys
from transport.wire.preface import MAGIC, PREFACE_BYTES, authenticate_preface, read_preface

_TLS_HANDSHAKE_RECORD = b"\x16\x03"
_DECIDING_BYTES = 4


@dataclass(slots=True)
class LaneDesk:
    """Where a connection's lanes arrive: authenticated sockets by channel, each channel once."""

    keys: ConnectionKeys
    max_channels: int
    _arrived: dict[int, socket.socket] = field(default_factory=dict)
    _taken: set[int] = field(default_factory=set)
    _changed: trio.Event = field(default_factory=trio.Event)

    def deliver(self, channel: int, lane: socket.socket) -> None:
        """`ProtocolViolation` for a second lane of a channel, or one beyond the limit."""
        if channel >= self.max_channels or channel in self._arrived or channel in self._taken:
            raise ProtocolViolation("a second preface for a channel, or one beyond the limit")
        self._arrived[channel] = lane
        self._changed.set()
        self._changed = trio.Event()

    async def take(self, channel: int) -> socket.socket:
        """The lane of `channel`, once it has arrived."""
        while channel not in self._arrived:
            await self._changed.wait()
        self._taken.add(channel)
        return self._arrived.pop(channel)

    def close(self) -> None:
        for lane in self._arrived.values():
            lane.close()
        self._arrived.clear()


ControlHandler = Callable[[trio.socket.SocketType, bytes, Callable[[], None]], Awaitable[None]]


class Listener:
    """Accepts on one port for as long as `serve` runs; hands control connections to `handle_control`.

    `handle_control(socket, bytes already read, proven)` calls `proven()` once the peer is authenticated.
    """

    def __init__(
        self,
        limits: LimitsSection,
        handle_control: ControlHandler,
        is_known: Callable[[str], bool] = lambda address: False,  # noqa: ARG005 - no address book, no address known
    ) -> None:
        self._limits = limits
        self._handle_control = handle_control
        self._desks: dict[bytes, LaneDesk] = {}
        self._is_known = is_known
        self._known, self._others = Entrance(limits), Entrance(limits)

    def open_desk(self, keys: ConnectionKeys, max_channels: int) -> LaneDesk:
        desk = LaneDesk(keys, max_channels)
        self._desks[keys.connection_id] = desk
        return desk

    def close_desk(self, desk: LaneDesk) -> None:
        self._desks.pop(desk.keys.connection_id, None)
        desk.close()

    async def serve(self, listening: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._known.turns.run)
            nursery.start_soon(self._others.turns.run)
            while True:
                try:
                    accepted, address = await listening.accept()
                except OSError:
                    await trio.sleep(0.05)  # out of descriptors, or gone before we took it: others go on
                    continue
                nursery.start_soon(self._serve_one, accepted, str(address[0]))

    async def _serve_one(self, accepted: trio.socket.SocketType, address: str) -> None:
        entrance = self._known if self._is_known(address) else self._others
        scope = entrance.strangers.enter(address)
        handed_on = False
        try:
            with scope:
                tune_tcp(accepted)
                first = await _read_at_least(accepted, b"", _DECIDING_BYTES)
                if first.startswith(_TLS_HANDSHAKE_RECORD):
                    await entrance.turns.take(address)
                    await self._handle_control(accepted, first, lambda: entrance.strangers.proven(scope))
                elif first.startswith(MAGIC):
                    preface = await _read_at_least(accepted, first, PREFACE_BYTES)
                    handed_on = self._take_lane(accepted, preface)
        except (ConnectionBroken, ProtocolViolation, OSError):
            pass  # closed without an answer, and without a line in the log that a stranger could fill it with
        finally:
            entrance.strangers.leave(scope)
            if not handed_on:
                accepted.close()

    def _take_lane(self, accepted: trio.socket.SocketType, data: bytes) -> bool:
        preface = read_preface(data)
        desk = self._desks.get(preface.connection_id)
        if desk is None:
            return False
        authenticate_preface(preface, desk.keys)
        lane = socket.socket(fileno=accepted.detach())
        lane.setblocking(False)
        try:
            desk.deliver(preface.channel, lane)
        except ProtocolViolation:
            lane.close()
        return True


async def _read_at_least(sock: trio.socket.SocketType, have: bytes, count: int) -> bytes:
    """Exactly `count` bytes, `have` in front; never more, so that a lane's first frame stays in its socket."""
    while len(have) < count:
        data = await sock.recv(count - len(have))
        if not data:
            raise ConnectionBroken("closed before it said what it is")
        have += data
    return have
