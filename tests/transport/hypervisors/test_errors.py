"""What a hypervisor says, which its guest may have taken over, as logs and terminals get to see it."""

from __future__ import annotations

import pytest

from transport.hypervisors.errors import HypervisorError, HypervisorRefused, MigrationFailed, WrongVm

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\u202e" + "x" * 100_000


@pytest.mark.parametrize(
    "error", [HypervisorRefused("migrate", "GenericError", HOSTILE), MigrationFailed(HOSTILE), WrongVm("vm", HOSTILE)]
)
def test_its_words_are_short_and_rule_no_terminal(error: HypervisorError) -> None:
    for text in (str(error), error.detail):
        assert text.isprintable()
        assert len(text) <= 1000
