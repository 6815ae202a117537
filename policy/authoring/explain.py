"""Why a decision is as it is: each policy satisfied, not, or in error, and which facts made it so."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final, Literal

import msgspec

from policy.authoring.pieces import Answers, Part, Pieces, TakenApart, attributes_in
from policy.decision import Decision
from policy.many_groups import expand_entities

Verdict = Literal["satisfied", "not satisfied", "error"]
_MAX_VALUE: Final = 200
_MISSING: Final = object()


class Explained(msgspec.Struct, frozen=True):
    """One policy. `because`: what keeps it from being satisfied, or, of a satisfied one, what made it so."""

    id: str
    effect: str
    file: str
    reason: str
    verdict: Verdict
    because: tuple[str, ...]
    about_it: bool  # does its scope speak of the action at all?


class Explanation(msgspec.Struct, frozen=True):
    """`unasked`: Cedar could not be asked, so that nothing is told of the policies."""

    allowed: bool
    denied_because: str
    unasked: bool
    policies: tuple[Explained, ...]

    def lines(self) -> Iterator[str]:
        """For people: the policies that were satisfied or failed first, then the others."""
        yield "ALLOWED" if self.allowed else f"DENIED  {self.denied_because}"
        if self.unasked:
            yield "The policies were not asked: see above."
        order = {"error": 0, "satisfied": 1, "not satisfied": 2}
        for each in sorted(self.policies, key=lambda policy: order[policy.verdict]):
            if not each.about_it:
                continue
            yield f"{each.verdict}: {each.effect} {each.id} ({each.file})"
            for line in each.because:
                yield f"    {line}"
        if others := sum(not each.about_it for each in self.policies):
            yield f"{others} policies are about other actions." if others != 1 else "1 policy is about other actions."


def explain(pieces: Pieces, decision: Decision) -> Explanation:
    """Never raises for what the decision holds."""
    answers = pieces.answers(decision)
    explained = () if answers is None else tuple(map(_Facts(decision).explain, pieces.policies, answers))
    return Explanation(decision.allowed, decision.denied_because, answers is None, explained)


class _Facts:
    """The values of one request."""

    def __init__(self, decision: Decision) -> None:
        self._request = decision.request
        self._entities = {
            (entity["uid"]["type"], entity["uid"]["id"]): entity for entity in expand_entities(decision.entities)
        }

    def explain(self, taken: TakenApart, answers: Answers) -> Explained:
        policy = taken.policy
        verdict: Verdict = (
            "error" if answers.whole == "error" else "satisfied" if answers.whole == "true" else "not satisfied"
        )
        parts = list(zip(taken.parts, answers.parts, strict=True))
        about_it = all(truth == "true" for part, truth in parts if part.kind == "action")
        if verdict == "satisfied":
            shown = [part for part, _ in parts if part.clause >= 0]
            because = tuple(self._line(part, answer=part.wanted == "true") for part in shown)
        else:
            part, truth = next(((part, truth) for part, truth in parts if truth != part.wanted), parts[-1])
            words = answers.error if truth == "error" else ""
            because = (self._line(part, answer=truth == "true") + (f": {words}" if words else ""),)
        return Explained(policy.id, policy.effect, policy.file, policy.reason, verdict, because, about_it)

    def _line(self, part: Part, *, answer: bool) -> str:
        held = "holds" if answer else "does not hold"
        if part.clause < 0:
            asked = self._request[part.kind]
            return f"scope: {part.text()}; it is {_shown({'__entity': asked})}"
        facts = "; ".join(self._fact(path) for path in dict.fromkeys(attributes_in(part.expr)))
        return f"{part.kind}: {part.text()} {held}" + (f"; {facts}" if facts else "")

    def _fact(self, path: tuple[str, ...]) -> str:
        value: Any = {"__entity": self._request[path[0]]} if path[0] != "context" else self._request["context"]
        for attribute in path[1:]:
            value = self._attributes(value).get(attribute, _MISSING)
            if value is _MISSING:
                return f"{'.'.join(path)} is not there"
        return f"{'.'.join(path)} is {_shown(value)}"

    def _attributes(self, value: Any) -> Mapping[str, Any]:
        match value:
            case {"__entity": {"type": kind, "id": name}}:
                found: Mapping[str, Any] = self._entities.get((kind, name), {}).get("attrs", {})
                return found
        return value if isinstance(value, Mapping) else {}


def _shown(value: Any) -> str:
    match value:
        case {"__entity": {"type": kind, "id": name}}:
            text = f"{kind}::{json.dumps(name)}"
        case {"__extn": {"arg": argument}}:
            text = str(argument)
        case _:
            text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + " …"
