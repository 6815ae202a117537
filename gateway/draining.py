"""Which VMs of a host may go where: what `sealane drain HOST --check` shows, and what its execution goes by.

Each pair of VM and destination is decided as a migration would be, with the facts of now. Nothing moves and nothing is
promised: each move is asked for, decided and recorded by itself later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final

import trio

from audit.record import Vm
from gateway.asking import Asked, Facts, collect_facts, decide
from gateway.deciding import decision_document
from gateway.errors import NotAllowed, NotKnown, RequestRefused
from gateway.gate import Gate
from gateway.host_reports import ACTIVE
from gateway.observing import lets_pass
from gateway.recording import Event, actor_of, identity_of, some_of
from gateway.sites.own_only import require_own
from policy.engine import Decision
from policy.facts import Context, HostFacts, Person, Question, VmFacts

MAX_PAIRS: Final = 50_000
_NO_VM: Final = "00000000-0000-0000-0000-000000000000"
DECISIONS_AT_ONCE: Final = 4  # between which others get their turn: some milliseconds


@dataclass(frozen=True, slots=True)
class Wish:
    """Who wants `host` emptied. `to`: only to these hosts; empty: to any. Names as they were said."""

    person: Person
    host: str
    to: Sequence[str]
    reason: str | None
    address: str
    now: datetime


@dataclass(slots=True)
class Prospects:
    """One VM. `may`: destinations, best first. `refused`: hosts by the reason why not. `cannot`: why it cannot move."""

    vm: VmFacts | Vm
    may: list[HostFacts] = field(default_factory=list)
    refused: dict[str, list[str]] = field(default_factory=dict)
    cannot: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "vm": {"uuid": self.vm.uuid, "name": self.vm.name},
            "destinations": [host.name for host in self.may],
            "refused": [{"because": because, "hosts": hosts} for because, hosts in self.refused.items()],
            "cannot": self.cannot,
        }


async def prospects(gate: Gate, wish: Wish) -> dict[str, Any]:
    """The whole answer, recorded. Errors: NotAllowed (recorded), NotKnown, RequestRefused, LogUnavailable."""
    person = wish.person
    may_ask = decide(gate.engine, Question("CheckDecision", person, None, None, None, Context(time=wish.now)))
    asked = {"host": wish.host, "to": some_of(wish.to)}
    facts = {"client_address": wish.address, "asked": asked, **identity_of(person)}
    if not may_ask.allowed:
        denied = {**facts, "decision": decision_document(may_ask)}
        recorded = await gate.recorder.append(Event("drain.check", "denied", actor=actor_of(person), details=denied))
        raise NotAllowed("asking what would be decided is denied", may_ask.denied_because, recorded.index)
    source, hosts = candidate_hosts(gate, wish.host, wish.to)
    vms = vms_on(gate, source)
    if len(vms) * len(hosts) > MAX_PAIRS:
        raise RequestRefused(f"{len(vms)} VMs and {len(hosts)} hosts are above {MAX_PAIRS} pairs: name fewer with --to")
    answers = _Answers(gate)
    found = [await _prospects_of(gate, wish, vm, hosts, answers) for vm in vms]
    found += stranded(gate, source)
    _spread(found, source)
    may_move = sum(bool(each.may) and each.cannot is None for each in found)
    counts = {"vms": len(found), "may_move": may_move, "hosts": len(hosts)}
    event = Event("drain.check", "completed", actor=actor_of(person), details={**facts, **counts})
    recorded = await gate.recorder.append(event)
    documents = [each.document() for each in found]
    links = {host.name: host.site for host in hosts if host.site != source.site}
    state = gate.placement.reports.get(source.spiffe_id)
    is_heard = state is not None and gate.placement.is_fresh(state)
    answer = {"host": source.name, **counts, "prospects": documents, "links": links}
    return {**answer, "is_heard": is_heard, "record_index": recorded.index}


def candidate_hosts(gate: Gate, name: str, to: Sequence[str]) -> tuple[HostFacts, list[HostFacts]]:
    """The host that is left, and where to, by name: those of `to`, or all. Errors: NotKnown, RequestRefused."""
    for each in (name, *to):
        require_own(gate, each, "emptying a host knows")
    source = gate.inventory.host(name)
    if source is None:
        raise NotKnown(f"the inventory knows no host {name}")
    named = [gate.inventory.host(each) for each in to]
    for wanted, found in zip(to, named, strict=True):
        if found is None:
            raise NotKnown(f"the inventory knows no host {wanted}")
    chosen = [each for each in named if each is not None] if to else list(gate.inventory.hosts.values())
    others = {each.spiffe_id: each for each in chosen if each.spiffe_id != source.spiffe_id}
    if not others:
        raise RequestRefused("there is no other host to move to")
    return source, sorted(others.values(), key=lambda host: host.name)


def vms_on(gate: Gate, host: HostFacts) -> list[VmFacts]:
    """Those that are taken to be on this host, by name."""
    there = [vm for vm in gate.inventory.vms.values() if gate.placement.host_of(vm, gate.inventory) == host]
    return sorted(there, key=lambda vm: vm.name)


def stranded(gate: Gate, host: HostFacts) -> list[Prospects]:
    """What runs there by its relay's word, and is moved by nobody: a host that it goes down with is not empty."""
    state, found = gate.placement.reports.get(host.spiffe_id), []
    for uuid, guest in {} if state is None else sorted(state.guests.items()):
        if guest.presence != ACTIVE:
            continue
        if (vm := gate.inventory.vm(uuid)) is None:
            cannot = "it is not in the inventory: list it there, or end it on its host"
            found.append(Prospects(Vm(uuid, guest.name or uuid), cannot=cannot))
            continue
        location = gate.placement.locate(vm, gate.inventory)
        if location.problem is not None and location.host != host:
            found.append(Prospects(vm, cannot=location.detail))
    return found


class _Answers:
    """Decisions, each made once for VMs that differ in name and UUID alone, where no policy tells those apart."""

    def __init__(self, gate: Gate) -> None:
        self._engine = gate.engine
        self._bundle = gate.engine.bundle
        self._known: dict[Any, Decision] = {}

    def decide(self, facts: Facts) -> Decision:
        question = facts.question
        assert question.vm is not None
        if self._engine.bundle is not self._bundle:  # another one was published meanwhile
            self._bundle, self._known = self._engine.bundle, {}
        if self._bundle.rules.tell_vms_apart:
            return decide(self._engine, question)
        nameless = replace(question.vm, uuid=_NO_VM, name="-")
        destination = question.destination.spiffe_id if question.destination else None
        alike = (nameless, nameless.provenance, destination, question.context)
        if (known := self._known.get(alike)) is None:
            known = decide(self._engine, question)
            if question.vm.uuid in known.denied_because or question.vm.name in known.denied_because:
                return known
            self._known[alike] = known
        return known


async def _prospects_of(gate: Gate, wish: Wish, vm: VmFacts, hosts: list[HostFacts], answers: _Answers) -> Prospects:
    found = Prospects(vm)
    for number, host in enumerate(hosts):
        if number % DECISIONS_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
        facts = collect_facts(
            gate, wish.person, Asked(vm.uuid, host.spiffe_id, wish.reason, (), wish.address), wish.now
        )
        decision = answers.decide(facts)
        if not decision.allowed and not lets_pass(gate.observation, facts.question, decision, gate.time.now()):
            found.refused.setdefault(decision.denied_because, []).append(host.name)
        elif gate.is_revoked(host.spiffe_id):
            found.refused.setdefault("its certificate has been revoked", []).append(host.name)
        elif not gate.dispatch.is_reachable(host.spiffe_id, gate.relay_silence_seconds):
            found.refused.setdefault("its relay has not been heard of lately", []).append(host.name)
        else:
            found.may.append(host)
        found.cannot = _obstacle(gate, facts, wish.now)
    return found


def _obstacle(gate: Gate, facts: Facts, now: datetime) -> str | None:
    """What keeps the VM where it is, whatever the destination. That *devices* do, its host knows: `migrate --check`."""
    assert facts.vm is not None
    if facts.location.problem is not None:
        return facts.location.detail
    if not facts.relay_reachable:
        return "the relay on its host has not been heard of lately"
    if gate.migrations.active_of(facts.vm.uuid, int(now.timestamp())) is not None:
        return "it is being migrated"
    return None


def unlikeness(host: HostFacts, source: HostFacts) -> int:
    """In how many of zone, jurisdiction and site a host differs from the one that is left."""
    pairs = ((host.zone, source.zone), (host.jurisdiction, source.jurisdiction), (host.site, source.site))
    return sum(mine != theirs for mine, theirs in pairs)


def _spread(found: list[Prospects], source: HostFacts) -> None:
    """Rank: what is most like the source comes first, and of those where the fewest others were sent."""
    sent: Counter[str] = Counter()

    for each in found:
        each.may.sort(key=lambda host: (unlikeness(host, source), sent[host.name], host.name))
        if each.may and each.cannot is None:
            sent[each.may[0].name] += 1
