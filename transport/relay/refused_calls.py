"""Calls of libvirt that this relay refused, until its gateway has recorded them. Pure; bounded.

Alike calls (who, what, why) are counted together, so that a flood is one entry. Where there is no room the oldest
entry of whoever has most goes, and is counted: no caller can push out what another one did, at however many
destinations it tries.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal
from uuid import UUID

import trio

from transport.libvirt_rpc.errors import RpcMalformed
from transport.libvirt_rpc.framing import Packet
from transport.libvirt_rpc.procedures import NAMES_DOMAIN_FIRST, PROCEDURE_NAMES
from transport.libvirt_rpc.xdr import XdrReader

MAX_WAITING: Final = 256
PART: Final = 32
MAX_CAUSE: Final = 300
_MAX_NAME: Final = 255
_LOOKUP_BY_NAME: Final = 23
_LOOKUP_BY_UUID: Final = 24


@dataclass(frozen=True, slots=True)
class RefusedCall:
    """`peer`: at the source the destination's name at the front, at the destination the SPIFFE id of the source.

    `uid`: of the caller at a front. `procedure`: None for what was no call, or before any.
    """

    role: Literal["source", "destination"]
    peer: str
    cause: str
    procedure: int | None = None
    vm: str | None = None
    vm_name: str | None = None
    uid: int | None = None


@dataclass(slots=True)
class _Tally:
    count: int
    first: float
    last: float
    pid: int | None


@dataclass(frozen=True, slots=True)
class Report:
    """What was taken from the queue for one message. `lost`: calls that had no room."""

    entries: Sequence[tuple[RefusedCall, _Tally]]
    lost: int

    @property
    def calls(self) -> int:
        return self.lost + sum(tally.count for _, tally in self.entries)

    def body(self, epoch: str, sequence: int, now: float) -> dict[str, Any]:
        """As the gateway takes it; ages, because two hosts' clocks need not agree."""
        refusals = [
            {
                "role": call.role,
                "peer": call.peer,
                "cause": call.cause,
                "procedure": call.procedure,
                "procedure_name": PROCEDURE_NAMES.get(call.procedure) if call.procedure is not None else None,
                "vm": call.vm,
                "vm_name": call.vm_name,
                "uid": call.uid,
                "pid": tally.pid,
                "count": tally.count,
                "first_ms_ago": max(0, round((now - tally.first) * 1000)),
                "last_ms_ago": max(0, round((now - tally.last) * 1000)),
            }
            for call, tally in self.entries
        ]
        return {"epoch": epoch, "sequence": sequence, "lost": self.lost, "refusals": refusals}


class RefusedCalls:
    """The queue of one relay."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._waiting: dict[RefusedCall, _Tally] = {}  # oldest first
        self._lost = 0
        self._news = trio.Event()

    def note(self, call: RefusedCall, pid: int | None = None) -> None:
        """Count one refused call. `pid`: the caller's; of many alike the last one's is told."""
        now = self._clock()
        tally = self._waiting.get(call)
        if tally is None:
            if len(self._waiting) >= MAX_WAITING:
                self._make_room()
            self._waiting[call] = _Tally(1, now, now, pid)
        else:
            tally.count, tally.last, tally.pid = tally.count + 1, now, pid
        self._news.set()

    def count_lost(self, calls: int) -> None:
        self._lost += calls

    async def wait(self) -> None:
        """Until there is something to tell."""
        await self._news.wait()

    def take(self) -> Report:
        """The oldest entries, which are the taker's now."""
        taken = list(self._waiting.items())[:PART]
        for call, _ in taken:
            del self._waiting[call]
        if not self._waiting:
            self._news = trio.Event()
        lost, self._lost = self._lost, 0
        return Report(taken, lost)

    def _make_room(self) -> None:
        ((most, _),) = Counter(map(_caller, self._waiting)).most_common(1)
        oldest = next(call for call in self._waiting if _caller(call) == most)
        self._lost += self._waiting.pop(oldest).count


def _caller(call: RefusedCall) -> object:
    return call.uid if call.role == "source" else call.peer


def refused_call(
    role: Literal["source", "destination"],
    peer: str,
    cause: str,
    call: Packet | None = None,
    vm: str | None = None,
    uid: int | None = None,
) -> RefusedCall:
    """With everything that a caller may have chosen made short and plain. `vm`: where it is known for sure."""
    plain = "".join(each if " " <= each <= "~" else "?" for each in cause)[:MAX_CAUSE] or "refused"
    named_uuid, name = vm_named(call) if call is not None and vm is None else (vm, None)
    procedure = call.procedure if call is not None else None
    return RefusedCall(role, peer, plain, procedure, named_uuid, name, uid)


def vm_named(call: Packet) -> tuple[str | None, str | None]:
    """UUID and name of the VM that a call is about, where its caller says it and we can read that."""
    reader = XdrReader(call.body)
    try:
        if call.procedure == _LOOKUP_BY_UUID:
            return str(UUID(bytes=reader.fixed(16))), None
        if call.procedure == _LOOKUP_BY_NAME:
            return None, _plain(reader.text(_MAX_NAME))
        if call.procedure in NAMES_DOMAIN_FIRST:
            name = _plain(reader.text(_MAX_NAME))
            return str(UUID(bytes=reader.fixed(16))), name
    except RpcMalformed:
        pass  # it is refused in any case
    return None, None


def _plain(name: str) -> str | None:
    return name if name and name.isprintable() else None
