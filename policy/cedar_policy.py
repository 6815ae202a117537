"""One policy as people see it, read from Cedar's JSON. Errors: BundleRefused, naming the file; its author must act."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from policy.errors import BundleRefused
from policy.facts import VM_ACTIONS
from policy.lint import never_applies

ANY_MOVE: Final = "AnyMove"  # the schema's action group of VM_ACTIONS
GROUP: Final = "Sealane::Group"
VM: Final = "Sealane::Vm"
MAX_REASON: Final = 300
OBLIGATIONS: Final = ("record", "finish", "cancel")  # of @on_revocation, from the weakest to the strongest
POLICY_ID: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as people see it. `actions`: ids named in its scope, action groups included; () means every action.

    `on_revocation`: what becomes of a running migration that it permitted, or now forbids; None if it does not say.
    `is_baseline`: a forbid that holds in observed zones, too. `groups`: the ids of all groups that it names.
    `tells_vms_apart`: it names a VM, or asks for some name: it may answer differently for two VMs of equal facts.
    """

    id: str
    effect: str
    reason: str
    file: str
    actions: tuple[str, ...]
    on_revocation: str | None = None
    is_baseline: bool = False
    groups: frozenset[str] = frozenset()
    tells_vms_apart: bool = True

    def covers(self, action: str) -> bool:
        """Whether its scope names the action, or all."""
        return not self.actions or action in self.actions or (action in VM_ACTIONS and ANY_MOVE in self.actions)


def read_policy(file: str, number: int, parsed: Mapping[str, Any]) -> Policy:
    """One policy of a file (`number` from 0) from Cedar's JSON. Raises BundleRefused."""
    annotations = parsed.get("annotations", {})
    which = f"policy {number + 1} of the file"
    policy_id, reason = annotations.get("id"), annotations.get("reason")
    if not policy_id:
        raise BundleRefused(file, f'{which} has no @id("…"): give it one, records and people name it by that')
    if POLICY_ID.fullmatch(policy_id) is None:
        raise BundleRefused(file, f"{which}: @id must be 1 to 100 of A-Z a-z 0-9 . _ -, not {policy_id!a}")
    if not reason or not reason.strip():
        raise BundleRefused(file, f'policy {policy_id} has no @reason("…"): say why it permits or forbids')
    if len(reason) > MAX_REASON or not reason.isprintable():
        raise BundleRefused(file, f"policy {policy_id}: @reason must be one printable line of at most {MAX_REASON}")
    if never_applies(parsed):
        raise BundleRefused(
            file, f"policy {policy_id} can never apply (when {{ false }} or unless {{ true }}): take it out"
        )
    obligation, baseline = annotations.get("on_revocation"), annotations.get("baseline")
    if "on_revocation" in annotations and obligation not in OBLIGATIONS:
        raise BundleRefused(file, f"policy {policy_id}: @on_revocation is one of {', '.join(OBLIGATIONS)}")
    if "baseline" in annotations and (baseline != "true" or parsed["effect"] != "forbid"):
        raise BundleRefused(file, f'policy {policy_id}: @baseline("true") is for a forbid, and has no other value')
    return Policy(
        policy_id,
        parsed["effect"],
        reason,
        file,
        _actions(parsed["action"]),
        obligation,
        baseline is not None,
        frozenset(_named_groups(parsed)),
        any(_names_a_vm(part) for part in parts_of(parsed)),
    )


def _named_groups(parsed: Mapping[str, Any]) -> Iterator[str]:
    """The ids of all groups that stand in a policy, in its scope or its conditions."""
    return (part["id"] for part in parts_of(parsed) if part.get("type") == GROUP and isinstance(part.get("id"), str))


def _names_a_vm(part: Mapping[str, Any]) -> bool:
    return part.get("type") == VM or part.get("attr") == "name"


def parts_of(parsed: object) -> Iterator[Mapping[str, Any]]:
    """Every JSON object in a policy, or in a part of it."""
    rest = [parsed]  # no recursion: conditions nest deeper than Python's stack
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _actions(scope: Mapping[str, Any]) -> tuple[str, ...]:
    named = scope.get("entities", [scope["entity"]] if "entity" in scope else [])
    return tuple(sorted(entity["id"] for entity in named))
