"""The one listening port: tells TLS from a lane's preface, and spends little on whoever has not proven itself.

Until a peer is authenticated its connection counts as a stranger: strangers have a deadline, are capped per address
and in all (at the cap the oldest goes), are not logged one by one, and handshakes are rate-limited.
"""

from __future__ import annotations

import math
import socket
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from transport.errors import ConnectionBroken, ProtocolViolation
from transport.relay.config import LimitsSection
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


class Strangers:
    """Connections that have not proven themselves, oldest first."""

    def __init__(self, limits: LimitsSection) -> None:
        self._limits = limits
        self._scopes: OrderedDict[trio.CancelScope, str] = OrderedDict()

    def enter(self, address: str) -> trio.CancelScope:
        """A scope with the handshake deadline; the oldest stranger is put out where there is no room."""
        same = [scope for scope, theirs in self._scopes.items() if theirs == address]
        if len(same) >= self._limits.max_unauthenticated_per_address:
            self.leave(same[0])
        if len(self._scopes) >= self._limits.max_unauthenticated:
            self.leave(next(iter(self._scopes)))
        scope = trio.CancelScope(deadline=trio.current_time() + self._limits.handshake_seconds)
        self._scopes[scope] = address
        return scope

    def leave(self, scope: trio.CancelScope) -> None:
        """Put a stranger out."""
        self._scopes.pop(scope, None)
        scope.cancel()

    def proven(self, scope: trio.CancelScope) -> None:
        """This one is a stranger no more, and has no handshake deadline."""
        self._scopes.pop(scope, None)
        scope.deadline = math.inf

    def __len__(self) -> int:
        return len(self._scopes)


class HandshakeRate:
    """At most `per_second` handshakes begun in any second; the others wait, under their own deadline."""

    def __init__(self, per_second: int) -> None:
        self._begun: deque[float] = deque(maxlen=per_second)

    async def turn(self) -> None:
        while len(self._begun) == self._begun.maxlen and self._begun[0] > trio.current_time() - 1:
            await trio.sleep(self._begun[0] + 1 - trio.current_time())
        self._begun.append(trio.current_time())


ControlHandler = Callable[[trio.socket.SocketType, bytes, Callable[[], None]], Awaitable[None]]


class Listener:
    """Accepts on one port for as long as `serve` runs; hands control connections to `handle_control`.

    `handle_control(socket, bytes already read, proven)` calls `proven()` once the peer is authenticated.
    """

    def __init__(self, limits: LimitsSection, handle_control: ControlHandler) -> None:
        self._limits = limits
        self._handle_control = handle_control
        self._desks: dict[bytes, LaneDesk] = {}
        self._rate = HandshakeRate(limits.handshakes_per_second)
        self.strangers = Strangers(limits)

    def open_desk(self, keys: ConnectionKeys, max_channels: int) -> LaneDesk:
        desk = LaneDesk(keys, max_channels)
        self._desks[keys.connection_id] = desk
        return desk

    def close_desk(self, desk: LaneDesk) -> None:
        self._desks.pop(desk.keys.connection_id, None)
        desk.close()

    async def serve(self, listening: trio.socket.SocketType) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    accepted, address = await listening.accept()
                except OSError:
                    await trio.sleep(0.05)  # out of descriptors, or gone before we took it: others go on
                    continue
                nursery.start_soon(self._serve_one, accepted, str(address[0]))

    async def _serve_one(self, accepted: trio.socket.SocketType, address: str) -> None:
        scope = self.strangers.enter(address)
        handed_on = False
        try:
            with scope:
                tune_tcp(accepted)
                first = await _read_at_least(accepted, b"", _DECIDING_BYTES)
                if first.startswith(_TLS_HANDSHAKE_RECORD):
                    await self._rate.turn()
                    await self._handle_control(accepted, first, lambda: self.strangers.proven(scope))
                elif first.startswith(MAGIC):
                    preface = await _read_at_least(accepted, first, PREFACE_BYTES)
                    handed_on = self._take_lane(accepted, preface)
        except (ConnectionBroken, ProtocolViolation, OSError):
            pass  # closed without an answer, and without a line in the log that a stranger could fill it with
        finally:
            self.strangers.leave(scope)
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
