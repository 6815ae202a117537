"""Evacuation permits: decided and logged beforehand, kept here, used on this host while no gateway can be asked.

One file for each evacuation, `state_dir/evacuations/ID.json`, of mode 0600: whoever reads it and has this host's key
could move the guests, and nothing else. A VM has permits for several destinations, of which one is used: which one is
noted durably before it begins, and taken back only if the guest stayed. That each permit is used once, its destination
sees to.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

import msgspec
import structlog
from msgspec import Meta

from certs.errors import KeyFileError
from certs.files import read_private, write_atomically
from policy.permit import PermitClaims
from transport.errors import UNDECODABLE, LocalBroken, SpoolFailed
from transport.relay.permits import PermitDesk

MAX_BYTES: Final = 32 * 1024 * 1024
MAX_ORDERS: Final = 4096
_ID: Final = re.compile(r"[0-9a-f]{32}")
log = structlog.get_logger("sealane.relay")


class EvacuationOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One permit, with what the relay needs beside it. Orders of a VM: the one to be tried first comes first."""

    permit: Annotated[str, Meta(max_length=16 * 1024)]
    vm: Annotated[str, Meta(max_length=64)]
    vm_name: Annotated[str, Meta(max_length=1024)]
    destination: Annotated[str, Meta(max_length=255)]
    destination_address: Annotated[str, Meta(max_length=261)]
    downtime_limit_ms: Annotated[int, Meta(ge=1, le=60_000)]
    session_seconds: Annotated[int, Meta(ge=1, le=7 * 86_400)]


class Evacuation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`until`: unix seconds, after which none of its permits begins. `begun`: by VM, the destination it is sent to.
    `spent`: by VM, the destinations to which it was sent in vain, whose permits serve no second time."""

    evacuation_id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{32}\Z")]
    until: Annotated[int, Meta(ge=0, le=253_402_300_799)]
    orders: Annotated[tuple[EvacuationOrder, ...], Meta(max_length=MAX_ORDERS)]
    begun: dict[str, str] = {}
    spent: dict[str, tuple[str, ...]] = {}


@dataclass(slots=True)
class Evacuations:
    """The folder of them. Blocking; call it from worker threads, which take turns: each writes what it has read, and
    would undo another's note. `clock`: unix seconds."""

    folder: Path
    permits: PermitDesk
    own_id: Callable[[], str]
    clock: Callable[[], int]
    _turn: threading.Lock = field(default_factory=threading.Lock)

    def keep(self, evacuation: Evacuation) -> int:
        """Durable when this returns; how many permits. OfferRefused: one is not good here, and none is kept.

        One that is held already, and told again, keeps what is noted of its use: that is this host's word alone.
        """
        for order in evacuation.orders:
            claims = self._claims(order)
            if (claims.vm, claims.destination) != (order.vm, order.destination):
                raise LocalBroken("an evacuation permit is of another VM or destination than its order says")
        with self._turn:
            held = self._read(self._path(evacuation.evacuation_id))
            begun, spent = (held.begun, held.spent) if held is not None else ({}, {})
            self._write(msgspec.structs.replace(evacuation, begun=begun, spent=spent))
        self.forget_ended()
        return len(evacuation.orders)

    def withdraw(self, evacuation_id: str) -> bool:
        """Whether it was there."""
        path = self._path(evacuation_id)
        with self._turn:
            was_there = path.exists()
            path.unlink(missing_ok=True)
        return was_there

    def take(self, vm: str, to: str | None) -> tuple[Evacuation, EvacuationOrder, PermitClaims]:
        """The order by which this VM (name or UUID) leaves, noted as begun. `to`: host name or SPIFFE id.

        LocalBroken, in words for the operator, if there is none; OfferRefused: its permit is good here no more. The
        newest evacuation comes first.
        """
        with self._turn:
            return self._take(vm, to)

    def _take(self, vm: str, to: str | None) -> tuple[Evacuation, EvacuationOrder, PermitClaims]:
        now, seen = self.clock(), False
        for evacuation in sorted(self.all(), key=lambda each: -each.until):
            mine = [order for order in evacuation.orders if vm in {order.vm, order.vm_name}]
            if len({order.vm for order in mine}) > 1:
                raise LocalBroken(f"several VMs are called {vm!a}: name it by its UUID")
            seen = seen or bool(mine)
            if not mine or evacuation.until < now:
                continue
            if mine[0].vm in evacuation.begun:
                there = evacuation.begun[mine[0].vm].rpartition("/")[2]
                raise LocalBroken(f"the evacuation of {vm} was used: it was sent to {there}")
            for order in mine:
                # At its destination a second session of it would be refused, and its receipt replace the first one's.
                if order.destination in evacuation.spent.get(order.vm, ()):
                    continue
                if to is None or to in {order.destination, order.destination.rpartition("/")[2]}:
                    claims = self._claims(order)
                    begun = {**evacuation.begun, order.vm: order.destination}
                    self._write(msgspec.structs.replace(evacuation, begun=begun))
                    return evacuation, order, claims
        if seen:
            raise LocalBroken(f"no evacuation permit of {vm} is left, or none for that destination")
        raise LocalBroken(f"no evacuation was prepared for {vm} on this host")

    def give_back(self, evacuation_id: str, vm: str, *, is_spent: bool) -> None:
        """The guest has stayed: another destination may be tried. `is_spent`: the one that was takes no second try."""
        with self._turn:
            found = self._read(self._path(evacuation_id))
            if found is None or vm not in found.begun:
                return
            begun = {name: host for name, host in found.begun.items() if name != vm}
            spent = {**found.spent, vm: (*found.spent.get(vm, ()), found.begun[vm])} if is_spent else found.spent
            self._write(msgspec.structs.replace(found, begun=begun, spent=spent))

    def stayed(self, vm: str, destination: str, *, is_spent: bool) -> None:
        """`give_back` after a restart: of whatever evacuation had sent the VM there."""
        for evacuation in self.all():
            if evacuation.begun.get(vm) == destination:
                self.give_back(evacuation.evacuation_id, vm, is_spent=is_spent)

    def all(self) -> list[Evacuation]:
        """What can be read; what cannot is said once a look and passed over."""
        paths = sorted(self.folder.glob("*.json")) if self.folder.is_dir() else []
        return [found for path in paths if (found := self._read(path)) is not None]

    def forget_ended(self) -> None:
        for evacuation in self.all():
            if evacuation.until < self.clock():
                self._path(evacuation.evacuation_id).unlink(missing_ok=True)

    def _claims(self, order: EvacuationOrder) -> PermitClaims:
        return self.permits.verify(order.permit, source=self.own_id(), destination=None).claims

    def _path(self, evacuation_id: str) -> Path:
        if _ID.fullmatch(evacuation_id) is None:
            raise LocalBroken("that is no id of an evacuation")
        return self.folder / f"{evacuation_id}.json"

    def _write(self, evacuation: Evacuation) -> None:
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            write_atomically(self._path(evacuation.evacuation_id), msgspec.json.encode(evacuation), 0o600)
        except OSError as error:
            raise SpoolFailed(f"{self.folder}: {error.strerror}; no evacuation permit is kept or used") from None

    def _read(self, path: Path) -> Evacuation | None:
        try:
            if not path.exists():
                return None
            # Of a file that others can read nothing is used: it was given away, or laid there.
            return msgspec.json.decode(read_private(path, MAX_BYTES), type=Evacuation)
        except (OSError, KeyFileError, *UNDECODABLE) as error:
            log.error("an evacuation cannot be read", path=str(path), cause=str(error))
            return None


def shown(evacuations: Sequence[Evacuation], now: int) -> list[dict[str, object]]:
    """What an operator on this host sees; no permit."""
    return [
        {
            "evacuation_id": evacuation.evacuation_id,
            "seconds_left": max(0, evacuation.until - now),
            "vms": [
                {
                    "vm": uuid,
                    "name": name,
                    "destinations": [o.destination for o in evacuation.orders if o.vm == uuid],
                    "sent_to": evacuation.begun.get(uuid),
                    "spent": evacuation.spent.get(uuid, ()),
                }
                for uuid, name in dict.fromkeys((o.vm, o.vm_name) for o in evacuation.orders)
            ],
        }
        for evacuation in evacuations
    ]
