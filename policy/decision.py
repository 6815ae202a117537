"""One decision: rules, a request and its entities go in; yes or no with the reasons comes out.

Pure, and the only path: a live decision, a bundle's own tests and the replay of an old record all come through
`evaluate`. It allows only if Cedar allows, no policy failed (Cedar itself *skips* a `forbid` that fails), everything
the request refers to is in the slice, and the groups of the requester are known. All else is a denial that says who
must act.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import cedarpy
import msgspec

from policy.errors import one_line
from policy.facts import ACTIONS, ACTIONS_ON_VMS, SEALED, SEALED_ACTIONS
from policy.many_groups import expand_entities
from policy.request import Json, references
from policy.rules import Rules
from policy.selection import Selected, Uid

_SHOWN_PERMITS: Final = 5


@dataclass(frozen=True, slots=True)
class PolicyReason:
    """A policy that determined a decision. `effect` is "permit" or "forbid"; the rest as in `cedar_policy.Policy`."""

    id: str
    effect: str
    reason: str
    on_revocation: str | None = None
    is_baseline: bool = False


@dataclass(frozen=True, slots=True)
class Decision:
    """Yes or no, and everything needed to reach it again: `request` and `entities` are plain JSON without floats.

    `reasons` are the determining policies, sorted by id; none when nothing matched or Cedar was not asked.
    `errors` is what went wrong, in Cedar's words. `denied_because` is for people; "" when allowed.
    `by_policy`: everything was known and nothing failed; the answer is that of the policies alone.
    `observed`: allowed although the policies deny, because the zones are being observed (`gateway.observing`).
    `otherwise`: what a candidate bundle says instead (`gateway.shadowing`); it counts for nothing.
    """

    allowed: bool
    reasons: tuple[PolicyReason, ...]
    errors: tuple[str, ...]
    denied_because: str
    bundle_digest: str
    request: Json
    entities: list[Json]
    by_policy: bool = False
    observed: bool = False
    otherwise: Mapping[str, Any] | None = None


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    principal: Uid
    action: Uid
    resource: Uid
    context: dict[str, Any]


class _Entity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    uid: Uid
    attrs: dict[str, Any]
    parents: list[Uid]


def is_readable(request: Json, entities: list[Json]) -> bool:
    """Whether it has the form of a request. One of a record that was damaged may not."""
    try:
        _read(request, expand_entities(entities))
    except (msgspec.ValidationError, ValueError, RecursionError):
        return False
    return True


def _read(request: Json, entities: list[Json]) -> tuple[_Request, dict[tuple[str, str], Json]]:
    """Raises ValidationError, RecursionError."""
    asked = msgspec.convert(request, _Request)
    return asked, {(e.uid.type, e.uid.id): e.attrs for e in msgspec.convert(entities, list[_Entity])}


def evaluate(rules: Rules, bundle_digest: str, request: Json, entities: list[Json]) -> Decision:
    """Decide. Raises nothing that the request or the entities could cause: what is malformed is denied."""

    def denied(because: str, reasons: Sequence[PolicyReason] = (), errors: Sequence[str] = ()) -> Decision:
        return Decision(False, tuple(reasons), tuple(errors), because, bundle_digest, request, entities)

    def denied_by_policy(because: str, reasons: Sequence[PolicyReason] = ()) -> Decision:
        return Decision(False, tuple(reasons), (), because, bundle_digest, request, entities, by_policy=True)

    try:
        asked, known = _read(request, entities)
        unknown = [
            (where, kind)
            for where, kind, name in references(request)
            if where != "action" and (kind, name) not in known
        ]
    except (msgspec.ValidationError, RecursionError) as error:
        return denied("The request is malformed: this is a defect of Sealane, report it.", errors=[str(error)])
    if asked.action.id not in ACTIONS:
        return denied(f"Sealane knows no action {asked.action.id!a}: the requester must ask for one that it knows.")
    if unknown:
        is_vm_unknown = ("resource", "Sealane::Vm") in unknown
        # Where a VM is that nobody knows is not known either: that is no second thing to correct.
        said = [each for each in unknown if not (is_vm_unknown and each[0] == "context.source")]
        return denied(" ".join(_unknown(where, kind) for where, kind in said))
    if known[asked.principal.type, asked.principal.id].get("groups_known") is not True:
        return denied(
            "The requester's groups are not known: the operator must make the identity provider or the directory"
            " tell all of them."
        )
    is_sealed = known[asked.principal.type, asked.principal.id].get("authenticated_by") == SEALED
    if is_sealed and asked.action.id not in SEALED_ACTIONS:
        return denied("Sealed people break glass, approve it and follow that; sign in as yourself for all else.")
    try:
        selected, answer = _ask(rules, asked, known, request, entities)
    except (ValueError, TypeError, RecursionError) as error:
        return denied(_DOES_NOT_FIT, errors=[one_line(error)])
    reasons = _reasons(selected, answer.diagnostics.reasons)
    errors = [_name_policies(selected, error) for error in answer.diagnostics.errors]
    if answer.decision is cedarpy.Decision.NoDecision:
        return denied(_DOES_NOT_FIT, errors=errors or ["Cedar gave no decision"])
    if errors:
        return denied(
            "A policy could not be evaluated, and a forbid that fails would be skipped:"
            f" the policy author must correct it. {errors[0]}",
            reasons,
            errors,
        )
    if answer.decision is cedarpy.Decision.Allow and len(reasons) == len(answer.diagnostics.reasons) > 0:
        return Decision(True, reasons, (), "", bundle_digest, request, entities, by_policy=True)
    if reasons:
        return denied_by_policy("Forbidden: " + " ".join(f"{_sentence(r.reason)} ({r.id})" for r in reasons), reasons)
    return denied_by_policy(_nothing_permits(rules, asked, known))


def _ask(
    rules: Rules, asked: _Request, known: Mapping[tuple[str, str], Json], request: Json, entities: list[Json]
) -> tuple[Selected, cedarpy.AuthzResult]:
    """The answer, and the policies by whose numbers it speaks. Raises what Cedar raises for facts that do not fit."""
    context = msgspec.json.encode(request["context"]).decode()
    facts, groups = rules.slices.parse(context, request["principal"], entities)
    kinds = {kind for kind, _ in known}
    selected, to_learn = rules.selections.select(asked.principal, groups, asked.action, kinds)
    put = {**request, "context": context}
    answer = cedarpy.is_authorized(put, selected.policy_set, facts, rules.schema)
    if to_learn is not None:
        rules.selections.learn(to_learn, put, facts, rules.schema)
    return selected, answer


_DOES_NOT_FIT: Final = (
    "The facts do not fit the bundle's schema: the policy author must bring the schema shipped with this Sealane."
)


def _reasons(selected: Selected, cedar_ids: Sequence[str]) -> tuple[PolicyReason, ...]:
    policies = sorted((p for p in map(selected.policy, cedar_ids) if p), key=lambda policy: policy.id)
    return tuple(
        PolicyReason(policy.id, policy.effect, policy.reason, policy.on_revocation, policy.is_baseline)
        for policy in policies
    )


def _name_policies(selected: Selected, error: str) -> str:
    """Cedar says "error while evaluating policy `policy3`: …"; people know the policy by its @id."""
    head, _, rest = error.partition("`")
    cedar_id, _, tail = rest.partition("`")
    policy = selected.policy(cedar_id)
    return one_line(f"{head}`{policy.id}`{tail}" if policy else error)


def _unknown(where: str, kind: str) -> str:
    match where, kind:
        case "principal", _:
            return "The requester is not known: log in."
        case "resource", "Sealane::Vm":
            return "The inventory does not know this VM: correct its name, or let the operator add it."
        case "context.requester", _:
            return "Nothing is known of whoever asked to break glass."
        case (("context.source" | "context.destination"), _):
            end = where.removeprefix("context.")
            return f"The inventory does not know the {end} host: correct its name, or let the operator add it."
        case _:
            return f"Nothing is known of the {where}: the operator must complete the inventory."


def _nothing_permits(rules: Rules, asked: _Request, known: Mapping[tuple[str, str], Json]) -> str:
    """Default deny: say what was asked, what could permit it, and who may change that."""
    action = asked.action.id
    person = f"{known[asked.principal.type, asked.principal.id].get('name')} ({asked.principal.id})"
    about = ""
    if action in ACTIONS_ON_VMS:
        vm = known[asked.resource.type, asked.resource.id]
        about = f" of VM {vm.get('name')} (zone {vm.get('zone')}, classification {vm.get('classification')})"
    permits = rules.permits.get(action, ())
    if not permits:
        return f"No policy permits {action} to anyone: the policy author must add one if it should be possible."
    shown = " ".join(f"{_sentence(policy.reason)} ({policy.id})" for policy in permits[:_SHOWN_PERMITS])
    more = f" And {len(permits) - _SHOWN_PERMITS} more." if len(permits) > _SHOWN_PERMITS else ""
    return (
        f"No policy permits {action}{about} by {person}. What does permit {action}: {shown}{more}"
        " Ask for the role that this needs, or the policy author for a policy."
    )


def _sentence(reason: str) -> str:
    return reason if reason.endswith((".", "!", "?")) else reason + "."
