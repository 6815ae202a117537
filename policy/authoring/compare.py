"""Two bundles asked the same: which requests they decide differently, and by which policies.

The requests are those of the past, from records of decisions, and a grid: every person of the bundles' cases, every VM
of them, between every two of their hosts, by every way of moving, with a reason and without, by day and by night. The
grid is bounded: of a larger one an even sample is taken, the same each time, and said.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from policy.bundle_files import POLICIES, SCHEMA, TESTS
from policy.cases import read_facts
from policy.decision import Decision, evaluate
from policy.facts import GATEWAY_ACTIONS, VM_ACTIONS, Context, Person, Provenance, Question
from policy.many_groups import expand_entities
from policy.request import Json, entities_of, request_of
from policy.rules import Rules, compile_rules

MAX_GRID: Final = 5_000
MAX_SHOWN: Final = 500
NO_POLICY: Final = "no policy"
_TIMES: Final = (datetime(2026, 1, 7, 12, tzinfo=UTC), datetime(2026, 1, 11, 2, tzinfo=UTC))  # Wednesday, Sunday night
_TOLD: Final = Provenance("report", 0)


class Side(msgspec.Struct, frozen=True):
    """What one bundle says: `policies` determined it; `because` if it is no."""

    allowed: bool
    policies: tuple[str, ...]
    because: str


class Difference(msgspec.Struct, frozen=True):
    """`where`: "record 17" or "grid"; `what`: the request in words."""

    where: str
    what: str
    before: Side
    after: Side

    def text(self) -> str:
        one, two = (f"{'allow' if side.allowed else 'deny'} by {_named(side.policies)}"
                    for side in (self.before, self.after))  # fmt: skip
        return f"{self.where}: {self.what}: {one} → {two}"


class Shift(msgspec.Struct, frozen=True):
    """The same answer of `requests` requests, by other policies than before; `example` is the first of them."""

    allowed: bool
    before: tuple[str, ...]
    after: tuple[str, ...]
    requests: int
    example: str

    def text(self) -> str:
        answer = "allow" if self.allowed else "deny"
        who = f"by {_named(self.after)} instead of {_named(self.before)}"
        count = "1 request" if self.requests == 1 else f"{self.requests} requests, the first"
        return f"still {answer}, {who}: {count}: {self.example}"


ShiftKey = tuple[bool, tuple[str, ...], tuple[str, ...]]


class Weight(msgspec.Struct, frozen=True):
    """How many requests that are decided differently a policy determines, under each of the bundles."""

    policy: str
    before: int
    after: int


class Comparison(msgspec.Struct, frozen=True):
    """`compared` requests, `differing` of them in the answer, `shifted` in the policies that determine it only.

    At most MAX_SHOWN are in `differences` and in `shifts`; `weights`: by which policies, the heaviest first; `notes`:
    what was left out.
    """

    compared: int
    differing: int
    shifted: int
    differences: tuple[Difference, ...]
    shifts: tuple[Shift, ...]
    weights: tuple[Weight, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request to put to both. `recorded`: what was decided then, if it is of the past."""

    where: str
    request: Json
    entities: list[Json]
    recorded: Side | None = None


def rules_of(files: Mapping[str, str]) -> Rules:
    """The rules of a bundle, its tests not run. Raises BundleRefused."""
    return compile_rules(SCHEMA, files[SCHEMA], {p: t for p, t in files.items() if p.startswith(f"{POLICIES}/")})


def compare(before: Rules | None, after: Rules, asked: Iterable[Asked], notes: Iterable[str] = ()) -> Comparison:
    """Decide all of it under both; `before` None takes what was recorded."""
    compared = differing = shifted = 0
    shown: list[Difference] = []
    weights: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    shifts: dict[ShiftKey, Shift] = {}
    for each in asked:
        compared += 1
        two = _side(decide_under(after, each))
        one = _side(decide_under(before, each)) if before is not None else each.recorded or two
        if one.allowed != two.allowed:
            differing += 1
            for weight, side in zip(weights, (one, two), strict=True):
                weight.update(side.policies or (NO_POLICY,))
            if len(shown) < MAX_SHOWN:
                shown.append(Difference(each.where, in_words(each.request, each.entities), one, two))
        elif set(one.policies) != set(two.policies):
            shifted += 1
            _add(shifts, one, two, each)
    by_policy = [Weight(name, *(weight[name] for weight in weights)) for name in set().union(*weights)]
    by_policy.sort(key=lambda weight: (-weight.before - weight.after, weight.policy))
    ordered = sorted(shifts.values(), key=lambda shift: -shift.requests)
    return Comparison(compared, differing, shifted, tuple(shown), tuple(ordered), tuple(by_policy), tuple(notes))


def _add(shifts: dict[ShiftKey, Shift], one: Side, two: Side, each: Asked) -> None:
    key = (one.allowed, tuple(sorted(one.policies)), tuple(sorted(two.policies)))
    if (known := shifts.get(key)) is not None:
        shifts[key] = msgspec.structs.replace(known, requests=known.requests + 1)
    elif len(shifts) < MAX_SHOWN:
        shifts[key] = Shift(*key, 1, f"{each.where}: {in_words(each.request, each.entities)}")


def _named(policies: tuple[str, ...]) -> str:
    return ", ".join(policies) or NO_POLICY


def grid(*bundles: Mapping[str, str]) -> tuple[list[Asked], list[str]]:
    """The grid over the facts of all bundles' cases, and what to say of its bounds. Raises BundleRefused."""
    facts = [
        read_facts({path: text for path, text in files.items() if path.startswith(f"{TESTS}/")}) for files in bundles
    ]
    people, vms, hosts = (
        list(dict.fromkeys(value for each in facts for value in getattr(each, kind).values()))
        for kind in ("people", "vms", "hosts")
    )
    pairs = list(itertools.permutations(hosts, 2))
    kinds = list(itertools.product(VM_ACTIONS, _TIMES, (True, False)))
    axes = (people, vms, pairs, kinds)
    total = math.prod(len(axis) for axis in axes)
    asked = [_asked(_around(person, action)) for person in axes[0] for action in GATEWAY_ACTIONS]
    asked += [_asked(_move(axes, place)) for place in _places(total)]
    notes = []
    if total == 0:
        notes.append("no moves are in the grid: the bundles' tests/ must name people, VMs and at least two hosts")
    if total > MAX_GRID:
        notes.append(f"the grid has {total} moves, of which an even sample of {MAX_GRID} was asked")
    return asked, notes


def _places(total: int) -> Iterable[int]:
    """All places of the grid, or an even sample: a stride that shares no factor with the total visits none twice."""
    if total <= MAX_GRID:
        return range(total)
    stride = next(each for each in itertools.count(int(total * 0.618)) if math.gcd(each, total) == 1)
    return (number * stride % total for number in range(MAX_GRID))


def _move(axes: tuple[list[Any], ...], place: int) -> Question:
    chosen = []
    for axis in axes:
        place, index = divmod(place, len(axis))
        chosen.append(axis[index])
    person, vm, (source, destination), (action, time, reason) = chosen
    return Question(action, person, vm, source, destination, Context(time, reason_given=reason, placement=_TOLD))


def _around(person: Person, action: str) -> Question:
    return Question(action, person, None, None, None, Context(_TIMES[0], reason_given=True, placement=_TOLD))


def _asked(question: Question) -> Asked:
    return Asked("grid", request_of(question), entities_of(question))


def _side(decision: Decision) -> Side:
    because = decision.denied_because
    return Side(decision.allowed, tuple(reason.id for reason in decision.reasons), because)


def decide_under(rules: Rules, asked: Asked) -> Decision:
    """The code path of a live decision, under rules whose bundle need not pass its tests."""
    try:
        entities = expand_entities(asked.entities)
    except ValueError:
        entities = asked.entities  # refused by `evaluate` in its own words
    return evaluate(rules, "", asked.request, entities)


def in_words(request: Json, entities: list[Json]) -> str:
    """Who, what, where from and to, with the names of the facts. For people: never parsed again."""
    try:
        return _in_words(request, entities)
    except (KeyError, TypeError, AttributeError):  # out of a record that is damaged, or made up
        return "a request that cannot be read"


def _in_words(request: Json, entities: list[Json]) -> str:
    names: dict[str, Any] = {entity["uid"]["id"]: entity["attrs"].get("name") for entity in entities}

    def name(uid: Mapping[str, Any]) -> str:
        return f"{names.get(uid['id']) or uid['id']!s}"[:100]

    context = request["context"]
    words = f"{name(request['principal'])} {request['action']['id']}"
    if "source" in context and "destination" in context:
        words += f" {name(request['resource'])}"
        words += f" from {name(context['source']['__entity'])} to {name(context['destination']['__entity'])}"
    if not context.get("reason_given", True):
        words += " without a reason"
    return f"{words} at {context['time']['__extn']['arg']}" if "time" in context else words
