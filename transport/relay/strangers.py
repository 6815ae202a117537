"""Connections that have not proven themselves: few, for a short time, and none at the cost of another address.

They have a deadline, are capped per address and in all, and their handshakes are rate-limited. At the cap the address
that holds the most gives way, and handshakes take turns by address: whoever floods from a few addresses pushes out and
keeps waiting only connections of their own. (A TCP connection shows that its address is not made up.) Addresses of
the address book have places and turns of their own, so that not even a flood from everywhere keeps a host out.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque

import trio

from transport.relay.limits import LimitsSection


class Strangers:
    """Scopes of strangers by address, the oldest first."""

    def __init__(self, limits: LimitsSection) -> None:
        self._limits = limits
        self._addresses: dict[trio.CancelScope, str] = {}
        self._scopes: dict[str, OrderedDict[trio.CancelScope, None]] = {}

    def enter(self, address: str) -> trio.CancelScope:
        """A scope with the handshake deadline. Where there is no room, another stranger is put out for it."""
        same = self._scopes.get(address)
        if same and len(same) >= self._limits.max_unauthenticated_per_address:
            self.leave(next(iter(same)))
        if len(self) >= self._limits.max_unauthenticated:
            # The first of equals is the address that was here first: its oldest stranger is the oldest of all theirs.
            most = max(self._scopes.values(), key=len)
            self.leave(next(iter(most)))
        scope = trio.CancelScope(deadline=trio.current_time() + self._limits.handshake_seconds)
        self._addresses[scope] = address
        self._scopes.setdefault(address, OrderedDict())[scope] = None
        return scope

    def leave(self, scope: trio.CancelScope) -> None:
        """Put a stranger out."""
        self._forget(scope)
        scope.cancel()

    def proven(self, scope: trio.CancelScope) -> None:
        """This one is a stranger no more, and has no handshake deadline."""
        self._forget(scope)
        scope.deadline = math.inf

    def __len__(self) -> int:
        return len(self._addresses)

    def _forget(self, scope: trio.CancelScope) -> None:
        address = self._addresses.pop(scope, None)
        if address is not None:
            same = self._scopes[address]
            del same[scope]
            if not same:
                del self._scopes[address]


class Entrance:
    """Strangers and their turns together. A relay has two: for addresses of the address book, and for all others."""

    def __init__(self, limits: LimitsSection) -> None:
        self.strangers = Strangers(limits)
        self.turns = HandshakeTurns(limits.handshakes_per_second)


class HandshakeTurns:
    """At most `per_second` handshakes begun in any second. The others wait, and addresses take turns."""

    def __init__(self, per_second: int) -> None:
        self._begun: deque[float] = deque(maxlen=per_second)
        self._waiting: OrderedDict[str, OrderedDict[trio.Event, None]] = OrderedDict()
        self._somebody = trio.Event()

    async def take(self, address: str) -> None:
        """Return when it is this connection's turn; `run` must be running. The wait is under the caller's deadline."""
        if not self._waiting and self._free_in() <= 0:
            self._begun.append(trio.current_time())
            return
        turn = trio.Event()
        self._waiting.setdefault(address, OrderedDict())[turn] = None
        self._somebody.set()
        try:
            await turn.wait()
        finally:
            self._remove(address, turn)

    async def run(self) -> None:
        """Give turns, for ever."""
        while True:
            while not self._waiting:
                self._somebody = trio.Event()
                await self._somebody.wait()
            if (seconds := self._free_in()) > 0:
                await trio.sleep(seconds)
                continue
            address = next(iter(self._waiting))
            self._waiting.move_to_end(address)
            turn = next(iter(self._waiting[address]))
            self._remove(address, turn)
            self._begun.append(trio.current_time())
            turn.set()

    def _free_in(self) -> float:
        """Seconds until one more may begin."""
        if len(self._begun) < (self._begun.maxlen or 0):
            return 0.0
        return self._begun[0] + 1 - trio.current_time()

    def _remove(self, address: str, turn: trio.Event) -> None:
        line = self._waiting.get(address)
        if line is not None and line.pop(turn, turn) is None and not line:
            del self._waiting[address]
