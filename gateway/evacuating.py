"""Evacuation permits: decided and logged hours before anybody needs them, for when no gateway can be asked.

decide on each VM and destination, as for a move now → commit, with the permit's entry → seal → have the source relay
fetch and keep them → record that it holds them. Loud, because from then on these moves need nobody's word but an
operator's on that host; bounded in time, in destinations, to one use, and by the CRL that both hosts must have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import structlog

from gateway.config import EvacuationTable
from gateway.draining import candidate_hosts, stranded, unlikeness, vms_on
from gateway.errors import (
    Conflict,
    GatewayError,
    NotAllowed,
    NotKnown,
    RelayUnreachable,
    RequestRefused,
)
from gateway.evacuation_handover import HandingOver
from gateway.evacuation_permits import Wish, may_prepare, orders_of
from gateway.gate import Gate
from gateway.link_versions import too_early
from gateway.recording import Event, Recorded, actor_of, identity_of, some_of
from policy.facts import HostFacts, Person, VmFacts
from transport.link_version import EVACUATIONS

MAX_PERMITS: Final = 4096
_ID: Final = re.compile(r"[0-9a-f]{32}")

log = structlog.get_logger("gateway.alarm")


class Evacuating:
    """`handing_over`: what was prepared and is not held yet, in memory alone."""

    def __init__(self, gate: Gate, table: EvacuationTable) -> None:
        self._gate = gate
        self._table = table
        self.handing_over = HandingOver(gate.dispatch)

    async def prepare(self, wish: Wish) -> dict[str, Any]:
        """The whole answer, recorded. Errors: RequestRefused, TooManyRefusals, and recorded: NotAllowed, NotKnown,
        UpgradeNeeded, RelayUnreachable (it is not held), Conflict (the policy changed); LogUnavailable, Overloaded,
        NoCosignature: permits that were decided by then lapse unused."""
        if not 1 <= wish.hours <= self._table.max_hours:
            raise RequestRefused(f"an evacuation is prepared for 1 to {self._table.max_hours} hours")
        evacuation_id = self._gate.new_id()
        with ExitStack() as stack:
            try:
                source, hosts, vms = self._what_may_be_prepared(wish)
                stack.enter_context(self.handing_over.place(source, evacuation_id))
            except RequestRefused:
                raise  # it says what is wrong with the request, and nothing of hosts
            except GatewayError as error:
                raise await self._refused(wish, error) from error
            return await self._prepare(wish, evacuation_id, source, hosts, vms)

    async def _prepare(
        self, wish: Wish, evacuation_id: str, source: HostFacts, hosts: Sequence[HostFacts], vms: Sequence[VmFacts]
    ) -> dict[str, Any]:
        digest = self._gate.engine.bundle.digest
        until = int(wish.now.timestamp()) + wish.hours * 3600
        orders, left_out = await self._orders(wish, evacuation_id, source, hosts, vms)
        details = {
            "evacuation": evacuation_id,
            "host": source.spiffe_id,
            "hours": wish.hours,
            "until": until,
            "vms": len({order["vm"] for order in orders}),
            "permits": len(orders),
            "left_out": [each["vm"] for each in left_out[:500]],
            "client_address": wish.address,
            **identity_of(wish.person),
        }
        if not orders:
            recorded = await self._record(wish, source.spiffe_id, "denied", details)
            first = left_out[0]["because"] if left_out else "no VM is on it"
            raise NotAllowed(f"no VM of {source.name} may be evacuated", first, recorded.index)
        if self._gate.engine.bundle.digest != digest:
            changed = Conflict("another policy came into force meanwhile", code="policy_changed", next_step="repeat it")
            await self._record(wish, source.spiffe_id, "failed", {**details, "not_held": changed.detail})
            raise changed
        problem = await self.handing_over.hand_over(source, evacuation_id, until, orders)
        if problem is not None:
            recorded = await self._record(wish, source.spiffe_id, "failed", {**details, "not_held": problem[:500]})
        else:
            try:
                recorded = await self._record(wish, source.spiffe_id, "completed", details)
            except GatewayError:
                self.handing_over.take_back(source, evacuation_id)
                raise
        log.critical(
            "an evacuation was prepared", alarm=True, host=source.name, permits=len(orders), held=problem is None
        )
        if problem is not None:
            raise RelayUnreachable(
                f"{source.name} does not hold the permits: {problem} (record {recorded.index})",
                next_step="look at the relay's log, then prepare again; the permits that were decided lapse unused",
            )
        return {**details, "left_out": left_out, "record_index": recorded.index}

    async def _orders(
        self, wish: Wish, evacuation_id: str, source: HostFacts, hosts: Sequence[HostFacts], vms: Sequence[VmFacts]
    ) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
        """Permits, each decided and logged; and what stays on the host, with why. Errors: TooManyRefusals, and those of
        `prepare` about the log."""
        orders: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        for vm in vms:
            if not orders:  # each that is denied is a record
                await self._gate.people.patience.require(wish.person, wish.address)
            found, because = await orders_of(self._gate, wish, evacuation_id, vm, hosts, self._table.destinations)
            orders += found
            if not found:
                left_out.append({"vm": vm.uuid, "name": vm.name, "because": because[:500]})
        if orders and not wish.vms:  # who may move nothing off the host does not learn what else is there
            for other in stranded(self._gate, source):
                left_out.append({"vm": other.vm.uuid or "", "name": other.vm.name or "", "because": other.cannot or ""})
        return orders, left_out

    def _what_may_be_prepared(self, wish: Wish) -> tuple[HostFacts, list[HostFacts], list[VmFacts]]:
        """The host, where to from there (the likeliest first), and which VMs. Errors: those of `prepare`."""
        gate = self._gate
        source, hosts = candidate_hosts(gate, wish.host, wish.to)
        if gate.is_revoked(source.spiffe_id):
            raise RelayUnreachable(
                f"the certificate of {source.name} has been revoked: its relay is not heard", code="host_revoked"
            )
        vms = _vms(gate, source, wish.vms)
        if not gate.dispatch.is_reachable(source.spiffe_id, gate.relay_silence_seconds):
            raise RelayUnreachable(f"the relay on {source.name} has not been heard of lately: it could hold no permit")
        if (outdated := too_early(gate.dispatch, source, EVACUATIONS, "evacuations")) is not None:
            raise outdated
        if len(vms) * self._table.destinations > MAX_PERMITS:
            too_many = f"{source.name} needs more than {MAX_PERMITS} permits"
            raise Conflict(too_many, code="too_many_permits", next_step="name fewer VMs with --vm")
        return source, sorted(hosts, key=lambda host: (unlikeness(host, source), host.name)), vms

    async def _refused(self, wish: Wish, error: GatewayError) -> GatewayError:
        """What to say of what cannot be prepared, on record. Who may move nothing off the host learns no more of it."""
        host = self._gate.inventory.host(wish.host)
        may_know = host is not None and await may_prepare(self._gate, wish, host)
        asked = {"host": wish.host, "vms": some_of(wish.vms), "to": some_of(wish.to), "hours": wish.hours}
        details = {"asked": asked, "client_address": wish.address, **identity_of(wish.person)}
        details |= {"not_prepared": error.code if may_know else NotAllowed.code}
        known = None if host is None else host.spiffe_id
        recorded = await self._record(wish, known, "failed" if may_know else "denied", details)
        if may_know:
            return error
        return NotAllowed(f"evacuating {wish.host} is denied", "no VM that you may move is known there", recorded.index)

    async def _record(self, wish: Wish, source: str | None, outcome: str, details: Mapping[str, Any]) -> Recorded:
        return await self._gate.recorder.append(
            Event(
                "evacuation.prepared",
                outcome,
                actor=actor_of(wish.person),
                source=source,
                reason=wish.reason,
                details=details,
            )
        )

    async def withdraw(self, person: Person, evacuation_id: str, host_name: str, address: str, now: datetime) -> int:
        """Have the relay forget its permits; recorded. Who may prepare one for the host may. The record's index.

        Errors: RequestRefused, NotAllowed (recorded; also where there is no such host), UpgradeNeeded,
        RelayUnreachable, Overloaded.
        """
        gate = self._gate
        if _ID.fullmatch(evacuation_id) is None:
            raise RequestRefused("that is no id of an evacuation: 32 hexadecimal digits")
        host = gate.inventory.host(host_name)
        wish = Wish(person, host_name, (), (), 1, "withdraw", address, now)
        allowed = host is not None and await may_prepare(gate, wish, host)
        source = None if host is None else host.spiffe_id
        details = {"evacuation": evacuation_id, "host": source or host_name[:64], "client_address": address}
        event = Event("evacuation.withdrawn", "allowed" if allowed else "denied", actor=actor_of(person))
        recorded = await gate.recorder.append(replace(event, source=source, details={**details, **identity_of(person)}))
        if host is None or not allowed:
            raise NotAllowed(
                f"withdrawing evacuations of {host_name} is denied",
                "they are not yours to withdraw, or no VM is known to be there",
                recorded.index,
            )
        if (outdated := too_early(gate.dispatch, host, EVACUATIONS, "evacuations, and holds none")) is not None:
            raise outdated
        self.handing_over.forget(host, evacuation_id)
        return recorded.index


def _vms(gate: Gate, source: HostFacts, named: Sequence[str]) -> list[VmFacts]:
    there = vms_on(gate, source)
    if not named:
        return there
    known = {name: vm for vm in there for name in (vm.name, vm.uuid)}
    for name in named:
        if name not in known:
            raise NotKnown(f"{name} is not on {source.name}, for all that is known")
    return list({known[name].uuid: known[name] for name in named}.values())
