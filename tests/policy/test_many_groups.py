"""Groups of people who are in very many: written once where they agree, and given back letter by letter."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.engine import decide, replay
from policy.many_groups import (
    MANY,
    compact_entities,
    compact_ids,
    digest_of_ids,
    expand_entities,
    expand_ids,
)
from tests.policy.cedar_world import OLGA, bundle, move

DOMAIN = "S-1-5-21-1004336348-1177238915-682003330"
SIDS = st.builds("S-1-5-21-{}-{}".format, st.integers(0, 9), st.integers(0, 2**32)) | st.just("S-1-5-32-0545")
NAMES = st.builds("https://idp.test#{}".format, st.text(min_size=1))
OPERATORS = '@id("operators") @reason("Operators.") permit (principal in Sealane::Group::"%s", action, resource);'


@given(st.sets(SIDS | NAMES | st.text(min_size=1, max_size=20)))
def test_every_set_of_ids_comes_back(ids: set[str]) -> None:
    assert expand_ids(msgspec.json.decode(msgspec.json.encode(compact_ids(ids)))) == sorted(ids)


def test_two_thousand_groups_of_a_domain_take_little_of_a_record() -> None:
    compact = compact_ids(f"{DOMAIN}-{number}" for number in range(1000, 3000))
    assert list(compact) == [f"{DOMAIN}-"]
    assert len(msgspec.json.encode(compact)) < 12_000


def test_a_decision_on_many_groups_is_reached_again_from_what_a_record_holds() -> None:
    named = f"{DOMAIN}-{1000 + MANY}"
    person = dataclasses.replace(OLGA, groups=frozenset(f"{DOMAIN}-{number}" for number in range(1000, 2200)))
    made = bundle(OPERATORS % named)
    decision = decide(made, move(person=person))
    assert decision.allowed
    recorded = compact_entities(decision.entities)
    assert len(msgspec.json.encode(recorded)) < 20_000
    assert expand_entities(recorded) == decision.entities
    assert replay(made, decision.request, recorded) == decision
    assert not replay(bundle(OPERATORS % f"{DOMAIN}-7"), decision.request, recorded).allowed
    assert replay(bundle(OPERATORS % f"{DOMAIN}-1001"), decision.request, recorded).allowed


def test_a_few_groups_are_written_out() -> None:
    decision = decide(bundle(OPERATORS % "a#b"), move())
    assert compact_entities(decision.entities) == decision.entities


@pytest.mark.parametrize("groups", [7, {"S-1-5-": 7}, {"S-1-5-": [1.5]}, {"S-1-5-": [True]}, {"S-1-5-": [None]}])
def test_groups_in_another_form_are_denied(groups: object) -> None:
    decision = decide(bundle(OPERATORS % "sealane-local#operators"), move())
    person, *others = decision.entities
    forged = [{"uid": person["uid"], "attrs": person["attrs"], "groups": groups}, *others]
    denied = replay(bundle(OPERATORS % "sealane-local#operators"), decision.request, forged)
    assert not denied.allowed
    assert denied.errors


def test_the_digest_tells_other_groups_apart() -> None:
    assert digest_of_ids(["a#b", "a#c"]) == digest_of_ids(["a#c", "a#b"]) != digest_of_ids(["a#bc"])


def test_a_bundle_knows_which_groups_it_names() -> None:
    deep = '@id("d") @reason("D.") permit (principal, action, resource) when { '
    deep += 'if principal in [Sealane::Group::"x#deep"] then true else false };'
    assert bundle(OPERATORS % "a#b", deep).named_groups == {"a#b", "x#deep"}
