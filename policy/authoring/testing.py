"""A bundle's own cases, all of them, and what they show: each policy satisfied, each condition true and false."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from xml.etree import ElementTree as Xml

import msgspec

from policy.authoring.explain import explain
from policy.authoring.pieces import Pieces, TakenApart
from policy.bundle_files import POLICIES, SCHEMA, TESTS, files_below
from policy.cases import mismatch, read_cases
from policy.decision import evaluate
from policy.request import entities_of, request_of
from policy.rules import compile_rules

_SHOWN_FACTS: Final = 12


class CaseResult(msgspec.Struct, frozen=True):
    """`failure`: "" if it passed. `why`: lines of an explanation of a case that failed."""

    file: str
    line: int
    name: str
    failure: str
    why: tuple[str, ...] = ()


class Gap(msgspec.Struct, frozen=True):
    """What no case shows. `never`: "satisfied" of a policy; "true" or "false" of a condition, given as Cedar text."""

    policy: str
    file: str
    condition: str
    never: str

    def text(self) -> str:
        return f"{self.file}: {self.policy}: never {self.never}" + (f": {self.condition}" if self.condition else "")


class Report(msgspec.Struct, frozen=True):
    """`covered` of `coverable`: policies satisfied, and outcomes of conditions, that the cases show."""

    cases: tuple[CaseResult, ...]
    gaps: tuple[Gap, ...]
    covered: int
    coverable: int

    @property
    def failed(self) -> int:
        return sum(bool(case.failure) for case in self.cases)

    def junit(self) -> str:
        """As CI systems read it."""
        suite = Xml.Element(
            "testsuite", name="sealane policy test", tests=str(len(self.cases)), failures=str(self.failed)
        )
        for case in self.cases:
            node = Xml.SubElement(suite, "testcase", classname=case.file, name=case.name, line=str(case.line))
            if case.failure:
                Xml.SubElement(node, "failure", message=case.failure).text = "\n".join(case.why)
        return Xml.tostring(suite, encoding="unicode", xml_declaration=True)


def run_tests(files: Mapping[str, str]) -> Report:
    """Run every case, also behind one that fails. Raises BundleRefused for a bundle or cases that cannot be read."""
    rules = compile_rules(SCHEMA, files[SCHEMA], files_below(POLICIES, files))
    posed = read_cases(files_below(TESTS, files))
    pieces = Pieces(rules, files)
    seen: set[tuple[int, int, str]] = set()
    results = []
    for each in posed:
        decision = evaluate(rules, "", request_of(each.question), entities_of(each.question))
        failure = mismatch(each.case, decision)
        why = tuple(explain(pieces, decision).lines())[:_SHOWN_FACTS] if failure else ()
        results.append(CaseResult(each.file, each.line, each.case.name, failure, why))
        _notice(pieces, pieces.answers(decision), seen)
    gaps = [gap for number, taken in enumerate(pieces.policies) for gap in _gaps(number, taken, seen)]
    coverable = sum(1 + 2 * sum(part.clause >= 0 for part in taken.parts) for taken in pieces.policies)
    return Report(tuple(results), tuple(gaps), coverable - len(gaps), coverable)


def _notice(pieces: Pieces, answers: object, seen: set[tuple[int, int, str]]) -> None:
    """Remember what was evaluated: a condition counts only where Cedar came to it, not behind one that failed."""
    if not isinstance(answers, list):
        return
    for number, (taken, answer) in enumerate(zip(pieces.policies, answers, strict=True)):
        if answer.whole == "true":
            seen.add((number, -1, "satisfied"))
        for index, (part, truth) in enumerate(zip(taken.parts, answer.parts, strict=True)):
            if part.clause >= 0:
                seen.add((number, index, truth))
            if truth != part.wanted:
                break


def _gaps(number: int, taken: TakenApart, seen: set[tuple[int, int, str]]) -> list[Gap]:
    policy = taken.policy
    found = [] if (number, -1, "satisfied") in seen else [Gap(policy.id, policy.file, "", "satisfied")]
    for index, part in enumerate(taken.parts):
        if part.clause >= 0:
            missing = [truth for truth in ("true", "false") if (number, index, truth) not in seen]
            found += [Gap(policy.id, policy.file, f"{part.kind} {part.text()}", truth) for truth in missing]
    return found
