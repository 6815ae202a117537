"""Conditions of a policy in Cedar's JSON: their conjuncts, and which of them cannot be anything but true, or false.

Found are the slips that people make: two different values asked of one attribute, `!=` joined by `||`, a side compared
with itself, literals. What only arithmetic or the schema would tell is not found.
Format: https://docs.cedarpolicy.com/policies/json-format.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

Expr = Mapping[str, Any]
_SAME: Final = {"==": True, "!=": False, "<=": True, ">=": True, "<": False, ">": False}


def always(policy: Mapping[str, Any]) -> bool | None:
    """Do its conditions hold for every request (True), for none (False), or does it depend (None, also if none)?"""
    conditions = policy.get("conditions", ())
    return _all(list(conjuncts_of(policy))) if conditions else None


def conjuncts_of(policy: Mapping[str, Any]) -> Iterator[Expr]:
    """What must hold besides the scope, `unless` as its negation, `&&` taken apart."""
    for condition in policy.get("conditions", ()):
        if condition["kind"] == "when":
            yield from parts(condition["body"], "&&")
        else:
            yield from (_negated(part) for part in parts(condition["body"], "||"))


def parts(expr: Expr, operator: str) -> list[Expr]:
    """The operands of a chain of one operator, from left to right. Without recursion: chains are long."""
    found: list[Expr] = []
    rest = [expr]
    while rest:
        each = rest.pop()
        if operator in each:
            rest += [each[operator]["right"], each[operator]["left"]]
        else:
            found.append(each)
    return found


def constant(expr: Expr) -> bool | None:
    """True or False if it is that whatever the request; None if it depends, or we cannot tell."""
    match expr:
        case {"Value": bool(value)}:
            return value
        case {"!": {"arg": inner}}:
            return _not(constant(inner))
        case {"&&": _}:
            return _all(parts(expr, "&&"))
        case {"||": _}:
            return _not(_all([_negated(part) for part in parts(expr, "||")]))
        case {"if-then-else": {"if": test, "then": then, "else": other}}:
            decided = constant(test)
            if decided is None:
                one, two = constant(then), constant(other)
                return one if one == two else None
            return constant(then if decided else other)
        case {"contains": {"left": {"Set": []}}}:
            return False
    return _comparison(expr)


def _not(value: bool | None) -> bool | None:
    return None if value is None else not value


def _comparison(expr: Expr) -> bool | None:
    operator = next(iter(expr))
    if operator not in _SAME:
        return None
    left, right = expr[operator]["left"], expr[operator]["right"]
    if left == right:
        return _SAME[operator]
    if operator in {"==", "!="} and _literal(left) and _literal(right):
        return operator == "!="
    return None


def _all(conjuncts: list[Expr]) -> bool | None:
    values = [constant(each) for each in conjuncts]
    if False in values or any(_excludes(one, two) for n, one in enumerate(conjuncts) for two in conjuncts[:n]):
        return False
    return True if all(values) else None


def _excludes(one: Expr, two: Expr) -> bool:
    """Can the two not hold together: X and not X, or one thing equal to two literals?"""
    if _negated(one) == two or _negated(two) == one:
        return True
    match one, two:
        case {"==": {"left": a, "right": x}}, {"==": {"left": b, "right": y}}:
            return bool(a == b and x != y and _literal(x) and _literal(y))
    return False


def _negated(expr: Expr) -> Expr:
    match expr:
        case {"!": {"arg": inner}}:
            return dict(inner)
        case {"!=": sides}:
            return {"==": sides}
        case {"==": sides}:
            return {"!=": sides}
    return {"!": {"arg": expr}}


def _literal(expr: Expr) -> bool:
    return "Value" in expr
