"""Up to when a source's session may go on over another connection: in post-copy the guest lives by it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from transport.relay.source_session import SourceSession

SESSION_UNTIL, RECOVER_UNTIL = 100, 200


def until(state: str, *, post_copy: bool, recovery_id: str = "") -> int:
    permit: Any = SimpleNamespace(claims=SimpleNamespace(session_until=SESSION_UNTIL, recover_until=RECOVER_UNTIL))
    journal: Any = SimpleNamespace(state=state, facts={"post_copy": True} if post_copy else {})
    nothing: Any = None
    return SourceSession(nothing, permit, "", journal, nothing, recovery_id=recovery_id).until


@pytest.mark.parametrize("state", ["handed-over", "outcome-running"])
def test_a_guest_that_was_given_away_in_post_copy_has_until_its_recovery_would_end(state: str) -> None:
    """Also before its destination has said that it runs there: it may be that this very answer was lost."""
    assert until(state, post_copy=True) == RECOVER_UNTIL
    assert until(state, post_copy=False) == SESSION_UNTIL


@pytest.mark.parametrize("state", ["begun", "accepted", "abandoned", "resumed", "outcome-discarded"])
def test_no_other_session_has_longer_than_its_permit_gives_it(state: str) -> None:
    assert until(state, post_copy=True) == until(state, post_copy=False) == SESSION_UNTIL


def test_a_recovery_has_until_its_own_end() -> None:
    assert until("outcome-running", post_copy=True, recovery_id="1" * 32) == RECOVER_UNTIL
