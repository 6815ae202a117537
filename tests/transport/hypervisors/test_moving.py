"""When what is due in a move, and which wishes contradict themselves."""

from __future__ import annotations

import msgspec
import pytest

from transport.hypervisors.migration_progress import MigrationProgress
from transport.hypervisors.moving import AS_CONFIGURED, PLAIN, How, Movement, Step, next_step


def seen(status: str = "active", passes: int = 1) -> MigrationProgress:
    return MigrationProgress(status, passes=passes)


def test_nothing_is_due_in_a_plain_move_however_long_it_lasts() -> None:
    assert next_step(AS_CONFIGURED, seen(passes=900), 80_000) is Step.WAIT
    assert AS_CONFIGURED.movement == PLAIN
    assert not AS_CONFIGURED.may_post_copy


def test_post_copy_begins_when_the_passes_are_over_or_the_seconds_whichever_is_first() -> None:
    how = How(post_copy_after_passes=2, post_copy_after_seconds=10)
    assert next_step(how, seen(passes=2), 9.9) is Step.WAIT
    assert next_step(how, seen(passes=3), 1) is Step.POST_COPY
    assert next_step(how, seen(passes=1), 10) is Step.POST_COPY
    assert how.movement.post_copy


@pytest.mark.parametrize(
    "status", ["device", "pre-switchover", "postcopy-active", "postcopy-paused", "completed", "failed"]
)
def test_past_pre_copy_nothing_is_due_any_more(status: str) -> None:
    for at_deadline in ("cancel", "post-copy", "pause"):
        how = How(converge_within_seconds=1, at_deadline=at_deadline, post_copy_after_seconds=0)
        assert next_step(how, seen(status), 100) is Step.WAIT


@pytest.mark.parametrize(
    ("at_deadline", "step"), [("cancel", Step.CANCEL), ("post-copy", Step.POST_COPY), ("pause", Step.PAUSE)]
)
def test_what_does_not_converge_meets_what_was_asked_for(at_deadline: str, step: Step) -> None:
    how = msgspec.convert({"converge_within_seconds": 5, "at_deadline": at_deadline}, How)
    assert next_step(how, seen(), 4.9) is Step.WAIT
    assert next_step(how, seen(), 5) is step
    assert how.movement.post_copy is (at_deadline == "post-copy")


def test_a_move_that_is_still_being_set_up_is_late_but_cannot_be_switched() -> None:
    assert next_step(How(converge_within_seconds=1), seen("setup"), 2) is Step.CANCEL
    assert next_step(How(converge_within_seconds=1, at_deadline="pause"), seen("setup"), 2) is Step.WAIT
    assert next_step(How(post_copy_after_seconds=0), seen("setup"), 2) is Step.WAIT


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (How(multifd_compression="zstd"), "multifd channels"),
        (How(multifd_channels=2, post_copy_after_passes=1), "post-copy"),
        (How(multifd_channels=2, xbzrle=True), "XBZRLE"),
        (How(preempt=True), "post-copy"),
        (How(at_deadline="pause"), "converge_within_seconds"),
        (How(post_copy_bytes_per_second=1), "post-copy"),
    ],
)
def test_contradictions_are_named(how: How, words: str) -> None:
    assert words in (how.problem() or "")


def test_what_is_possible_has_no_problem() -> None:
    for how in (
        AS_CONFIGURED,
        How(multifd_channels=8, multifd_compression="zlib", auto_converge=True),
        How(post_copy_after_seconds=0, preempt=True, post_copy_bytes_per_second=1 << 20),
        How(converge_within_seconds=60, at_deadline="post-copy", preempt=True),
    ):
        assert how.problem() is None


@pytest.mark.parametrize(
    "text",
    [
        b'{"multifd_channels":65}',
        b'{"multifd_compression":"lzo"}',
        b'{"speed":1}',
        b'{"post_copy":"yes"}',
        b'{"xbzrle":1}',
    ],
)
def test_a_peer_that_makes_up_a_movement_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Movement)
