from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta, timezone

import msgspec
import pytest

from policy.facts import ACTIONS, GATEWAY_ACTIONS, Context
from policy.request import UNKNOWN, entities_of, references, request_of
from tests.policy.cedar_world import LAB1, LAB2, NOW, OLGA, SANDBOX, move


def floats(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(floats, value.values()))
    if isinstance(value, list):
        return any(map(floats, value))
    return isinstance(value, float)


@pytest.mark.parametrize("action", ACTIONS)
def test_request_and_entities_are_canonical_json_without_floats(action: str) -> None:
    question = move(action=action)
    for part in (request_of(question), entities_of(question)):
        assert not floats(part)
        assert msgspec.json.decode(msgspec.json.encode(part, order="sorted")) == part == json.loads(json.dumps(part))


def test_the_slice_holds_everything_the_request_refers_to() -> None:
    question = move()
    known = {(entity["uid"]["type"], entity["uid"]["id"]) for entity in entities_of(question)}
    wanted = {where: (kind, name) for where, kind, name in references(request_of(question))}
    assert set(wanted) == {"principal", "action", "resource", "context.source", "context.destination"}
    assert known == {target for where, target in wanted.items() if where != "action"}


def test_a_host_that_is_source_and_destination_stands_once_in_the_slice() -> None:
    uids = [entity["uid"]["id"] for entity in entities_of(move(destination=LAB1))]
    assert uids == [OLGA.id, SANDBOX.uuid, LAB1.spiffe_id]


def test_what_the_inventory_does_not_know_is_asked_about_but_not_in_the_slice() -> None:
    question = move(vm=None, source=None)
    assert request_of(question)["resource"] == {"type": "Sealane::Vm", "id": UNKNOWN}
    assert request_of(question)["context"]["source"]["__entity"]["id"] == UNKNOWN
    assert [entity["uid"]["id"] for entity in entities_of(question)] == [OLGA.id, LAB2.spiffe_id]


@pytest.mark.parametrize("action", GATEWAY_ACTIONS)
def test_an_action_that_is_about_no_vm_is_about_the_gateway(action: str) -> None:
    question = move(vm=None, source=None, destination=None, action=action)
    assert request_of(question)["resource"] == {"type": "Sealane::Gateway", "id": "gateway"}
    assert ("own_migration" in request_of(question)["context"]) == (action == "CancelMigration")


def test_unknown_groups_are_marked_and_differ_from_none_at_all() -> None:
    unknown = entities_of(move(person=dataclasses.replace(OLGA, groups=None)))[0]
    none = entities_of(move(person=dataclasses.replace(OLGA, groups=frozenset())))[0]
    assert unknown["parents"] == none["parents"] == []
    assert unknown["attrs"]["groups_known"] is False
    assert none["attrs"]["groups_known"] is True


def test_time_is_utc_with_milliseconds() -> None:
    zurich = timezone(timedelta(hours=1))
    asked = move(context=Context(time=datetime(2026, 11, 22, 22, 42, 21, 123999, tzinfo=zurich)))
    assert request_of(asked)["context"]["time"]["__extn"] == {"fn": "datetime", "arg": "2026-11-22T21:42:21.123Z"}
    assert request_of(move())["context"]["time"] == request_of(asked)["context"]["time"]
    assert NOW.microsecond == 123456
