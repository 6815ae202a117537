"""Following a migration: outcomes, a gateway that goes away, Ctrl-C."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gateway.cli.errors import CommandError, Refused, Unreachable
from gateway.cli.follow import PATIENCE_SECONDS, POLL_SECONDS, RECEIPT_SECONDS, Clock, Interrupts, follow
from gateway.cli.replies import MigrationReply

LOGIN = Refused("the token is not accepted", "requester", "sign in", "unauthenticated")
GONE = Unreachable("no answer", "operator", "start it")


@dataclass
class ScriptedGateway:
    """Answers in turn: a state, or an error to raise; calls run on the way to an answer."""

    script: list[str | CommandError]
    on_cancel: CommandError | None = None
    cancels: int = 0
    before: dict[int, Callable[[], None]] = field(default_factory=dict)
    before_cancel: dict[int, Callable[[], None]] = field(default_factory=dict)
    polls: int = 0
    receipts_at_poll: int = 0

    def migration(self, migration_id: str) -> MigrationReply:
        self.polls += 1
        self.before.get(self.polls, lambda: None)()
        answer = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(answer, CommandError):
            raise answer
        receipts = ({"role": "source"},) if answer == "completed" and self.polls >= self.receipts_at_poll else ()
        return MigrationReply(migration_id, answer, receipts=receipts)

    def cancel(self, migration_id: str) -> None:
        assert migration_id == "m-1"
        self.cancels += 1
        self.before_cancel.get(self.cancels, lambda: None)()
        if self.on_cancel is not None:
            raise self.on_cancel


@dataclass
class Time:
    now: float = 100.0

    def clock(self) -> Clock:
        return Clock(lambda: self.now, self._pass)

    def _pass(self, seconds: float) -> None:
        self.now += seconds


def run(gateway: ScriptedGateway, deadline_seconds: float = 1000.0) -> tuple[MigrationReply, list[str], list[str]]:
    shown: list[str] = []
    notes: list[str] = []
    with Interrupts() as interrupts:
        reply = follow(
            gateway,
            "m-1",
            interrupts=interrupts,
            clock=Time().clock(),
            deadline_seconds=deadline_seconds,
            show=lambda one: shown.append(one.state),
            note=notes.append,
        )
    return reply, shown, notes


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("final", ["completed", "failed", "cancelled", "denied"])
def test_every_state_is_shown_until_a_final_one(final: str) -> None:
    reply, shown, notes = run(ScriptedGateway(["assigned", "running", "handing_over", final]))
    assert reply.state == final
    assert list(dict.fromkeys(shown)) == ["assigned", "running", "handing_over", final]
    assert notes == []


def test_a_gateway_that_comes_back_within_the_patience_is_forgiven() -> None:
    reply, _, _ = run(ScriptedGateway(["running", *[GONE] * 20, "running", *[GONE] * 20, "completed"]))
    assert reply.state == "completed"


def test_a_gateway_that_stays_away_ends_the_command_and_says_where_to_look() -> None:
    gateway = ScriptedGateway(["running", GONE])
    with pytest.raises(Unreachable, match="goes on") as caught:
        run(gateway)
    assert "--migration m-1" in caught.value.next_step
    assert gateway.polls <= PATIENCE_SECONDS * 4 + 2


def test_at_the_deadline_the_command_ends_and_the_migration_goes_on() -> None:
    gateway = ScriptedGateway(["running"])
    with pytest.raises(Refused, match="no outcome yet"):
        run(gateway, deadline_seconds=10)
    assert gateway.cancels == 0


def test_ctrl_c_asks_once_for_a_cancel_and_waits_for_the_outcome() -> None:
    gateway = ScriptedGateway(["running", "running", "running", "cancelled"], before={2: press_ctrl_c})
    reply, shown, notes = run(gateway)
    assert (reply.state, gateway.cancels, len(shown)) == ("cancelled", 1, 4)
    assert "cancel" in notes[0]


def test_ctrl_c_too_late_to_cancel_still_tells_the_outcome() -> None:
    refused = Refused("it is handing over", "requester", "wait")
    gateway = ScriptedGateway(["running", "handing_over", "completed"], refused, before={1: press_ctrl_c})
    reply, _, notes = run(gateway)
    assert reply.state == "completed"
    assert gateway.cancels == 1
    assert "it is handing over" in notes[0]


@pytest.mark.parametrize("error", [GONE, LOGIN])
def test_a_cancel_that_did_not_arrive_or_found_no_login_is_sent_again(error: CommandError) -> None:
    gateway = ScriptedGateway(["running"], error, before={1: press_ctrl_c})

    def comes_back() -> None:
        gateway.on_cancel = None
        gateway.script = ["running", "cancelled"]

    gateway.before_cancel[3] = comes_back
    reply, _, _ = run(gateway)
    assert (reply.state, gateway.cancels) == ("cancelled", 3)


def test_the_second_ctrl_c_leaves_at_once_and_the_handler_is_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    gateway = ScriptedGateway(["running"], before={1: press_ctrl_c, 3: press_ctrl_c})
    with pytest.raises(KeyboardInterrupt):
        run(gateway)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_completed_migration_is_given_a_moment_for_its_receipts() -> None:
    reply, shown, _ = run(ScriptedGateway(["completed"], receipts_at_poll=4))
    assert len(shown) == 4
    assert reply.receipts


def test_a_failed_migration_is_given_a_moment_for_its_reason_or_to_turn_out_cancelled() -> None:
    reply, shown, _ = run(ScriptedGateway(["failed", "failed", "cancelled"]))
    assert (reply.state, len(shown)) == ("cancelled", 3)
    _, shown, _ = run(ScriptedGateway(["failed"]))
    assert 1 < len(shown) <= RECEIPT_SECONDS / POLL_SECONDS + 1


def test_receipts_that_do_not_come_hold_nobody_up() -> None:
    reply, shown, _ = run(ScriptedGateway(["completed"], receipts_at_poll=1000))
    assert (reply.state, reply.receipts) == ("completed", ())
    assert len(shown) <= RECEIPT_SECONDS / POLL_SECONDS + 1


def test_a_login_that_ended_is_waited_for_and_asked_for_once() -> None:
    reply, _, notes = run(ScriptedGateway(["running", *[LOGIN] * 900, "running", "completed"]))
    assert reply.state == "completed"
    assert len(notes) == 1
    assert "sealane login" in notes[0]


def test_a_gateway_that_goes_away_after_a_login_that_was_waited_for_has_its_own_time() -> None:
    waited = int(2 * PATIENCE_SECONDS / POLL_SECONDS)
    reply, _, notes = run(ScriptedGateway(["running", *[LOGIN] * waited, *[GONE] * 8, *[LOGIN] * waited, "completed"]))
    assert (reply.state, len(notes)) == ("completed", 1)


def test_without_a_login_the_command_ends_and_says_that_the_migration_goes_on() -> None:
    with pytest.raises(Refused, match="goes on: the token is not accepted") as caught:
        run(ScriptedGateway(["running", LOGIN]))
    assert "sealane login" in caught.value.next_step
    assert "sealane migration show m-1" in caught.value.next_step


def test_who_may_not_watch_is_told_that_its_end_was_not_seen() -> None:
    with pytest.raises(Refused, match="is not followed to its end, and goes on: not yours"):
        run(ScriptedGateway(["running", Refused("not yours", "requester", "ask")]))
