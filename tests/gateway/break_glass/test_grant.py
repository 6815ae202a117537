"""The state of a breaking of glass as a function of its records: every state against every record."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.break_glass.grant import ENDINGS, Grant, State, apply, derive, problem_of

REQUEST: dict[str, Any] = {
    "kind": "breakglass.requested",
    "outcome": "allowed",
    "actor": {"id": "i#dora", "name": "Dora", "issuer": "i", "authenticated_by": "oidc", "groups": ["i#g"]},
    "vm": {"uuid": "u", "name": "ledger"},
    "source": "spiffe://x/host/a",
    "destination": "spiffe://x/host/b",
    "reason": "fire",
    "details": {
        "break_glass": {
            "id": "g1", "at": 1000, "ticket": "T", "minutes": 1, "answer_until": 1100, "marks": ["id:i#dora"],
            "ports": ["memory"],
        }
    },
}  # fmt: skip


def step(kind: str, outcome: str, **said: Any) -> dict[str, Any]:
    return {
        "kind": f"breakglass.{kind}",
        "outcome": outcome,
        "actor": {"id": "i#mona"},
        "details": {"break_glass": {"id": "g1", **said}},
    }


APPROVED, ENDED = step("approved", "allowed", until=1160), step("ended", "completed", because="ended")
RECORDS = [
    APPROVED,
    ENDED,
    step("approved", "denied", until=9999),
    step("approved", "failed", until=9999),
    step("ended", "denied", because="ended"),
    step("used", "allowed"),
    step("used", "denied"),
]


def grant(state: State) -> Grant:
    (made,) = derive([(7, REQUEST)]).values()
    match state:
        case State.APPROVED:
            return apply(made, APPROVED)
        case State.ENDED:
            return apply(made, ENDED)
        case _:
            return made


@pytest.mark.parametrize("state", list(State))
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: f"{record['kind']}-{record['outcome']}")
def test_every_record_in_every_state(state: State, record: dict[str, Any]) -> None:
    table = {(State.PENDING, "breakglass.approved", "allowed"): State.APPROVED}
    table |= {(each, "breakglass.ended", "completed"): State.ENDED for each in State}
    before = grant(state)
    after = apply(before, record)
    assert after.state is table.get((state, record["kind"], record["outcome"]), state)
    if after.state is state:
        assert after == before


def test_what_a_request_says_is_what_is_granted() -> None:
    made = grant(State.PENDING)
    assert (made.id, made.vm_uuid, made.destination, made.minutes) == ("g1", "u", "spiffe://x/host/b", 1)
    assert made.marks == {"id:i#dora"}
    assert made.requester.groups == frozenset({"i#g"})
    assert made.record_index == 7
    assert derive([(7, {**REQUEST, "outcome": "denied"}), (8, APPROVED)]) == {}


@given(st.lists(st.sampled_from(RECORDS), max_size=8), st.integers(900, 1300))
def test_no_row_of_records_gives_more_than_one_approval_gave(records: list[dict[str, Any]], now: int) -> None:
    (made,) = derive([(7, REQUEST), *enumerate(records, 8)]).values()
    usable = problem_of(made, now) is None
    ended = [n for n, each in enumerate(records) if each is ENDED]
    approved = [n for n, each in enumerate(records) if each is APPROVED]
    assert usable == (bool(approved) and not ended and now < 1160)


@pytest.mark.parametrize(
    ("state", "now", "words"),
    [
        (State.PENDING, 1000, "nobody has approved it yet"),
        (State.PENDING, 1100, "nobody approved it in time"),
        (State.APPROVED, 1159, None),
        (State.APPROVED, 1160, "its time is up"),
        (State.ENDED, 1000, "it was ended"),
    ],
)
def test_when_something_may_be_moved_under_it(state: State, now: int, words: str | None) -> None:
    assert problem_of(grant(state), now) == words


def test_its_document_says_nothing_of_how_people_are_recognised() -> None:
    shown = grant(State.APPROVED).document()
    assert "marks" not in shown
    assert set(ENDINGS) >= {"unanswered", "expired", "used", "ended", "refused", "withdrawn"}
    assert dataclasses.asdict(grant(State.APPROVED))["approved_by"] == "i#mona"
