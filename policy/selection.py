"""Which policies a request can concern at all, told by their scopes, so that Cedar need not look at the others.

Cedar evaluates a policy from the left, `principal scope && action scope && resource scope && conditions`, and stops at
the first that is false. A policy whose scope does not hold is therefore neither satisfied nor in error, and an answer
without it is the same answer. Nothing here reads a scope: Cedar itself is asked which hold, with all that is no matter
of groups and actions taken out of them, so that what is left out can never be too much.

The rest is parsed into a set of its own for each action and membership that is asked about again; whoever asks once
is answered from all policies. Where the membership is not plainly what the request's slice says, all are asked, too.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cedarpy
import msgspec

from policy.cedar_policy import GROUP, Policy

WORTH: Final = 50  # policies: of fewer a decision costs less than the choice saves
USEFUL: Final = 0.75  # of all policies: a set that leaves out less is none
MAX_KEYS: Final = 500  # actions and memberships that are remembered
MAX_KEPT: Final = 20_000  # policies in all sets that are kept: about 4.5 KB each

_PERSON: Final = "Sealane::Person"
_ACTION: Final = "Sealane::Action"
# Kinds of entity that have nothing to do with scopes: a Group or Action in a slice could have members of its own.
_PLAIN: Final = frozenset({_PERSON, "Sealane::Vm", "Sealane::Host", "Sealane::Gateway"})
_ANY: Final = {"op": "All"}


class Uid(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An entity's name in Cedar's JSON."""

    type: str
    id: str


Scope = Mapping[str, Any]
Key = tuple[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Selected:
    """A parsed set; `policies` is in the order of Cedar's positional ids in it: `policy0`, `policy1`, …"""

    policies: tuple[Policy, ...]
    policy_set: cedarpy.PolicySet

    def policy(self, cedar_id: str) -> Policy | None:
        """The policy that cedarpy calls `policy<n>`."""
        number = cedar_id.removeprefix("policy")
        if not number.isdecimal() or int(number) >= len(self.policies):
            return None
        return self.policies[int(number)]


def scope_of(parsed: Mapping[str, Any]) -> Scope:
    """A policy's scope (of its Cedar JSON), without all that does not depend on the person's groups and the action."""
    principal = parsed["principal"]
    group = principal.get("entity") or principal.get("in", {}).get("entity")
    by_group = principal["op"] in {"in", "is"} and group is not None and group["type"] == GROUP
    return {"principal": principal if by_group else _ANY, "action": parsed["action"]}


class Selections:
    """The sets of one bundle. Made once for it; what it remembers changes no answer. Threads may share it."""

    def __init__(self, everything: Selected, texts: Sequence[str], scopes: Sequence[Scope]) -> None:
        """`texts` and `scopes` are those of the policies of `everything`, in its order."""
        self.everything = everything
        self._texts = texts
        self._worth = len(texts) >= WORTH
        self._groups = frozenset(_groups(scopes)) if self._worth else frozenset()
        self._scopes = _heads(scopes) if self._worth else None
        self._known: dict[Key, Selected | None] = {}  # None: asked about once. The order is that of the last use
        self._kept = 0
        self._lock = threading.Lock()

    def select(
        self, principal: Uid, groups: frozenset[str] | None, action: Uid, kinds: Iterable[str]
    ) -> tuple[Selected, Key | None]:
        """The set to ask, and the key under which to `learn` a smaller one, None where there is nothing to learn.

        `groups`: all that the principal is in and policies name, None where that is not plain; `kinds`: the types of
        all entities of the slice.
        """
        plain = principal.type == _PERSON and action.type == _ACTION
        if groups is None or not self._worth or not plain or not _PLAIN.issuperset(kinds):
            return self.everything, None
        key = (action.id, self._groups & groups)
        with self._lock:
            if key not in self._known:
                self._remember(key, None)
                return self.everything, None
            found = self._known.pop(key)
            self._known[key] = found
        return (self.everything, key) if found is None else (found, None)

    def learn(self, key: Key, request: dict[str, Any], entities: cedarpy.Entities, schema: cedarpy.Schema) -> None:
        """Ask Cedar which scopes hold for a request of this key, and keep those policies as a set of their own."""
        assert self._scopes is not None
        answer = cedarpy.is_authorized(request, self._scopes, entities, schema)
        if answer.diagnostics.errors or answer.decision is cedarpy.Decision.NoDecision:
            return
        numbers = sorted(int(each) for each in answer.diagnostics.reasons)
        selected = self.everything
        if len(numbers) <= USEFUL * len(self._texts):
            policies = tuple(self.everything.policies[number] for number in numbers)
            text = "\n".join(self._texts[number] for number in numbers)
            selected = Selected(policies, cedarpy.PolicySet.from_str(text))
            assert len(selected.policy_set) == len(policies)
        with self._lock:
            self._remember(key, selected)

    def _remember(self, key: Key, selected: Selected | None) -> None:
        self._kept += self._size(selected) - self._size(self._known.pop(key, None))
        self._known[key] = selected
        while len(self._known) > 1 and (self._kept > MAX_KEPT or len(self._known) > MAX_KEYS):
            self._kept -= self._size(self._known.pop(next(iter(self._known))))

    def _size(self, selected: Selected | None) -> int:
        return 0 if selected is None or selected is self.everything else len(selected.policies)


def _heads(scopes: Sequence[Scope]) -> cedarpy.PolicySet:
    """All scopes as permits that ask for nothing else, each named by its number."""
    made = {
        str(number): {"effect": "permit", **scope, "resource": _ANY, "conditions": []}
        for number, scope in enumerate(scopes)
    }
    document = {"staticPolicies": made, "templates": {}, "templateLinks": []}
    return cedarpy.PolicySet.from_json_str(json.dumps(document), release_gil=True)


def _groups(scopes: Iterable[Scope]) -> Iterable[str]:
    for scope in scopes:
        principal = scope["principal"]
        group = principal.get("entity") or principal.get("in", {}).get("entity")
        if group is not None:
            yield group["id"]
