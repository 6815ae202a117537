"""Everything that is wrong with a bundle, with the place: Cedar's own errors, the schema's, and ours.

The gateway stops at the first fault; an author wants all of them. A bundle without an error here loads, if its own
cases pass (`policy.authoring.testing`): here they are read, and not run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import cedarpy

from policy.authoring.findings import Finding
from policy.authoring.policy_lint import Remark, remarks, shadows
from policy.bundle import check_schema_takes_our_facts, decode_manifest
from policy.bundle_files import MANIFEST, POLICIES, SCHEMA, TESTS, files_below
from policy.cases import read_cases
from policy.cedar_policy import Policy, read_policy
from policy.errors import BundleRefused
from policy.lint import mixed_words
from policy.rules import compile_schema, no_rules
from policy.source import Piece, check_nesting, find_word, first_bad_token, line_and_column, split_policies

MAX_FINDINGS: Final = 200
_MAX_SHADOW_PAIRS: Final = 1_000_000
_QUOTED: Final = re.compile(r"`([^`]+)`")
_PLACE: Final = re.compile(r"\(?(?:at )?line (\d+)(?:,? col(?:umn)? (\d+))?\)?")


@dataclass(frozen=True, slots=True)
class _Read:
    """A policy that could be read, for what compares policies with each other."""

    file: str
    piece: Piece
    policy: Policy
    parsed: Mapping[str, Any]


def check_bundle(files: Mapping[str, str]) -> list[Finding]:
    """All findings, in the order of the files; at most MAX_FINDINGS. Empty: nothing to correct or look at."""
    findings: list[Finding] = []
    try:
        decode_manifest(files[MANIFEST])
    except BundleRefused as error:
        findings.append(_refusal(error, files[MANIFEST], "copy its two lines from the policy guide: name, version"))
    schema: cedarpy.Schema | None = None
    try:
        schema = compile_schema(SCHEMA, files[SCHEMA])
        check_schema_takes_our_facts(no_rules(schema))
    except BundleRefused as error:
        findings.append(_refusal(error, files[SCHEMA], "`sealane policy new` writes the schema of this Sealane"))
    try:
        read_cases(files_below(TESTS, files))
    except BundleRefused as error:
        hint = (
            "the rest of the cases is looked at once this is corrected; docs/policy-guide.md shows what may stand there"
        )
        findings.append(_refusal(error, files.get(error.file, ""), hint))
    read: list[_Read] = []
    for file in sorted(path for path in files if path.startswith(f"{POLICIES}/")):
        findings += _check_file(file, files[file], schema, read)
        if len(findings) >= MAX_FINDINGS:
            break
    findings += _duplicates(files, read)
    findings += _shadowed(files, read)
    return sorted(findings)[:MAX_FINDINGS]


def _check_file(file: str, text: str, schema: cedarpy.Schema | None, read: list[_Read]) -> Iterator[Finding]:
    try:
        check_nesting(file, text)
    except BundleRefused as error:
        yield _refusal(error, text, "write it flatter, as policies of their own")
        return
    for number, piece in enumerate(split_policies(text)):
        try:
            parsed = json.loads(cedarpy.policies_to_json_str(piece.text))
        except ValueError as error:
            yield _syntax_error(file, text, piece, str(error))
            continue
        except RecursionError:
            yield _at(file, text, piece.start, "too-long", "has a chain of operators too long to read", "split it")
            continue
        if parsed["templates"]:
            message = "is a template (?principal or ?resource), which nothing would ever link"
            yield _at(file, text, piece.start, "template", message, "name a group in the scope")
            continue
        yield from _check_policy(file, text, piece, number, parsed["staticPolicies"]["policy0"], schema, read)


def _check_policy(  # noqa: PLR0913, PLR0917 - one policy and its place
    file: str,
    text: str,
    piece: Piece,
    number: int,
    parsed: Mapping[str, Any],
    schema: cedarpy.Schema | None,
    read: list[_Read],
) -> Iterator[Finding]:
    name = str(parsed.get("annotations", {}).get("id") or "")
    try:
        policy = read_policy(file, number, parsed)
    except BundleRefused as error:
        rule = "never-applies" if "never apply" in error.detail else "annotations"
        hint = 'begin it with @id("short-name") and @reason("What to do about it.")'
        hint = "take the policy out, or correct its condition" if rule == "never-applies" else hint
        yield _at(file, text, piece.start, rule, error.detail, hint, name)
    else:
        read.append(_Read(file, piece, policy, parsed))
        for remark in remarks(parsed):
            yield _remark(file, text, piece, policy.id, remark)
    for word in mixed_words(piece.text):
        message = f"the word {word!a} mixes alphabets, and equals no fact"
        yield _at(file, text, piece.start + piece.text.find(word), "look-alike", message, "write it in one", name)
    if schema is not None:
        for violation in cedarpy.validate_policies(piece.text, schema).errors:
            yield _violation(file, text, piece, name, violation.error)


def _violation(file: str, text: str, piece: Piece, name: str, error: str) -> Finding:
    words = " ".join(error.split())
    message = re.sub(r"^for policy `policy0`, ", "", words)
    rule, hint = "schema", "schema.cedarschema lists what there is; ids and attributes are case-sensitive"
    if "unsafe access" in message or "optional" in message:
        rule, hint = "unguarded", "ask first whether it is there: principal has actor && principal.actor == …"
    offset = next(
        (
            found
            for quoted in _QUOTED.findall(message)
            for word in (quoted, quoted.rpartition("::")[2].strip('"'))
            if (found := find_word(piece.text, word)) is not None
        ),
        0,
    )
    return _at(file, text, piece.start + offset, rule, message, hint, name)


def _syntax_error(file: str, text: str, piece: Piece, error: str) -> Finding:
    message = " ".join(error.split())
    if "unexpected" in message or "invalid token" in message:
        offset = first_bad_token(piece.text, _fails_before_end)
    else:
        offset = next((o for w in _QUOTED.findall(message) if (o := find_word(piece.text, w)) is not None), 0)
    hint = "a policy ends with `;`, each condition is `when { … }`; look at what stands before this place"
    return _at(file, text, piece.start + offset, "syntax", f"is not Cedar: {message}"[:500], hint)


def _fails_before_end(text: str) -> bool:
    try:
        cedarpy.policies_to_json_str(text)
    except ValueError as error:
        return "unexpected end of input" not in str(error)
    return False


def _duplicates(files: Mapping[str, str], read: list[_Read]) -> Iterator[Finding]:
    seen: dict[str, _Read] = {}
    for each in read:
        first = seen.setdefault(each.policy.id, each)
        if first is not each:
            line, _ = line_and_column(files[first.file], first.piece.start)
            message = f'@id("{each.policy.id}") is already used at {first.file}:{line}'
            yield _at(each.file, files[each.file], each.piece.start, "duplicate-id", message, "choose another id")


def _shadowed(files: Mapping[str, str], read: list[_Read]) -> Iterator[Finding]:
    permits = [each for each in read if each.policy.effect == "permit"]
    forbids = [each for each in read if each.policy.effect == "forbid"]
    if len(permits) * len(forbids) > _MAX_SHADOW_PAIRS:
        return
    for permit in permits:
        forbid = next((each for each in forbids if shadows(each.parsed, permit.parsed)), None)
        if forbid is not None:
            message = f"never permits anything: {forbid.policy.id} ({forbid.file}) forbids all of it"
            hint = "narrow the forbid, or take the permit out"
            text = files[permit.file]
            yield _at(permit.file, text, permit.piece.start, "shadowed", message, hint, permit.policy.id, warning=True)


def _remark(file: str, text: str, piece: Piece, name: str, remark: Remark) -> Finding:
    offset = 0 if remark.word is None else find_word(piece.text, remark.word) or 0
    warning = remark.severity == "warning"
    return _at(file, text, piece.start + offset, remark.rule, remark.message, remark.hint, name, warning=warning)


def _refusal(error: BundleRefused, text: str, hint: str) -> Finding:
    place = _PLACE.search(error.detail)
    line, column = (int(place[1]), int(place[2] or 1)) if place else (1, 1) if text else (0, 0)
    return Finding(error.file, line, column, "error", "bundle", error.detail, hint)


def _at(  # noqa: PLR0913, PLR0917 - a place and its words
    file: str, text: str, offset: int, rule: str, message: str, hint: str, policy: str = "", *, warning: bool = False
) -> Finding:
    line, column = line_and_column(text, offset)
    words = f"policy {policy}: {message}" if policy and policy not in message else message
    return Finding(file, line, column, "warning" if warning else "error", rule, words, hint, policy)
