"""What a refusal tells: what, why, which record, and a next step that whoever is told to act can take."""

from __future__ import annotations

from gateway.errors import NotAllowed, NotSetUp
from gateway.siem.tables import unknown_sink


def test_a_denial_names_its_record() -> None:
    denied = NotAllowed("RollKey is denied", "no policy permits it", 812)
    assert denied.detail == "RollKey is denied (record 812): no policy permits it"
    assert denied.next_step == "ask the author of the policy for this action, naming record 812"


def test_without_a_record_none_is_to_be_named() -> None:
    assert NotAllowed("it", "no").next_step == "ask the author of the policy for this action"


def test_what_the_configuration_lacks_is_asked_of_the_operator() -> None:
    lacking = NotSetUp("this gateway enrols no hosts", "[enrolment]")
    assert (lacking.code, lacking.who_must_act, lacking.status) == ("not_set_up", "requester", 404)
    assert lacking.next_step == "ask the operator: the gateway's configuration has no [enrolment]"


def test_of_a_sink_that_is_none_those_that_are_get_named() -> None:
    assert unknown_sink("x", ["elastic", "lines"]).next_step == "the sinks are: elastic, lines"
    assert isinstance(unknown_sink("x", []), NotSetUp)
