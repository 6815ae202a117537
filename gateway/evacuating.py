"""Evacuation permits: decided and logged hours before anybody needs them, for when no gateway can be asked.

decide on each VM and destination, as for a move now → commit, with the permit's entry → seal → have the source relay
fetch and keep them → record that it holds them. Loud, because from then on these moves need nobody's word but an
operator's on that host; bounded in time, in destinations, to one use, and by the CRL that both hosts must have.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import msgspec
import structlog
import trio

from gateway.admission import host_revoked
from gateway.asking import Asked, collect_facts, decide
from gateway.config import EvacuationTable
from gateway.deciding import commit, decision_event
from gateway.dispatch import Assignment, QueueFull
from gateway.draining import candidate_hosts, unlikeness, vms_on
from gateway.errors import (
    Conflict,
    GatewayError,
    NotAllowed,
    NotKnown,
    Overloaded,
    RelayRefused,
    RelayUnreachable,
    RequestRefused,
)
from gateway.gate import Gate
from gateway.link_versions import too_early
from gateway.permitting import make_claims, sealed_permit
from gateway.recording import Event, Recorded, actor_of, identity_of
from policy.engine import Decision
from policy.facts import HostFacts, Person, VmFacts
from policy.permit import MAX_BEGIN_SECONDS, MAX_RECOVER_SECONDS, PermitClaims
from transport.link_version import EVACUATIONS

ACTION: Final = "Evacuate"
HELD_SECONDS: Final = 30.0
FORGET_TELLS: Final = 4  # that a relay is told to forget them; nothing comes back
MAX_PERMITS: Final = 4096
_ID: Final = re.compile(r"[0-9a-f]{32}")
MAX_WAITING: Final = 64
MAX_LOOKED_AT: Final = 64  # pairs of VM and host, to see whether somebody may empty a host at all

log = structlog.get_logger("gateway.alarm")


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants to be able to empty `host`, for so many hours. `vms`, `to`: only these; empty: all. As it was said."""

    person: Person
    host: str
    vms: Sequence[str]
    to: Sequence[str]
    hours: int
    reason: str | None
    address: str
    now: datetime


@dataclass(slots=True)
class _Prepared:
    """What waits for its relay to take it. `problem`: None while it has not answered."""

    host: str
    document: dict[str, Any] = field(repr=False)
    answered: trio.Event = field(default_factory=trio.Event)
    problem: str | None = None


class Evacuating:
    """What was prepared and is not held yet is in memory alone; it may be lost until the relay holds it."""

    def __init__(self, gate: Gate, table: EvacuationTable) -> None:
        self._gate = gate
        self._table = table
        self._prepared: dict[str, _Prepared] = {}

    async def prepare(self, wish: Wish) -> dict[str, Any]:
        """The whole answer, recorded. Errors: RequestRefused, TooManyRefusals, and recorded: NotAllowed, NotKnown,
        UpgradeNeeded, RelayUnreachable (it is not held), Conflict (the policy changed); LogUnavailable, Overloaded,
        NoCosignature: permits that were decided by then lapse unused."""
        if not 1 <= wish.hours <= self._table.max_hours:
            raise RequestRefused(f"an evacuation is prepared for 1 to {self._table.max_hours} hours")
        try:
            source, hosts, vms = self._what_may_be_prepared(wish)
        except RequestRefused:
            raise  # it says what is wrong with the request, and nothing of hosts
        except GatewayError as error:
            raise await self._refused(wish, error) from error
        digest = self._gate.engine.bundle.digest
        evacuation_id = self._gate.new_id()
        until = int(wish.now.timestamp()) + wish.hours * 3600
        orders: list[dict[str, Any]] = []
        left_out: list[dict[str, str]] = []
        for vm in vms:
            if not orders:  # each that is denied is a record
                await self._gate.people.patience.require(wish.person, wish.address)
            found, because = await self._orders(wish, evacuation_id, vm, hosts)
            orders += found
            if not found:
                left_out.append({"vm": vm.uuid, "name": vm.name, "because": because[:500]})
        details = {
            "evacuation": evacuation_id,
            "host": source.spiffe_id,
            "hours": wish.hours,
            "until": until,
            "vms": len(vms) - len(left_out),
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
        problem = await self._hand_over(source, evacuation_id, until, orders)
        if problem is not None:
            recorded = await self._record(wish, source.spiffe_id, "failed", {**details, "not_held": problem[:500]})
        else:
            try:
                recorded = await self._record(wish, source.spiffe_id, "completed", details)
            except GatewayError:
                self._take_back(source, evacuation_id)
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

    def _what_may_be_prepared(self, wish: Wish) -> tuple[HostFacts, list[HostFacts], list[VmFacts]]:
        """The host, where to from there (the likeliest first), and which VMs. Errors: those of `prepare`."""
        gate = self._gate
        source, hosts = candidate_hosts(gate, wish.host, wish.to)
        if gate.is_revoked(source.spiffe_id):
            raise RelayUnreachable(
                f"the certificate of {source.name} has been revoked: its relay is not heard", code="host_revoked"
            )
        vms = self._vms(source, wish.vms)
        if not gate.dispatch.is_reachable(source.spiffe_id, gate.relay_silence_seconds):
            raise RelayUnreachable(f"the relay on {source.name} has not been heard of lately: it could hold no permit")
        if (outdated := too_early(gate.dispatch, source, EVACUATIONS, "evacuations")) is not None:
            raise outdated
        if len(vms) * self._table.destinations > MAX_PERMITS:
            too_many = f"{source.name} needs more than {MAX_PERMITS} permits"
            raise Conflict(too_many, code="too_many_permits", next_step="name fewer VMs with --vm")
        if len(self._prepared) >= MAX_WAITING:
            raise Overloaded("other evacuations are being prepared")
        return source, sorted(hosts, key=lambda host: (unlikeness(host, source), host.name)), vms

    async def _refused(self, wish: Wish, error: GatewayError) -> GatewayError:
        """What to say of what cannot be prepared, on record. Who may move nothing off the host learns no more of it."""
        host = self._gate.inventory.host(wish.host)
        may_know = host is not None and await self._may_prepare(wish, host)
        asked = {"host": wish.host, "vms": list(wish.vms[:50]), "to": list(wish.to[:50]), "hours": wish.hours}
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

        Errors: RequestRefused, NotAllowed (recorded), NotKnown, RelayUnreachable.
        """
        gate = self._gate
        if _ID.fullmatch(evacuation_id) is None:
            raise RequestRefused("that is no id of an evacuation: 32 hexadecimal digits")
        host = gate.inventory.host(host_name)
        if host is None:
            raise NotKnown(f"the inventory knows no host {host_name}")
        allowed = await self._may_prepare(Wish(person, host_name, (), (), 1, "withdraw", address, now), host)
        details = {"evacuation": evacuation_id, "host": host.spiffe_id, "client_address": address}
        event = Event("evacuation.withdrawn", "allowed" if allowed else "denied", actor=actor_of(person))
        recorded = await gate.recorder.append(
            replace(event, source=host.spiffe_id, details={**details, **identity_of(person)})
        )
        if not allowed:
            raise NotAllowed(
                f"withdrawing evacuations of {host.name} is denied",
                "they are not yours to withdraw, or no VM is known to be there",
                recorded.index,
            )
        if (outdated := too_early(gate.dispatch, host, EVACUATIONS, "evacuations, and holds none")) is not None:
            raise outdated
        self._prepared.pop(evacuation_id, None)
        self._tell(host, "withdraw_evacuation", evacuation_id)
        return recorded.index

    def fetch(self, host: str, evacuation_id: str) -> dict[str, Any]:
        """What this host is to hold. Errors: RelayRefused for one that was prepared for another host, or for none."""
        return self._of_host(host, evacuation_id).document

    def held(self, host: str, evacuation_id: str, problem: str) -> None:
        """The host has answered. Errors: RelayRefused."""
        prepared = self._of_host(host, evacuation_id)
        prepared.problem = problem
        prepared.answered.set()
        self._gate.dispatch.acknowledge(host, evacuation_id, frozenset({"evacuation"}))

    def _of_host(self, host: str, evacuation_id: str) -> _Prepared:
        prepared = self._prepared.get(evacuation_id)
        if prepared is None or prepared.host != host:
            raise RelayRefused("no evacuation of that id waits for this host", code="not_a_party")
        return prepared

    def _vms(self, source: HostFacts, named: Sequence[str]) -> list[VmFacts]:
        there = vms_on(self._gate, source)
        if not named:
            return there
        known = {name: vm for vm in there for name in (vm.name, vm.uuid)}
        for name in named:
            if name not in known:
                raise NotKnown(f"{name} is not on {source.name}, for all that is known")
        return list({known[name].uuid: known[name] for name in named}.values())

    async def _orders(
        self, wish: Wish, evacuation_id: str, vm: VmFacts, hosts: Sequence[HostFacts]
    ) -> tuple[list[dict[str, Any]], str]:
        """The permits of one VM, best destination first; else why there is none, which is on record then."""
        found: list[dict[str, Any]] = []
        because = "there is no other host"
        for host in hosts:
            if len(found) == self._table.destinations:
                break
            await trio.lowlevel.checkpoint()  # a decision holds the loop for a millisecond, and there may be many
            decision, facts = self._decide(wish, vm, host)
            obstacle = host_revoked(self._gate, facts) if decision.allowed else None
            denied = decision, facts, obstacle
            if obstacle is not None:
                because = obstacle.detail
            elif decision.allowed:
                found.append(await self._permit(wish, evacuation_id, decision, facts))
            else:
                because = decision.denied_because
        if not found and hosts:
            event = decision_event("evacuation.decision", denied[1], denied[0], denied[2], None, None)
            await commit(self._gate, _of(event, evacuation_id), None)
        return found, because

    def _decide(self, wish: Wish, vm: VmFacts, host: HostFacts) -> tuple[Decision, Any]:
        asked = Asked(vm.uuid, host.spiffe_id, wish.reason, (), wish.address)
        facts = collect_facts(self._gate, wish.person, asked, wish.now, ACTION)
        return decide(self._gate.engine, facts.question), facts

    async def _permit(self, wish: Wish, evacuation_id: str, decision: Decision, facts: Any) -> dict[str, Any]:
        gate = self._gate
        migration_id = gate.new_id()
        claims = self._claims(make_claims(gate, facts, decision, migration_id, wish.now), wish.hours)
        event = _of(decision_event("evacuation.decision", facts, decision, None, claims, migration_id), evacuation_id)
        committed = await commit(gate, event, claims)
        # Not put among the migrations: until somebody uses it, nothing is under way.
        _, document = sealed_permit(gate, facts, claims, event, committed.index, await gate.prove(committed))
        return {
            "permit": document["permit"],
            "vm": claims.vm,
            "vm_name": facts.vm.name,
            "destination": claims.destination,
            "destination_address": document["destination_address"],
            "downtime_limit_ms": document["downtime_limit_ms"],
            "session_seconds": claims.session_until - claims.exp,
        }

    def _claims(self, claims: PermitClaims, hours: int) -> PermitClaims:
        """The same, to begin for hours; a session that begins at the last moment lasts as long as any other."""
        terms = self._gate.terms
        expires = claims.iat + hours * 3600
        session_until = min(expires + terms.session_seconds, claims.iat + MAX_RECOVER_SECONDS)
        return msgspec.structs.replace(claims, exp=expires, session_until=session_until, recover_until=session_until)

    async def _hand_over(
        self, source: HostFacts, evacuation_id: str, until: int, orders: Sequence[dict[str, Any]]
    ) -> str | None:
        """None once the relay holds them durably; else why not."""
        document = {"evacuation_id": evacuation_id, "until": until, "orders": list(orders)}
        prepared = self._prepared[evacuation_id] = _Prepared(source.spiffe_id, document)
        try:
            self._tell(source, "evacuation", evacuation_id)
            with trio.move_on_after(HELD_SECONDS):
                await prepared.answered.wait()
            return (prepared.problem or None) if prepared.answered.is_set() else "its relay did not answer in time"
        except RelayUnreachable as error:
            return error.detail
        finally:
            self._prepared.pop(evacuation_id, None)
            if prepared.problem != "":
                self._take_back(source, evacuation_id)

    def _take_back(self, source: HostFacts, evacuation_id: str) -> None:
        """What the log does not say that it is held: its answer may be lost, or it has failed after it took them."""
        self._gate.dispatch.acknowledge(source.spiffe_id, evacuation_id, frozenset({"evacuation"}))
        try:
            self._tell(source, "withdraw_evacuation", evacuation_id)
        except RelayUnreachable as error:
            log.error("a relay is not told to forget permits", evacuation=evacuation_id, cause=error.detail)

    def _tell(self, host: HostFacts, kind: str, evacuation_id: str) -> None:
        document = {"kind": kind, "evacuation_id": evacuation_id}
        is_offer = kind == "evacuation"
        expires = trio.current_time() + (HELD_SECONDS if is_offer else float(MAX_BEGIN_SECONDS))
        told = Assignment(evacuation_id, kind, document, expires, tells_left=None if is_offer else FORGET_TELLS)
        try:
            self._gate.dispatch.assign(host.spiffe_id, told)
        except QueueFull as error:
            raise RelayUnreachable(f"the relay on {host.name} does not take its assignments") from error

    async def _may_prepare(self, wish: Wish, host: HostFacts) -> bool:
        """Whether any move off this host would be allowed; of an empty host nobody knows that, which denies."""
        hosts = [each for each in self._gate.inventory.hosts.values() if each.spiffe_id != host.spiffe_id]
        pairs = ((vm, each) for vm in vms_on(self._gate, host) for each in hosts)
        for vm, each in itertools.islice(pairs, MAX_LOOKED_AT):
            await trio.lowlevel.checkpoint()
            if self._decide(wish, vm, each)[0].allowed:
                return True
        return False


def _of(event: Event, evacuation_id: str) -> Event:
    return replace(event, details={**event.details, "evacuation": evacuation_id})
