"""What a running migration stands on is the same just decided and read from the log."""

from __future__ import annotations

import copy
import dataclasses
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.break_glass.glass import _by_two_persons
from gateway.break_glass.grant import Grant
from gateway.standing import standing_of
from policy.engine import Decision
from policy.facts import Person
from policy.many_groups import MANY, compact_entities
from tests.gateway.conftest import Running

PERSON = Person("https://idp#u1", "https://idp", "Una", frozenset({"https://idp#g"}), "oidc")
ALLOWED = Decision(True, (), (), "", "", {}, [], by_policy=True)


@pytest.mark.whole
async def test_memory_and_log_know_the_same_of_a_migration(running: Running) -> None:
    migration_id, _ = await running.begin()
    (record,) = await running.records("migration.decision")
    live = running.gateway.reloader._gate.migrations.get(migration_id, 0)
    assert live is not None
    assert live.standing is not None
    assert live.standing == standing_of(record)
    assert live.standing.person.groups == frozenset({"sealane-local#operators"})
    assert live.standing.obligations == ("cancel",)


def record_of(groups: int = 1, **attributes: Any) -> dict[str, Any]:
    parents = [{"type": "Sealane::Group", "id": f"https://idp#g{n:04}"} for n in range(groups)]
    entity = {
        "uid": {"type": "Sealane::Person", "id": PERSON.id},
        "attrs": {"groups_known": True, **attributes},
        "parents": parents,
    }
    return {
        "actor": {
            "id": PERSON.id, "name": "Una", "issuer": "https://idp", "authenticated_by": "oidc", "groups": ["https://idp#g"],
        },
        "details": {
            "action": "MigrateVm",
            "permit": {"jti": "x"},
            "account": "una@corp",
            "policy_request": {
                "context": {
                    "ports": ["memory"],
                    "reason_given": True,
                    "time": {"__extn": {"fn": "datetime", "arg": "2026-11-25T03:00:00.123Z"}},
                }
            },
            "policy_entities": compact_entities([entity]),
            "decision": {"policies": [{"id": "p", "effect": "permit", "reason": "P.", "on_revocation": "finish"}]},
        },
    }  # fmt: skip


def test_all_groups_of_somebody_in_very_many_are_known_again_and_the_program_that_acted() -> None:
    standing = standing_of(record_of(MANY + 5, actor="https://idp#robot"))
    assert standing is not None
    assert len(standing.person.groups or ()) == MANY + 5
    assert (standing.person.actor, standing.person.account) == ("https://idp#robot", "una@corp")
    assert standing.time == datetime(2026, 11, 25, 3, 0, 0, 123000, UTC)
    assert standing.obligations == ("finish",)


@pytest.mark.parametrize("missing", ["permit", "policy_request", "policy_entities", "action"])
def test_a_record_that_does_not_tell_enough_gives_nothing_to_stand_on(missing: str) -> None:
    record = copy.deepcopy(record_of())
    del record["details"][missing]
    assert standing_of(record) is None


@pytest.mark.parametrize(
    "approver",
    [
        dataclasses.replace(PERSON, actor="https://idp#robot"),
        dataclasses.replace(PERSON, is_program=True),
        Person("spiffe://corp/service/robot", "spiffe://corp", "Robot", frozenset(), "client-certificate"),
        Person("spiffe://corp/host/a#nobody", "spiffe://corp/host/a", "nobody", frozenset(), "nobody"),
    ],
)
def test_a_program_is_nobodys_second_person(approver: Person) -> None:
    requester = Person("x#dora", "x", "Dora", frozenset(), "oidc")
    grant = Grant(
        "1", "u", "vm", "a", "b", requester, frozenset({"id:x#dora"}), "T", "R", 1, ("memory",), 0, 10, 0
    )  # fmt: skip
    assert _by_two_persons(ALLOWED, grant, PERSON, frozenset({"id:y"})).allowed
    refused = _by_two_persons(ALLOWED, grant, approver, frozenset({"id:y"}))
    assert not refused.allowed
    assert "not a program" in refused.denied_because
