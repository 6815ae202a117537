"""What Cedar's validator lets pass in one policy although its author hardly meant it; each as rule, words and place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from policy.authoring.conditions import always, conjuncts_of, constant
from policy.cedar_policy import parts_of
from policy.facts import SID, SPIFFE_ID, UUID, VM_ACTIONS

_ABOUT_THE_PERSON: Final = frozenset({"own_migration", "own_request"})  # of the context: who the person is to it


@dataclass(frozen=True, slots=True)
class Remark:
    """`word`: a token of the policy to point at; None points at its beginning."""

    severity: Literal["error", "warning"]
    rule: str
    message: str
    hint: str
    word: str | None = None


def remarks(policy: Mapping[str, Any]) -> Iterator[Remark]:
    """`policy` as in Cedar's JSON."""
    yield from _constants(policy)
    yield from _ids(policy)
    yield from _names(policy)
    if _permits_everyone(policy):
        yield Remark(
            "warning",
            "permit-for-everyone",
            "permits whoever asks: nothing in it speaks of the person",
            'name a group in the scope: principal in Sealane::Group::"S-1-5-21-…"',
            "principal",
        )


def _constants(policy: Mapping[str, Any]) -> Iterator[Remark]:
    whole = always(policy)
    if whole is False:
        yield Remark(
            "error", "never-applies", "its conditions contradict each other: it never applies",
            "ask for one of the values: [\"a\", \"b\"].contains(x)", "when",
        )  # fmt: skip
        return
    for condition in policy.get("conditions", ()):
        kind, value = condition["kind"], constant(condition["body"])
        if value is not None:
            yield Remark(
                "warning", "constant-condition", f"its `{kind}` is {str(value).lower()} for every request",
                f"take the `{kind}` out, or write what was meant (x != \"a\" || x != \"b\" always holds: use &&)", kind,
            )  # fmt: skip


def _ids(policy: Mapping[str, Any]) -> Iterator[Remark]:
    for each in parts_of(policy):
        kind, name = each.get("type"), each.get("id")
        if not isinstance(name, str):
            continue
        if kind == "Sealane::Group" and SID.fullmatch(name) is None and name.find("#") < 1:
            yield Remark(
                "error", "name-for-sid", f"no group has the id {name!a}: ids are SIDs, or issuer#name",
                "sealane whoami shows the ids of your groups; in Active Directory: Get-ADGroup NAME | select SID", name,
            )  # fmt: skip
        elif kind == "Sealane::Person" and "#" not in name and "/" not in name:
            yield Remark(
                "error", "name-for-id", f"no person has the id {name!a}: ids are issuer#subject",
                "sealane whoami shows your id; better name a group", name,
            )  # fmt: skip
        elif kind == "Sealane::Vm" and UUID.fullmatch(name) is None:
            yield Remark(
                "error", "name-for-id", f"no VM has the id {name!a}: ids are UUIDs in lower case",
                "sealane inventory show NAME tells the UUID", name,
            )  # fmt: skip
        elif kind == "Sealane::Host" and SPIFFE_ID.fullmatch(name) is None:
            yield Remark(
                "error", "name-for-id", f"no host has the id {name!a}: ids are spiffe://<trust domain>/host/<name>",
                "sealane inventory show NAME tells it", name,
            )  # fmt: skip


def _names(policy: Mapping[str, Any]) -> Iterator[Remark]:
    for each in parts_of(policy.get("conditions", ())):
        match each:
            case {".": {"left": {"Var": "principal"}, "attr": "name"}}:
                yield Remark(
                    "warning", "name-decides", "compares a person's name, which anyone may have",
                    "compare the person or a group: principal in Sealane::Group::\"S-1-5-21-…\"", "name",
                )  # fmt: skip


def _permits_everyone(policy: Mapping[str, Any]) -> bool:
    if policy["effect"] != "permit" or policy["principal"]["op"] != "All":
        return False
    for each in parts_of(policy.get("conditions", ())):
        match each:
            case {"Var": "principal"}:
                return False
            case {".": {"left": {"Var": "context"}, "attr": str(attribute)}} if attribute in _ABOUT_THE_PERSON:
                return False
    return True


def shadows(forbid: Mapping[str, Any], permit: Mapping[str, Any]) -> bool:
    """Does the forbid hold whenever the permit does? Told only where scope and conjuncts prove it."""
    if forbid["effect"] != "forbid" or permit["effect"] != "permit":
        return False
    scopes = all(
        forbid[part]["op"] == "All" or dict(forbid[part]) == dict(permit[part]) for part in ("principal", "resource")
    )
    if not scopes or not _covers(actions_in_scope(forbid), actions_in_scope(permit)):
        return False
    asked = list(conjuncts_of(permit))
    return all(each in asked or constant(each) is True for each in conjuncts_of(forbid))


def actions_in_scope(policy: Mapping[str, Any]) -> frozenset[str] | None:
    """Ids of the actions it is about, AnyMove taken apart; None means all."""
    scope = policy["action"]
    if scope["op"] == "All":
        return None
    named = {entity["id"] for entity in scope.get("entities", [scope["entity"]] if "entity" in scope else [])}
    return frozenset(named - {"AnyMove"} | (set(VM_ACTIONS) if "AnyMove" in named else set()))


def _covers(wide: frozenset[str] | None, narrow: frozenset[str] | None) -> bool:
    return wide is None or (narrow is not None and narrow <= wide)
