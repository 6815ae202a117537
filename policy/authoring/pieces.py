"""A bundle taken apart: each policy's scope and each conjunct of its conditions as a policy of its own.

Cedar tells which policies determined a decision, not why the others did not. Asked once about all the parts it tells
which hold, by its own evaluation; nothing here interprets a condition.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import cedarpy

from policy.authoring.conditions import Expr, parts
from policy.bundle_files import POLICIES
from policy.cedar_policy import Policy
from policy.decision import Decision
from policy.many_groups import expand_entities
from policy.rules import Rules
from policy.source import split_policies

Truth = Literal["true", "false", "error"]
_ALL: Final = {"op": "All"}
_ANYTHING: Final = {"effect": "permit", "principal": _ALL, "action": _ALL, "resource": _ALL, "conditions": []}
_PLAIN: Final = re.compile(r"(?<![A-Za-z0-9_])\(([a-z_]+(?:\.[a-z_]+)*)\)")  # brackets that Cedar's printer adds
_ERROR: Final = re.compile(r"`(?P<id>[^`]+)`: (?P<words>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Part:
    """`kind`: a part of the scope, or the clause that it stands in. An `unless` part must be false."""

    kind: Literal["principal", "action", "resource", "when", "unless"]
    clause: int  # which of the policy's conditions, from 0; -1 for the scope
    expr: Mapping[str, Any]

    @property
    def wanted(self) -> Truth:
        return "false" if self.kind == "unless" else "true"

    def text(self) -> str:
        """As Cedar text."""
        if self.clause >= 0:
            return _cedar({**_ANYTHING, "conditions": [{"kind": "when", "body": self.expr}]}, r"when\s*\{(.*)\};?\s*$")
        scope = _cedar({**_ANYTHING, self.kind: self.expr}, r"permit\s*\((.*)\);?\s*$")
        return next((each.strip() for each in _commas(scope) if each.strip().startswith(self.kind)), scope)


@dataclass(frozen=True, slots=True)
class TakenApart:
    """One policy: as people see it, in Cedar's JSON, and its parts in the order in which Cedar evaluates them."""

    policy: Policy
    parsed: Mapping[str, Any]
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """What holds for one request. `whole`: is the policy satisfied? `error`: Cedar's words for it, "" if none."""

    whole: Truth
    parts: tuple[Truth, ...]
    error: str


class Pieces:
    """All parts of a bundle, parsed once."""

    def __init__(self, rules: Rules, files: Mapping[str, str]) -> None:
        """`files` are those that `rules` were compiled from."""
        self._schema = rules.schema
        self.policies = tuple(_take_apart(rules, files))
        made: dict[str, Mapping[str, Any]] = {}
        for number, each in enumerate(self.policies):
            made[f"{number}.w"] = {**each.parsed, "effect": "permit", "annotations": {}}
            for index, part in enumerate(each.parts):
                made[f"{number}.{index}"] = _as_policy(part)
        document = {"staticPolicies": made, "templates": {}, "templateLinks": []}
        self._set = cedarpy.PolicySet.from_json_str(json.dumps(document), release_gil=True)

    def answers(self, decision: Decision) -> list[Answers] | None:
        """For each policy, in order; None if the request is one that Cedar cannot be asked."""
        try:
            slice_ = cedarpy.Entities.from_json_str(json.dumps(expand_entities(decision.entities)), self._schema)
            answer = cedarpy.is_authorized(decision.request, self._set, slice_, self._schema)
        except (KeyError, ValueError, TypeError, RecursionError):  # of a record that is damaged
            return None
        if answer.decision is cedarpy.Decision.NoDecision:
            return None
        holding = set(answer.diagnostics.reasons)
        failed = {match["id"]: match["words"] for error in answer.diagnostics.errors if (match := _ERROR.search(error))}

        def truth(key: str) -> Truth:
            return "error" if key in failed else "true" if key in holding else "false"

        return [
            Answers(
                truth(f"{number}.w"),
                tuple(truth(f"{number}.{index}") for index in range(len(each.parts))),
                " ".join(failed.get(f"{number}.w", "").split()),
            )
            for number, each in enumerate(self.policies)
        ]


def _take_apart(rules: Rules, files: Mapping[str, str]) -> Iterator[TakenApart]:
    policies = iter(rules.policies)
    for file in sorted(path for path in files if path.startswith(f"{POLICIES}/")):
        for piece in split_policies(files[file]):
            parsed = json.loads(cedarpy.policies_to_json_str(piece.text))["staticPolicies"]["policy0"]
            yield TakenApart(next(policies), parsed, tuple(_parts(parsed)))


def _parts(parsed: Mapping[str, Any]) -> Iterator[Part]:
    for kind in ("principal", "action", "resource"):
        yield Part(kind, -1, parsed[kind])
    for number, condition in enumerate(parsed.get("conditions", ())):
        kind = condition["kind"]
        for expr in parts(condition["body"], "&&" if kind == "when" else "||"):
            yield Part(kind, number, expr)


def _as_policy(part: Part) -> Mapping[str, Any]:
    if part.clause < 0:
        return {**_ANYTHING, part.kind: part.expr}
    return {**_ANYTHING, "conditions": [{"kind": "when", "body": part.expr}]}


def _cedar(policy: Mapping[str, Any], inside: str) -> str:
    document = {"staticPolicies": {"policy0": policy}, "templates": {}, "templateLinks": []}
    text = " ".join(cedarpy.policies_from_json_str(json.dumps(document)).split())
    match = re.search(inside, text, re.DOTALL)
    shown = match[1].strip() if match else text
    while (plainer := _PLAIN.sub(r"\1", shown)) != shown:  # ((a.b).c) loses its brackets from within
        shown = plainer
    return shown


def _commas(text: str) -> Iterator[str]:
    """Split at commas outside of brackets and strings."""
    depth, quoted, begin, escaped = 0, False, 0, False
    for position, letter in enumerate(text):
        if quoted:
            quoted = escaped or letter != '"'
            escaped = letter == "\\" and not escaped
        elif letter == '"':
            quoted = True
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == "," and depth == 0:
            yield text[begin:position]
            begin = position + 1
    yield text[begin:]


def attributes_in(expr: Expr) -> Iterator[tuple[str, ...]]:
    """The attributes that an expression reads, each as a path from its variable: ("context", "source", "zone")."""
    rest: list[Any] = [expr]
    while rest:
        each = rest.pop(0)
        if isinstance(each, list):
            rest += each
        elif isinstance(each, Mapping):
            if (path := _path(each)) is not None:
                yield path
            else:
                rest += each.values()


def _path(expr: Mapping[str, Any]) -> tuple[str, ...] | None:
    attributes: list[str] = []
    while len(expr) == 1:
        match expr:
            case {"Var": str(name)}:
                return (name, *reversed(attributes))
            case {".": {"left": inner, "attr": str(attribute)}} | {"has": {"left": inner, "attr": str(attribute)}}:
                attributes.append(attribute)
                expr = inner
            case _:
                return None
    return None
