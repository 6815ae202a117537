"""The steps of a session's connections at both ends, and the table that the document prints."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from transport.errors import Misuse
from transport.wire.control import Role
from transport.wire.session_states import TABLE, Event, State, follow, rows

DOCUMENT = Path(__file__).parents[3] / "docs" / "wire-protocol.md"


def test_what_is_not_in_the_table_cannot_happen() -> None:
    for key in itertools.product(Role, State, Event):
        if key not in TABLE:
            with pytest.raises(Misuse):
                follow(*key)


def test_the_document_prints_the_table_as_it_is() -> None:
    assert "\n".join(rows()) in DOCUMENT.read_text()


def test_nothing_leads_back_from_over_at_the_source_and_only_a_recovery_at_the_destination() -> None:
    leaving = {key for key, step in TABLE.items() if key[1] is State.OVER and step.state is not State.OVER}
    assert leaving == {(Role.DESTINATION, State.OVER, Event.RECOVERS)}


@pytest.mark.parametrize("end", Role)
def test_every_state_can_be_reached_and_left_for_over(end: Role) -> None:
    begun = State.BEGINNING if end is Role.SOURCE else State.CONNECTED
    reached = {begun}
    while more := {step.state for key, step in TABLE.items() if key[0] is end and key[1] in reached} - reached:
        reached |= more
    assert reached == {state for each, state, _ in TABLE if each is end} | {State.OVER}
    for state in reached - {State.OVER}:
        assert follow(end, state, Event.DEADLINE).state is State.OVER, "no wait is for ever"
        assert follow(end, state, Event.VIOLATION).state is State.OVER
