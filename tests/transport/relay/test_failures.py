"""Out of the errors of all tasks: the cause, and never less than a bug or a cancellation."""

from __future__ import annotations

import pytest
import trio

from transport.errors import ConnectionBroken, LocalBroken, ProtocolViolation
from transport.hypervisors.errors import HypervisorUnreachable
from transport.relay.failures import cause_of, words_for_gateway


def test_the_cause_is_what_the_others_follow_from() -> None:
    violation = ProtocolViolation("x")
    group = ExceptionGroup("", [ConnectionBroken("a"), ExceptionGroup("", [LocalBroken("b"), violation])])
    assert cause_of(group) is violation
    assert cause_of(violation) is violation


def test_what_is_to_be_done_is_told_however_long_a_hypervisor_speaks() -> None:
    said = words_for_gateway(HypervisorUnreachable("x" * 1000))
    assert said.endswith(HypervisorUnreachable.next_step)
    assert len(said) < 500
    assert words_for_gateway(LocalBroken("in words of its own")) == "in words of its own"


def test_a_bug_beside_our_errors_is_raised_alone() -> None:
    bug = KeyError("bug")
    with pytest.raises(ExceptionGroup) as raised:
        cause_of(ExceptionGroup("", [ConnectionBroken("a"), bug]))
    assert raised.value.exceptions == (bug,)
    with pytest.raises(KeyError):
        cause_of(bug)


async def test_a_failure_that_meets_a_cancellation_does_not_outlive_the_cancelled_scope() -> None:
    """A peer that closes its older connection while a newer one takes over must not end the relay."""

    async def fail_on_the_way_out() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ConnectionBroken("closed meanwhile")

    with trio.CancelScope() as scope:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(fail_on_the_way_out)
                nursery.start_soon(trio.sleep_forever)
                await trio.lowlevel.checkpoint()
                scope.cancel()
                await trio.sleep_forever()
        except BaseExceptionGroup as group:
            cause_of(group)
    assert scope.cancelled_caught
