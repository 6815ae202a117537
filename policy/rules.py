"""Cedar policies and schema, parsed once into handles that a decision only has to use.

It finds what cedarpy lets pass: duplicate or missing `@id`, templates that nothing links, and text so deeply
nested that Cedar's parser overflows its stack, which ends the whole process (seen with 1,000 parentheses).
Errors: BundleRefused, naming the file; its policy author must act.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cedarpy

from policy.errors import BundleRefused
from policy.lint import mixed_words, never_applies

MAX_DEPTH: Final = 50
MAX_TOKENS: Final = 5_000  # of one policy; a chain of operators nests too: 2,500 deep at most, 5,000 were seen to work
MAX_CONDITIONALS: Final = 100
MAX_REASON: Final = 300
OBLIGATIONS: Final = ("record", "finish", "cancel")  # of @on_revocation, from the weakest to the strongest
POLICY_ID: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?")
# Comments and strings as Cedar's own lexer reads them, so that a bracket in one cannot hide another's depth.
_TOKEN: Final = re.compile(r'//[^\n\r]*|"(?:\\.|[^"\\])*"|[0-9]+|[A-Za-z_][A-Za-z_0-9]*|\S')


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy as people see it. `actions`: ids named in its scope, action groups included; () means every action.

    `on_revocation`: what becomes of a running migration that it permitted, or now forbids; None if it does not say.
    `is_baseline`: a forbid that holds in observed zones, too. `groups`: the ids of all groups that it names.
    """

    id: str
    effect: str
    reason: str
    file: str
    actions: tuple[str, ...]
    on_revocation: str | None = None
    is_baseline: bool = False
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Rules:
    """Parsed policies and schema. `policies` is in the order of Cedar's positional ids `policy0`, `policy1`, …"""

    policies: tuple[Policy, ...]
    policy_set: cedarpy.PolicySet
    schema: cedarpy.Schema

    def policy(self, cedar_id: str) -> Policy | None:
        """The policy that cedarpy calls `policy<n>`."""
        number = cedar_id.removeprefix("policy")
        if not number.isdecimal() or int(number) >= len(self.policies):
            return None
        return self.policies[int(number)]

    def without_policies(self) -> Rules:
        """The schema alone."""
        return Rules((), cedarpy.PolicySet.from_str(""), self.schema)


def compile_rules(schema_file: str, schema_text: str, policy_texts: Mapping[str, str]) -> Rules:
    """Parse and check everything; `policy_texts` is file name → Cedar text. Raises BundleRefused."""
    schema = _compile_schema(schema_file, schema_text)
    policies: list[Policy] = []
    seen: dict[str, str] = {}
    for file in sorted(policy_texts):
        for policy in _compile_file(file, policy_texts[file], schema):
            if policy.id in seen:
                raise BundleRefused(file, f'@id("{policy.id}") is already used in {seen[policy.id]}: choose another')
            seen[policy.id] = file
            policies.append(policy)
    # One text, so that Cedar numbers the policies through; each file has been parsed alone, so none can begin
    # inside another. A line feed ends a comment on a file's last line.
    policy_set = cedarpy.PolicySet.from_str("\n".join(policy_texts[file] for file in sorted(policy_texts)))
    if len(policy_set) != len(policies):
        raise BundleRefused("", "the files together hold other policies than one by one: a defect of ours, report it")
    return Rules(tuple(policies), policy_set, schema)


def _compile_schema(file: str, text: str) -> cedarpy.Schema:
    # Counted over the whole schema: 10,000 entities, each a member of the last, kept Cedar busy for minutes.
    _check_nesting(file, text, openers="([{<", closers=")]}>", ends="")
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise BundleRefused(file, _one_line(error)) from error


def _compile_file(file: str, text: str, schema: cedarpy.Schema) -> list[Policy]:
    _check_nesting(file, text)
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except ValueError as error:
        raise BundleRefused(file, f"is not Cedar: {_one_line(error)}") from error
    except RecursionError:
        raise BundleRefused(file, "has a chain of operators too long to read: split the policy") from None
    if parsed["templates"]:
        raise BundleRefused(file, "holds a template (?principal or ?resource), which nothing would ever link")
    numbered = parsed["staticPolicies"]
    policies = [_policy(file, number, numbered[f"policy{number}"]) for number in range(len(numbered))]
    if (word := next(mixed_words(text), None)) is not None:
        raise BundleRefused(file, f"the word {word!a} mixes alphabets, and equals no fact: write it in one")
    verdict = cedarpy.validate_policies(text, schema)
    if not verdict.validation_passed:
        raise BundleRefused(file, _schema_violation(verdict.errors, policies))
    return policies


def _policy(file: str, number: int, parsed: Mapping[str, Any]) -> Policy:
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
    )


def _named_groups(parsed: Mapping[str, Any]) -> Iterator[str]:
    """The ids of all groups that stand in a policy, in its scope or its conditions."""
    rest: list[Any] = [parsed]  # no recursion: conditions nest deeper than Python's stack
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            if value.get("type") == "Sealane::Group" and isinstance(value.get("id"), str):
                yield value["id"]
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _actions(scope: Mapping[str, Any]) -> tuple[str, ...]:
    named = scope.get("entities", [scope["entity"]] if "entity" in scope else [])
    return tuple(sorted(entity["id"] for entity in named))


def _schema_violation(errors: list[cedarpy.ValidationError], policies: list[Policy]) -> str:
    first = errors[0]
    number = first.policy_id.removeprefix("policy")
    name = policies[int(number)].id if number.isdecimal() and int(number) < len(policies) else first.policy_id
    return f"policy {name} does not fit the schema: {_one_line(first.error).replace(f'`{first.policy_id}`', name)}"


def _check_nesting(file: str, text: str, openers: str = "([{", closers: str = ")]}", ends: str = ";") -> None:
    """Refuse what could overflow the parser's stack: brackets, chains of operators and of `if` … `else`."""
    depth = tokens = conditionals = 0
    for match in _TOKEN.finditer(text):
        word = match[0]
        if word.startswith("//"):
            continue
        tokens += 1
        if word in openers:
            depth += 1
        elif word in closers:
            depth -= 1
        elif word == "if":
            conditionals += 1
        elif word == ends and depth == 0:
            tokens = conditionals = 0
        if depth < 0:
            raise BundleRefused(file, f"closes a bracket that was never opened: {word}")
        if depth > MAX_DEPTH or conditionals > MAX_CONDITIONALS:
            raise BundleRefused(file, f"is nested deeper than {MAX_DEPTH} brackets or {MAX_CONDITIONALS} ifs: split it")
        if tokens > MAX_TOKENS:
            raise BundleRefused(file, f"has more than {MAX_TOKENS} words in one piece: use groups or tags, or split it")


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:MAX_REASON]
