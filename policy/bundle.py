"""A policy bundle: schema, policies and their tests in one directory, one digest over all of it.

A bundle that exists is whole: every file was read, parsed, fits the schema, and its own tests passed. There is no
half-loaded one, so putting it in force (`Engine.swap`) cannot fail. Errors: BundleRefused, naming the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from policy.bundle_files import MANIFEST, POLICIES, SCHEMA, TESTS, bundle_digest, files_below, read_bundle_files
from policy.cases import probe_questions, run_cases
from policy.cedar_policy import Policy
from policy.decision import evaluate
from policy.errors import BundleRefused
from policy.request import entities_of, request_of
from policy.rules import Rules, compile_rules
from policy.settings import SettingRefused, decode_settings


class _Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """bundle.toml."""

    name: Annotated[
        str,
        msgspec.Meta(
            pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z",
            description="a text of 1 to 63 ASCII letters, digits and . _ - that begins with a letter or digit",
        ),
    ]
    version: Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True, slots=True)
class Bundle:
    """What is in force or could be. `version` only rises: a roll-back is a new version with an old content."""

    name: str
    version: int
    digest: str
    rules: Rules
    tests_passed: int
    policy_texts: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Every policy with id, effect, reason and file."""
        return self.rules.policies

    @property
    def named_groups(self) -> frozenset[str]:
        """All groups that decide anything."""
        return self.rules.named_groups

    @classmethod
    def load(cls, directory: Path) -> Bundle:
        """Read, check and test the bundle in `directory`. Raises BundleRefused."""
        return cls.from_files(read_bundle_files(directory))

    @classmethod
    def from_files(cls, files: Mapping[str, str]) -> Bundle:
        """The same from texts by path, as they come out of `read_bundle_files`. Raises BundleRefused."""
        manifest = decode_manifest(files[MANIFEST])
        policy_texts = files_below(POLICIES, files)
        rules = compile_rules(SCHEMA, files[SCHEMA], policy_texts)
        check_schema_takes_our_facts(rules)
        tests_passed = run_cases(rules, files_below(TESTS, files))
        return cls(manifest.name, manifest.version, bundle_digest(files), rules, tests_passed, policy_texts)


def decode_manifest(text: str) -> _Manifest:
    """bundle.toml. Raises BundleRefused."""
    try:
        return decode_settings(text, _Manifest)
    except SettingRefused as error:
        raise BundleRefused(MANIFEST, str(error)) from None


def check_schema_takes_our_facts(rules: Rules) -> None:
    """A schema of another Sealane would deny everything, one request at a time; say so here, once."""
    # Without policies nothing but the schema can object: Cedar then denies with neither reason nor error.
    bare = rules.without_policies()
    for question in probe_questions():
        decision = evaluate(bare, "", request_of(question), entities_of(question))
        if decision.errors:
            raise BundleRefused(
                SCHEMA,
                f"does not take the facts of {question.action}: copy the schema of this Sealane ({decision.errors[0]})",
            )
