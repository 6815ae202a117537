"""From the words of a requester to a question with facts, and the policy's answer to it.

Nothing that was said is a fact: the inventory, the log and the relays say what there is. Any error is a denial.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import structlog

from gateway.errors import RequestRefused
from gateway.gate import Gate
from gateway.placement import Location
from policy.engine import Decision, Engine
from policy.errors import FactRefused
from policy.facts import (
    NEVER_CONFIRMED,
    OPEN_PORT,
    Context,
    HostFacts,
    Person,
    Protection,
    Provenance,
    Question,
    VmFacts,
    check_text,
    moves_guest,
)
from policy.permit import named_port
from transport.hypervisors.guests import MAX_DEVICES
from transport.hypervisors.moving import AS_CONFIGURED, How

log = structlog.get_logger("gateway.asking")

DEFAULT_PORTS: Final = ("memory",)
LIBVIRT_PORTS: Final = ("libvirt", "memory")  # where libvirt has the VM, as its host's relay reports


@dataclass(frozen=True, slots=True)
class Asked:
    """What the requester said: names as they wrote them, nothing of it a fact. `address`: where they came from.

    `preflight`: whether a check asks the hosts, too, if the VM can move.

    `break_glass`: the id of the grant under which they want to move the VM. `host`: the relay's, if one asks for what a
    client of libvirt on its host wants (automatic admission). `how`: the requester's wishes over the site's.
    """

    vm: str
    destination: str
    reason: str | None
    ports: tuple[str, ...]
    address: str
    break_glass: str | None = None
    preflight: bool = False
    host: str | None = None
    how: How = AS_CONFIGURED

    @property
    def action(self) -> str:
        """What moving a VM is to the policy."""
        if self.named_port is not None:
            return OPEN_PORT
        return "MigrateVm" if self.break_glass is None else "BreakGlass"

    @property
    def named_port(self) -> str | None:
        """The port of another program that is to be opened, where it is no move."""
        return named_port(self.ports)


@dataclass(frozen=True, slots=True)
class Facts:
    """What the gateway knows about what was asked. `grant_seconds`: until broken glass is whole."""

    question: Question
    asked: Asked
    vm: VmFacts | None
    source: HostFacts | None
    destination: HostFacts | None
    relay_reachable: bool
    location: Location
    grant_seconds: int | None = None
    site: Mapping[str, Any] | None = None  # for the record, where another site takes part: which, and in what role


async def make_known(gate: Gate, asked: Asked) -> None:
    """Ask the inventory's sources again for what they do not know: a VM that was created a minute ago is known then."""
    if gate.inventory.vm(asked.vm) is None or gate.inventory.host(asked.destination) is None:
        await gate.sources.ask_again()


def explain_unknown(gate: Gate, asked: Asked, decision: Decision) -> Decision:
    """Where a source says why nothing is known of the VM, tell the operator that, and not to add what is there."""
    because = gate.inventory.why_unknown(asked.vm)
    if decision.allowed or not because or gate.inventory.vm(asked.vm) is not None:
        return decision
    return replace(decision, denied_because=f"{decision.denied_because} The inventory says of it: {because}.")


def collect_facts(gate: Gate, person: Person, asked: Asked, now: datetime, action: str | None = None) -> Facts:
    """Turn the requester's words into what the inventory, the log and the relays say. Errors: RequestRefused.

    `action` None: that of the move that is asked for.
    """
    if asked.named_port is not None and (len(asked.ports) > 1 or asked.break_glass is not None):
        raise RequestRefused("a named port is opened alone, and under no broken glass")
    try:
        for what, text in (("vm", asked.vm), ("destination", asked.destination), ("reason", asked.reason)):
            if text is not None:
                check_text(what, text)
        vm = gate.inventory.vm(asked.vm)
        location = gate.placement.locate(vm, gate.inventory) if vm is not None else Location(None)
        ports = frozenset(asked.ports or (LIBVIRT_PORTS if location.by_libvirt else DEFAULT_PORTS))
        context = Context(
            time=now,
            reason_given=bool(asked.reason and asked.reason.strip()),
            protection=protection_of(gate.terms.protection, asked.action),
            ports=ports,
            post_copy=asked.how.may_post_copy,
        )
    except FactRefused as error:
        raise RequestRefused(str(error)) from error
    source = location.host
    destination = gate.inventory.host(asked.destination)
    if vm is not None:
        # The policy must see the VM where it is, not where the inventory file last placed it.
        vm = replace(vm, host=source.name if source is not None else None, **_devices_of(location, vm))
        context = replace(context, placement=_provenance_of(location, vm))
    question = Question(action or asked.action, person, vm, source, destination, context)
    reachable = source is not None and gate.dispatch.is_reachable(source.spiffe_id, gate.relay_silence_seconds)
    return Facts(question, asked, vm, source, destination, reachable, location)


def protection_of(usual: Protection, action: str) -> Protection:
    """Nobody can say which VM a program's bytes are of, so of a named port it is not said."""
    return usual if moves_guest(action) else replace(usual, vm_binding=False)


def _devices_of(location: Location, vm: VmFacts) -> dict[str, Any]:
    """What the relay of its host reports of its devices, in words that a policy and a record can hold."""
    if location.devices is None:
        return {}
    told = Provenance("report", location.age_seconds or 0)
    devices = frozenset(device if _is_plain(device) else "unreadable" for device in location.devices)
    if len(location.devices) >= MAX_DEVICES:
        devices |= {"too-many"}  # the list is cut off: whoever plugs in enough could hide the one that matters
    return {"devices": devices, "provenance": replace(vm.provenance, devices=told)}


def _is_plain(text: str) -> bool:
    try:
        check_text("VM device", text)
    except FactRefused:
        return False
    return True


def _provenance_of(location: Location, vm: VmFacts) -> Provenance:
    """Of where the VM is. Placed by the inventory alone, that is as old as what else the inventory says of it."""
    if location.source not in {"report", "receipt"}:
        return vm.provenance.zone
    return Provenance(location.source, NEVER_CONFIRMED if location.age_seconds is None else location.age_seconds)


def decide(engine: Engine, question: Question) -> Decision:
    """Ask the policy. Any error in it is a denial that says so."""
    try:
        return _explained(engine.decide(question), question.person)
    except Exception as error:  # noqa: BLE001 - fails closed, see below
        # Fail closed at the one place where the engine is asked: an unforeseen error must not become an answer
        # of another kind, and the attempt must still be recorded.
        log.error("policy engine failed", action=question.action, traceback=traceback.format_exc())
        return Decision(
            allowed=False,
            reasons=(),
            errors=(f"{type(error).__name__}: the policy engine failed",),
            denied_because="the policy could not be evaluated",
            bundle_digest=engine.bundle.digest,
            request={},
            entities=[],
        )


def _explained(decision: Decision, person: Person) -> Decision:
    """Unknown groups deny whatever was asked; where the directory says why, people are told that."""
    if person.groups is not None or person.directory is None or person.directory.problem is None:
        return decision
    return replace(decision, denied_because=f"The requester's groups are not known: {person.directory.problem}.")
