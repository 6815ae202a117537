"""States of a migration, as a table and as properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.migrations import (
    BEGIN_GRACE_SECONDS,
    END_GRACE_SECONDS,
    SECOND_RECEIPT_SECONDS,
    Migration,
    Migrations,
    ReceiptOnFile,
    State,
    from_decision,
)

NOW = 1_000_000


def assigned(name: str = "m1", vm: str = "vm1") -> Migration:
    return Migration(
        migration_id=name,
        vm_uuid=vm,
        vm_name=vm,
        source="a",
        destination="b",
        requested_by="alice",
        state=State.ASSIGNED,
        record_index=1,
        jti="j",
        decided=NOW,
        begin_until=NOW + 60,
        end_until=NOW + 3600,
        recover_until=NOW + 7200,
    )


def receipt(role: str, outcome: str) -> ReceiptOnFile:
    return ReceiptOnFile(role, outcome, "{}", f"{role}{outcome}", 7)


@pytest.mark.parametrize(
    ("receipts", "state"),
    [
        ([("source", "completed"), ("destination", "running")], State.COMPLETED),
        ([("destination", "running"), ("source", "completed")], State.COMPLETED),
        ([("destination", "running")], State.HANDING_OVER),
        ([("source", "completed")], State.HANDING_OVER),
        ([("source", "handed-over")], State.HANDING_OVER),
        ([("source", "failed")], State.FAILED),
        ([("destination", "discarded")], State.FAILED),
        ([("source", "cancelled"), ("destination", "discarded")], State.CANCELLED),
        ([("destination", "discarded"), ("source", "cancelled")], State.CANCELLED),
        ([("source", "failed"), ("destination", "running"), ("source", "completed")], State.COMPLETED),
    ],
)
def test_what_receipts_say(receipts: list[tuple[str, str]], state: State) -> None:
    migration = assigned()
    for role, outcome in receipts:
        migration = migration.with_receipt(receipt(role, outcome), NOW)
    assert migration.state is state


@pytest.mark.parametrize("said", [("source", "completed"), ("destination", "running")])
def test_one_hosts_word_is_believed_after_some_seconds(said: tuple[str, str]) -> None:
    migration = assigned().with_receipt(receipt(*said), NOW)
    assert migration.at(NOW + SECOND_RECEIPT_SECONDS - 1).state is State.HANDING_OVER
    assert migration.at(NOW + SECOND_RECEIPT_SECONDS).state is State.COMPLETED


def in_post_copy() -> Migration:
    """The guest runs at the destination, and a GiB of its memory is at the source, which has told so."""
    return assigned().with_progress(State.RUNNING, {}, None, NOW).with_progress(
        State.HANDING_OVER, {"remaining_bytes": 1 << 30}, None, NOW
    )  # fmt: skip


@pytest.mark.parametrize("source_first", [True, False])
def test_a_guest_whose_memory_is_still_at_the_source_is_being_handed_over(source_first: bool) -> None:
    """Interrupted post-copy: the destination certifies that the guest runs there, and is alone with its word."""
    said = [receipt("destination", "running"), receipt("source", "handed-over")]
    migration = assigned().with_progress(State.RUNNING, {}, None, NOW)
    for each in said[::-1] if source_first else said:
        migration = migration.with_receipt(each, NOW)
    assert migration.at(NOW + 7200).state is State.HANDING_OVER
    assert migration.may_still_run(NOW + 7200)
    assert migration.certified_host() == "b"
    late = migration.at(NOW + 7201 + END_GRACE_SECONDS)
    assert (late.state, late.message is not None and "recover_until is past" in late.message) == (State.FAILED, True)
    assert late.with_receipt(receipt("source", "completed"), NOW + 8000).state is State.COMPLETED
    whole = migration.with_receipt(receipt("source", "completed"), NOW + 100)
    assert (whole.state, whole.message) == (State.COMPLETED, None)


def test_the_destinations_word_alone_ends_no_post_copy_that_the_source_has_told_of() -> None:
    """Nor where the source's relay is dead, and its receipt comes after its restart."""
    migration = in_post_copy().with_receipt(receipt("destination", "running"), NOW)
    assert migration.at(NOW + 7200).state is State.HANDING_OVER
    told = migration.with_progress(State.HANDING_OVER, None, "post-copy was interrupted", NOW + 60)
    assert told.at(NOW + 7200).message == "post-copy was interrupted"
    done = told.with_progress(State.COMPLETED, {"remaining_bytes": 0}, None, NOW + 90)
    assert (done.at(NOW + 100).state, done.message) == (State.COMPLETED, None)


def test_a_destination_that_lacks_memory_is_no_end_also_where_nobody_hears_the_source() -> None:
    """It is of another site, or was never heard again."""
    lacking = ReceiptOnFile("destination", "running", "{}", "lacking", 8, lacks_memory=True)
    migration = assigned().with_receipt(lacking, NOW)
    assert migration.at(NOW + 7200).state is State.HANDING_OVER
    assert migration.may_still_run(NOW + 7200)
    assert migration.certified_host() == "b"
    assert migration.with_progress(State.HANDING_OVER, {"remaining_bytes": 0}, None, NOW).completed_at is None
    late = migration.at(NOW + 7201 + END_GRACE_SECONDS)
    assert (late.state, late.message is not None and "recover_until is past" in late.message) == (State.FAILED, True)
    recovered = migration.with_receipt(receipt("destination", "running"), NOW + 100)
    assert recovered.at(NOW + 100 + SECOND_RECEIPT_SECONDS).state is State.COMPLETED
    assert migration.with_receipt(receipt("source", "completed"), NOW).state is State.COMPLETED


@pytest.mark.parametrize("outcome", ["failed", "cancelled"])
@pytest.mark.parametrize("source_first", [True, False])
def test_a_lack_that_the_source_contradicts_keeps_nothing_open(outcome: str, source_first: bool) -> None:
    """A destination that lies would have the guest's move, and all others of it, wait for hours."""
    said = [receipt("source", outcome), ReceiptOnFile("destination", "running", "{}", "lacking", 8, lacks_memory=True)]
    migration = assigned().with_progress(State.FAILED, None, None, NOW) if source_first else assigned()
    for each in said if source_first else said[::-1]:
        migration = migration.with_receipt(each, NOW)
    assert not migration.lacks_memory
    assert migration.at(NOW + SECOND_RECEIPT_SECONDS).is_final


def test_a_restart_of_the_gateway_forgets_no_memory_that_is_left_behind() -> None:
    permit = {"jti": "j", "iat": NOW, "exp": NOW + 60, "session_until": NOW + 3600, "recover_until": NOW + 7200}
    record = {"migration_id": "m1", "outcome": "allowed", "vm": {"uuid": "vm1"}, "source": "a", "destination": "b"}
    migration = from_decision(1, {**record, "details": {"permit": permit}})
    for each in (receipt("destination", "running"), receipt("source", "handed-over")):
        migration = migration.with_receipt(each, NOW + 4000)
    assert migration.at(NOW + 7200).state is State.HANDING_OVER


def test_what_was_presumed_of_the_destinations_word_is_not_once_the_source_says_otherwise() -> None:
    presumed = assigned().with_receipt(receipt("destination", "running"), NOW)
    told = presumed.with_progress(State.HANDING_OVER, {"remaining_bytes": 1}, None, NOW + 5)
    assert told.at(NOW + SECOND_RECEIPT_SECONDS).state is State.HANDING_OVER
    whole = told.with_progress(State.HANDING_OVER, {"remaining_bytes": 0}, None, NOW + 20)
    assert whole.at(NOW + 20 + SECOND_RECEIPT_SECONDS).state is State.COMPLETED


def test_only_the_destinations_receipt_certifies_where_the_vm_is() -> None:
    assert assigned().with_receipt(receipt("source", "completed"), NOW).certified_host() is None
    assert assigned().with_receipt(receipt("destination", "running"), NOW).certified_host() == "b"


def test_what_is_not_heard_of_has_failed() -> None:
    migration = assigned()
    assert migration.at(NOW + 60 + BEGIN_GRACE_SECONDS).state is State.ASSIGNED
    assert migration.at(NOW + 61 + BEGIN_GRACE_SECONDS).state is State.FAILED
    assert migration.with_cancel_request().at(NOW + 61 + BEGIN_GRACE_SECONDS).state is State.CANCELLED
    running = migration.with_progress(State.RUNNING, {}, None, NOW)
    assert running.at(NOW + 3600).state is State.RUNNING
    assert running.at(NOW + 3601 + END_GRACE_SECONDS).state is State.FAILED


@given(st.lists(st.sampled_from([s for s in State if s is not State.DENIED])))
def test_progress_never_goes_back_and_never_leaves_an_end(states: list[State]) -> None:
    rank = [State.ASSIGNED, State.RUNNING, State.HANDING_OVER]
    migration = assigned()
    for state in states:
        before = migration
        migration = migration.with_progress(state, {}, None, NOW)
        if before.is_final:
            assert migration == before
        elif not migration.is_final:
            assert rank.index(migration.state) >= rank.index(before.state)


def test_why_it_failed_is_known_also_where_the_destinations_receipt_came_first() -> None:
    failed = assigned().with_receipt(receipt("destination", "discarded"), NOW)
    assert (failed.state, failed.message) == (State.FAILED, None)
    told = failed.with_progress(State.FAILED, None, "the relay there was restarted", NOW)
    assert (told.state, told.message) == (State.FAILED, "the relay there was restarted")
    assert told.with_progress(State.FAILED, None, "something else", NOW) is told
    assert failed.with_progress(State.RUNNING, None, "late", NOW) is failed


@given(st.lists(st.tuples(st.sampled_from(["source", "destination"]), st.sampled_from(
    ["running", "discarded", "handed-over", "completed", "failed", "cancelled"]))))  # fmt: skip
def test_completed_is_never_undone(said: list[tuple[str, str]]) -> None:
    migration = assigned()
    was_completed = False
    for role, outcome in said:
        migration = migration.with_receipt(receipt(role, outcome), NOW)
        was_completed = was_completed or migration.state is State.COMPLETED
        assert not was_completed or migration.state is State.COMPLETED


def test_a_vm_is_taken_by_one_request_at_a_time() -> None:
    migrations = Migrations(10)
    assert migrations.reserve("vm1", NOW)
    assert not migrations.reserve("vm1", NOW)
    assert migrations.reserve("vm2", NOW)
    migrations.release("vm1")
    migrations.put(assigned())
    assert not migrations.reserve("vm1", NOW)
    assert migrations.reserve("vm1", NOW + 60 + BEGIN_GRACE_SECONDS + 1)  # it was never begun


def test_an_older_migration_that_ends_late_does_not_free_a_newer_one() -> None:
    migrations = Migrations(10)
    old, new = assigned("old"), assigned("new")
    migrations.put(old)
    migrations.put(new)
    migrations.put(old.with_receipt(receipt("source", "failed"), NOW))
    assert migrations.active_of("vm1", NOW) == new


def test_memory_is_bounded_by_forgetting_what_has_ended() -> None:
    migrations = Migrations(3)
    migrations.put(assigned("active", "vm0"))
    for number in range(10):
        migrations.put(assigned(f"m{number}", f"vm{number}").with_receipt(receipt("source", "failed"), NOW))
    assert migrations.get("active", NOW) is not None
    assert migrations.get("m0", NOW) is None
    assert migrations.get("m9", NOW) is not None
