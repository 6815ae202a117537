"""Cedar policies and schema, parsed once into handles that a decision only has to use.

It finds what cedarpy lets pass: duplicate or missing `@id`, templates that nothing links, and text so deeply
nested that Cedar's parser overflows its stack, which ends the whole process (seen with 1,000 parentheses).
Errors: BundleRefused, naming the file; its policy author must act.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import cedarpy

from policy.cedar_policy import MAX_REASON, Policy, read_policy
from policy.errors import BundleRefused, one_line
from policy.facts import ACTIONS
from policy.lint import mixed_words
from policy.selection import Scope, Selected, Selections, scope_of
from policy.slices import Slices
from policy.source import check_nesting, split_policies


@dataclass(frozen=True, slots=True)
class Rules:
    """Parsed policies and schema. `selections`: the policies as Cedar is asked about them; `slices`: the facts.

    `named_groups`: the ids of all groups that stand in any of them. `permits`: by action, those that could permit it.
    """

    selections: Selections
    schema: cedarpy.Schema
    named_groups: frozenset[str] = field(init=False)
    slices: Slices = field(init=False)
    permits: Mapping[str, tuple[Policy, ...]] = field(init=False)

    @property
    def policies(self) -> tuple[Policy, ...]:
        return self.selections.everything.policies

    @property
    def tell_vms_apart(self) -> bool:
        """Whether two VMs that differ in name and UUID alone may be decided differently."""
        return any(policy.tells_vms_apart for policy in self.policies)

    def __post_init__(self) -> None:
        named: frozenset[str] = frozenset().union(*(policy.groups for policy in self.policies))
        object.__setattr__(self, "named_groups", named)
        object.__setattr__(self, "slices", Slices(named, self.schema))
        permits = [policy for policy in self.policies if policy.effect == "permit"]
        by_action = {action: tuple(policy for policy in permits if policy.covers(action)) for action in ACTIONS}
        object.__setattr__(self, "permits", by_action)

    def without_policies(self) -> Rules:
        """The schema alone."""
        return no_rules(self.schema)


def no_rules(schema: cedarpy.Schema) -> Rules:
    """A schema alone."""
    return Rules(Selections(Selected((), cedarpy.PolicySet.from_str("")), (), ()), schema)


@dataclass(frozen=True, slots=True)
class _Read:
    policy: Policy
    text: str
    scope: Scope


def compile_rules(schema_file: str, schema_text: str, policy_texts: Mapping[str, str]) -> Rules:
    """Parse and check everything; `policy_texts` is file name → Cedar text. Raises BundleRefused."""
    schema = compile_schema(schema_file, schema_text)
    found: list[_Read] = []
    seen: dict[str, str] = {}
    for file in sorted(policy_texts):
        for each in _compile_file(file, policy_texts[file], schema):
            name = each.policy.id
            if name in seen:
                raise BundleRefused(file, f'@id("{name}") is already used in {seen[name]}: choose another')
            seen[name] = file
            found.append(each)
    # One text, so that Cedar numbers the policies through; each file has been parsed alone, so none can begin
    # inside another. A line feed ends a comment on a file's last line.
    policy_set = cedarpy.PolicySet.from_str(
        "\n".join(policy_texts[file] for file in sorted(policy_texts)), release_gil=True
    )
    if len(policy_set) != len(found):
        raise BundleRefused("", "the files together hold other policies than one by one: a defect of ours, report it")
    everything = Selected(tuple(each.policy for each in found), policy_set)
    return Rules(Selections(everything, [each.text for each in found], [each.scope for each in found]), schema)


def compile_schema(file: str, text: str) -> cedarpy.Schema:
    """Raises BundleRefused."""
    # Counted over the whole schema: 10,000 entities, each a member of the last, kept Cedar busy for minutes.
    check_nesting(file, text, openers="([{<", closers=")]}>", ends="")
    try:
        return cedarpy.Schema.from_str(text)
    except ValueError as error:
        raise BundleRefused(file, one_line(error, MAX_REASON)) from error


def _compile_file(file: str, text: str, schema: cedarpy.Schema) -> list[_Read]:
    check_nesting(file, text)
    pieces = [piece.text for piece in split_policies(text)]
    try:
        parsed = [json.loads(cedarpy.policies_to_json_str(piece)) for piece in pieces]
    except ValueError as error:
        raise BundleRefused(file, f"is not Cedar: {one_line(error, MAX_REASON)}") from error
    except RecursionError:
        raise BundleRefused(file, "has a chain of operators too long to read: split the policy") from None
    if any(each["templates"] for each in parsed):
        raise BundleRefused(file, "holds a template (?principal or ?resource), which nothing would ever link")
    only = [each["staticPolicies"]["policy0"] for each in parsed]
    policies = [read_policy(file, number, each) for number, each in enumerate(only)]
    if (word := next(mixed_words(text), None)) is not None:
        raise BundleRefused(file, f"the word {word!a} mixes alphabets, and equals no fact: write it in one")
    verdict = cedarpy.validate_policies(text, schema, release_gil=True)
    if not verdict.validation_passed:
        raise BundleRefused(file, _schema_violation(verdict.errors, policies))
    return [_Read(policy, text, scope_of(each)) for policy, text, each in zip(policies, pieces, only, strict=True)]


def _schema_violation(errors: list[cedarpy.ValidationError], policies: list[Policy]) -> str:
    first = errors[0]
    number = first.policy_id.removeprefix("policy")
    name = policies[int(number)].id if number.isdecimal() and int(number) < len(policies) else first.policy_id
    said = one_line(first.error, MAX_REASON).replace(f"`{first.policy_id}`", name)
    return f"policy {name} does not fit the schema: {said}"
