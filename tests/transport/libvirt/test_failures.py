"""Never two guests: whatever is killed at whichever moment, the guest runs at exactly one place in the end.

A few cases of each table; `make failures` runs all of them (docs/failures.md).
"""

from __future__ import annotations

import pytest

from tests.transport.libvirt.failures import KINDS, alone, with_relays
from tests.transport.libvirt.hosts import Pair

pytestmark = [pytest.mark.real, pytest.mark.whole]

CASES = [(name, *case) for name, kind in KINDS.items() for case in kind.short if name != "postcopy"]


@pytest.mark.parametrize(("kind", "host", "moment", "victim"), CASES)
def test_the_guest_runs_at_exactly_one_place(pair: Pair, kind: str, host: str, moment: str, victim: str) -> None:
    outcome = with_relays(pair, KINDS[kind], host, moment, victim)
    assert not outcome.twice, outcome
    assert len(outcome.where) == 1, outcome


def test_libvirt_alone_runs_it_on_both_when_the_reply_to_finish_is_lost(pair: Pair) -> None:
    """What the others are held against: with this passing, they show something."""
    assert alone(pair, KINDS["p2p"], "after", 306, "connection").twice
