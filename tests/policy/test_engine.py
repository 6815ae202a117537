from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.bundle import Bundle
from policy.engine import Decision, Engine, PolicyReason, decide, replay
from policy.errors import FactRefused
from policy.facts import ACTIONS, SEALED, SEALED_ACTIONS, HostFacts, Protection, Provenance, VmFacts, nobody
from policy.request import facts_of
from tests.policy.cedar_world import ALLOW_ALL, BANK, CIRCUMSTANCES, LAB1, LAB2, OLGA, PAVEL, SANDBOX, bundle, move

BERN = HostFacts("spiffe://bank.test/host/bern", "bern", "brn", "production", "CH", "10.0.0.9:7443")
# A forbid that fails on every VM without the tag it looks for: Cedar skips it and would allow.
FAILING = (
    '@id("overflow") @reason("Never.") forbid (principal, action == Sealane::Action::"MigrateVm", resource)'
    " when { 9223372036854775807 + context.source.port > 0 };"
)


def test_what_a_policy_permits_is_allowed_and_says_which() -> None:
    decision = decide(bundle(ALLOW_ALL), move())
    assert decision.allowed
    assert decision.reasons == (PolicyReason("all", "permit", "All."),)
    assert decision.errors == ()
    assert decision.denied_because == ""


def test_without_a_policy_everything_is_denied_and_says_who_must_act() -> None:
    for action in ACTIONS:
        decision = decide(bundle(), move(action=action))
        assert not decision.allowed
        assert (decision.reasons, decision.errors) == ((), ())
        assert decision.denied_because == (
            f"No policy permits {action} to anyone: the policy author must add one if it should be possible."
        )


def test_a_default_denial_names_what_could_have_permitted_it() -> None:
    decision = decide(Bundle.load(BANK), move(person=dataclasses.replace(OLGA, groups=frozenset())))
    assert not decision.allowed
    assert decision.reasons == ()
    assert "No policy permits MigrateVm of VM sandbox (zone test, classification internal)" in decision.denied_because
    assert "Olga (sealane-local#olga)" in decision.denied_because
    assert "(operators-move)" in decision.denied_because
    assert "(duty-officers-break-glass)" not in decision.denied_because
    assert "\n" not in decision.denied_because


def test_a_default_denial_lists_some_of_many_permits_and_counts_the_rest() -> None:
    permits = [
        f'@id("p{n}") @reason("Reason {n}") permit (principal == Sealane::Person::"x#{n}", action in'
        ' Sealane::Action::"AnyMove", resource);'
        for n in range(8)
    ]
    because = decide(bundle(*permits), move()).denied_because
    assert because.count("Reason") == 5
    assert "And 3 more." in because


def test_a_forbid_overrides_a_permit_and_gives_its_reason() -> None:
    forbid = '@id("freeze") @reason("Moves are frozen until Monday") forbid (principal, action, resource);'
    decision = decide(bundle(ALLOW_ALL, forbid), move())
    assert not decision.allowed
    assert [reason.id for reason in decision.reasons] == ["freeze"]
    assert decision.denied_because == "Forbidden: Moves are frozen until Monday. (freeze)"


def test_a_policy_that_fails_denies_although_cedar_would_allow() -> None:
    decision = decide(bundle(ALLOW_ALL, FAILING), move())
    assert not decision.allowed
    assert [reason.id for reason in decision.reasons] == ["all"]
    assert len(decision.errors) == 1
    assert "`overflow`" in decision.errors[0]
    assert "policy author" in decision.denied_because


def test_of_a_vm_that_nobody_knows_the_host_is_no_second_thing_to_correct() -> None:
    said = decide(Bundle.load(BANK), move(vm=None, source=None)).denied_because
    assert said == "The inventory does not know this VM: correct its name, or let the operator add it."


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vm": None}, "does not know this VM"),
        ({"source": None}, "does not know the source host"),
        ({"destination": None}, "does not know the destination host"),
        ({"person": dataclasses.replace(OLGA, groups=None)}, "groups are not known"),
        ({"action": "DeleteVm"}, "knows no action 'DeleteVm'"),
        ({"action": "AnyMove"}, "knows no action"),
        ({"action": 'MigrateVm" in Sealane::Action::"AnyMove'}, "knows no action"),
    ],
)
def test_what_is_unknown_is_denied_under_a_policy_that_permits_everything(change: dict[str, Any], words: str) -> None:
    decision = decide(bundle(ALLOW_ALL), move(**change))
    assert not decision.allowed
    assert words in decision.denied_because
    assert replay(bundle(ALLOW_ALL), decision.request, decision.entities) == decision


def test_a_policy_can_refuse_those_who_are_nobody() -> None:
    decision = decide(Bundle.load(BANK), move(person=nobody(LAB1.spiffe_id)))
    assert [reason.id for reason in decision.reasons] == ["requester-is-a-person"]


def test_the_protection_that_will_be_negotiated_is_a_fact() -> None:
    weak = dataclasses.replace(CIRCUMSTANCES, protection=Protection(key_exchange="X25519"))
    engine = Engine(Bundle.load(BANK))
    assert engine.decide(move()).allowed
    assert [reason.id for reason in engine.decide(move(context=weak)).reasons] == ["protection-floor"]


def test_ip_ranges_times_ports_and_tags_can_be_asked_for() -> None:
    rule = (
        '@id("r") @reason("R.") permit (principal, action, resource) when {'
        ' context.destination.address.isInRange(ip("fd00::/16")) && context.source.address == ip("10.0.0.1") &&'
        ' context.time < datetime("2026-12-01") && context.ports == ["memory"] && resource.tags.contains("linux") };'
    )
    narrow = rule.replace("action,", 'action == Sealane::Action::"MigrateVm",')
    assert decide(bundle(narrow), move()).allowed
    assert not decide(bundle(narrow), move(destination=LAB1)).allowed


INJECTIONS = [
    'x"} permit(principal,action,resource); //',
    'Sealane::Group::"sealane-local#production-operators"',
    '{"__entity":{"type":"Sealane::Host","id":"x"}}',
    '{"__extn":{"fn":"ip","arg":"10.0.0.1"}}',
    '", "zone": "test',
    "\\u0022",
    "'; DROP TABLE--",
    "${jndi:ldap://x}",
    "?principal",
]


@pytest.mark.parametrize("name", INJECTIONS)
def test_cedar_in_a_name_is_only_a_name(name: str) -> None:
    narrow = (
        '@id("is") @reason("Is.") permit (principal, action == Sealane::Action::"MigrateVm", resource)'
        f" when {{ resource.name == {json.dumps(name)} }};"
    )
    vm = dataclasses.replace(SANDBOX, name=name)
    person = dataclasses.replace(
        OLGA, id=f"sealane-local#{name}", name=name, groups=frozenset({f"sealane-local#{name}"})
    )
    bank = Bundle.load(BANK)
    assert decide(bundle(narrow), move(vm=vm)).allowed
    assert not decide(bundle(narrow), move()).allowed
    denied = decide(bank, move(vm=vm, person=person))
    assert not denied.allowed
    assert (denied.reasons, denied.errors) == ((), ())


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
def test_no_name_and_no_group_name_opens_the_bank(name: str, group: str) -> None:
    try:
        person = dataclasses.replace(OLGA, name=name, groups=frozenset({f"https://evil.test#{group}"}))
        vm = dataclasses.replace(SANDBOX, name=name)
    except FactRefused:
        return
    decision = decide(THE_BANK, move(person=person, vm=vm))
    assert not decision.allowed
    assert decision.errors == ()


THE_BANK = Bundle.load(BANK)


def test_a_decision_is_reached_again_from_its_json_alone() -> None:
    for question in (move(), move(person=PAVEL), move(vm=None), move(action="ReadAudit")):
        decision = decide(THE_BANK, question)
        request, entities = json.loads(json.dumps([decision.request, decision.entities]))
        assert replay(THE_BANK, request, entities) == decision


def test_an_old_request_is_replayed_under_another_bundle() -> None:
    decision = decide(THE_BANK, move())
    assert decision.allowed
    again = replay(bundle(), decision.request, decision.entities)
    assert not again.allowed
    assert again.bundle_digest != decision.bundle_digest == THE_BANK.digest


def _vm(entities: list[dict[str, Any]]) -> dict[str, Any]:
    return next(entity for entity in entities if entity["uid"]["type"] == "Sealane::Vm")


def _nest(request: dict[str, Any]) -> None:
    for _ in range(100_000):
        request["context"] = {"x": request["context"]}


TAMPERING: dict[str, Callable[[dict[str, Any], list[dict[str, Any]]], object]] = {
    "no principal": lambda request, _: request.pop("principal"),
    "principal as text": lambda request, _: request.update(principal=f'Sealane::Person::"{OLGA.id}"'),
    "a host as principal": lambda request, _: request["principal"].update(type="Sealane::Host", id=LAB2.spiffe_id),
    "context as text": lambda request, _: request.update(context=json.dumps(request["context"])),
    "a member too many": lambda request, _: request.update(schema=""),
    "a fact too many": lambda request, _: request["context"].update(admin=True),
    "a fact too few": lambda request, _: request["context"].pop("protection"),
    "a float": lambda request, _: request["context"].update(ports=[1.5]),
    "nested deeply": lambda request, _: _nest(request),
    "VM missing": lambda _, entities: entities.remove(_vm(entities)),
    "VM twice": lambda _, entities: entities.append(json.loads(json.dumps(_vm(entities)).replace("test", "dmz"))),
    "VM without zone": lambda _, entities: _vm(entities)["attrs"].pop("zone"),
    "VM with an odd fact": lambda _, entities: _vm(entities)["attrs"].update(owner="x"),
    "zone as number": lambda _, entities: _vm(entities)["attrs"].update(zone=7),
    "surrogate": lambda _, entities: _vm(entities)["attrs"].update(name="\ud800"),
    "huge number": lambda _, entities: entities[-1]["attrs"].update(port=2**70),
    "groups known as text": lambda _, entities: entities[0]["attrs"].update(groups_known="yes"),
    "no entities": lambda _, entities: entities.clear(),
}


@pytest.mark.parametrize("tampering", TAMPERING)
def test_a_record_that_was_tampered_with_replays_to_a_denial(tampering: str) -> None:
    decision = decide(THE_BANK, move())
    request, entities = json.loads(json.dumps([decision.request, decision.entities]))
    assert replay(bundle(ALLOW_ALL), request, entities).allowed
    TAMPERING[tampering](request, entities)
    denied = replay(bundle(ALLOW_ALL), request, entities)
    assert not denied.allowed
    assert denied.denied_because


def test_swap_puts_the_other_bundle_in_force_and_returns_the_old_one() -> None:
    closed, opened = bundle(), bundle(ALLOW_ALL)
    engine = Engine(closed)
    assert not engine.decide(move()).allowed
    assert engine.swap(opened) is closed
    decision = engine.decide(move())
    assert decision.allowed
    assert decision.bundle_digest == opened.digest == engine.bundle.digest


def test_the_same_question_gets_the_same_decision() -> None:
    permits = [f'@id("p{n}") @reason("R.") permit (principal, action, resource);' for n in range(12)]
    decisions = [decide(bundle(*permits), move()) for _ in range(5)]
    assert all(decision == decisions[0] for decision in decisions)
    assert [reason.id for reason in decisions[0].reasons] == sorted(f"p{n}" for n in range(12))


def test_policy_ids_follow_the_policies_over_files_and_beyond_ten() -> None:
    policies = [
        f'@id("vm-{n}") @reason("R.") permit (principal, action, resource == Sealane::Vm::"{_uuid(n)}");'
        for n in range(25)
    ]
    made = bundle(*("\n".join(policies[start : start + 5]) + "// end" for start in range(0, 25, 5)))
    for n in range(25):
        decision: Decision = decide(made, move(vm=VmFacts(_uuid(n), "x", "test", "internal")))
        assert [reason.id for reason in decision.reasons] == [f"vm-{n}"]


def _uuid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def test_a_decision_tells_what_its_policies_oblige_to_and_whether_they_are_baseline() -> None:
    permit = '@id("p") @reason("P.") @on_revocation("finish") permit (principal, action, resource);'
    forbid = '@id("f") @reason("F.") @on_revocation("cancel") @baseline("true") forbid (principal, action, resource);'
    assert decide(bundle(permit), move()).reasons == (PolicyReason("p", "permit", "P.", "finish"),)
    assert decide(bundle(permit, forbid), move()).reasons == (PolicyReason("f", "forbid", "F.", "cancel", True),)


def test_what_policies_deny_is_told_from_what_could_not_be_decided() -> None:
    assert decide(bundle(), move()).by_policy
    assert decide(Bundle.load(BANK), move(person=PAVEL, destination=BERN)).by_policy
    unknown_groups = dataclasses.replace(OLGA, groups=None)
    for undecided in (
        decide(bundle(ALLOW_ALL), move(vm=None)),
        decide(bundle(ALLOW_ALL), move(person=unknown_groups)),
        decide(bundle(ALLOW_ALL, FAILING), move()),
        decide(bundle(ALLOW_ALL), move(action="Fly")),
    ):
        assert not undecided.allowed
        assert not undecided.by_policy


def test_sealed_people_may_break_glass_and_nothing_else_whatever_the_policies_permit() -> None:
    sealed = dataclasses.replace(OLGA, authenticated_by=SEALED)
    allowed = {action for action in ACTIONS if decide(bundle(ALLOW_ALL), move(person=sealed, action=action)).allowed}
    assert allowed == SEALED_ACTIONS


def test_an_approval_speaks_of_the_requester_as_they_were_known() -> None:
    other_team = (
        '@id("team") @reason("Of another team.") permit (principal, action == Sealane::Action::"ApproveBreakGlass",'
        ' resource) unless { context.requester in Sealane::Group::"sealane-local#operators" };'
    )
    asked = move(person=PAVEL, action="ApproveBreakGlass")
    assert decide(bundle(other_team), dataclasses.replace(asked, requester=PAVEL)).allowed
    assert not decide(bundle(other_team), dataclasses.replace(asked, requester=OLGA)).allowed
    unknown = decide(bundle(ALLOW_ALL), dataclasses.replace(asked, requester=None))
    assert unknown.denied_because == "Nothing is known of whoever asked to break glass."


def test_source_and_age_of_a_fact_can_be_asked_for() -> None:
    fresh = '@id("fresh") @reason("Fresh.") forbid (principal, action in Sealane::Action::"AnyMove", resource) when {'
    fresh += ' context.placement.source != "report" || context.placement.age_seconds > 30 };'
    made = bundle(ALLOW_ALL, fresh)
    for placement, allowed in (
        (Provenance("report", 30), True),
        (Provenance("report", 31), False),
        (Provenance("receipt", 0), False),
        (Provenance(), False),  # whoever forgets to say gets no fresh fact
    ):
        context = dataclasses.replace(CIRCUMSTANCES, placement=placement)
        decision = decide(made, move(context=context))
        assert decision.allowed is allowed
        told = {fact["fact"]: fact for fact in facts_of(decision.request, decision.entities) if fact["of"] == "sandbox"}
        assert (told["host"]["value"], told["host"]["source"]) == ("lab1", placement.source)
        assert told["zone"]["age_seconds"] == 0


GROUPS = st.sets(st.sampled_from(["S-1-5-21-1-2-3-1", "S-1-5-21-1-2-3-2", "S-1-5-21-1-2-3-3", "x#Sealane::Group"]))


@given(GROUPS, GROUPS)
def test_memberships_that_no_policy_names_change_nothing(named: set[str], held: set[str]) -> None:
    texts = [
        ALLOW_ALL.replace('"all"', f'"p{n}"').replace("principal,", f'principal in Sealane::Group::"{group}",')
        for n, group in enumerate(sorted(named))
    ]
    person = dataclasses.replace(OLGA, groups=frozenset(held))
    assert bundle(*texts).rules.named_groups == named
    decision = decide(bundle(*texts), move(person))
    assert decision.allowed == bool(named & held)
    assert {each["id"] for each in decision.entities[0]["parents"]} == held  # the record has all of them
