"""Durable state: every transition against the table, every byte at which a file may be cut, and whose folder it is."""

from __future__ import annotations

import errno
import itertools
import os
import resource
from pathlib import Path

import pytest

from transport.errors import LocalBroken, Misuse, SpoolFailed
from transport.relay import spool as spool_module
from transport.relay.spool import FOLLOWING, SessionJournal, Spool
from transport.wire.control import Role


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "state")


@pytest.mark.parametrize(("state", "following"), list(itertools.product(FOLLOWING, FOLLOWING)))
def test_a_state_follows_another_only_as_the_table_says(spool: Spool, state: str, following: str) -> None:
    journal = spool.begin(Role.SOURCE, "0" * 32)
    journal.state = state
    if following in FOLLOWING[state]:
        journal.append(following)
        assert journal.state == following
    else:
        with pytest.raises(Misuse):
            journal.append(following)
        assert journal.state == state


def test_the_source_never_hands_over_what_it_has_abandoned() -> None:
    """The one rule that two guests would break."""
    reachable, queue = set(), ["abandoned"]
    while queue:
        state = queue.pop()
        reachable.add(state)
        queue += [s for s in FOLLOWING[state] if s not in reachable]
    assert reachable == {"abandoned", "resumed", "ended"}
    assert "running" not in FOLLOWING["discarded"]
    assert FOLLOWING["running"] == {"started"}


def test_a_journal_cut_at_any_byte_reads_as_its_last_whole_line(spool: Spool, tmp_path: Path) -> None:
    journal = spool.begin(Role.SOURCE, "0" * 32, vm="v")
    lines = [journal.path.stat().st_size]
    for state in ("handed-over", "outcome-running"):
        journal.append(state, at=state)
        lines.append(journal.path.stat().st_size)
    whole = journal.path.read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        found = SessionJournal.load(cut, -1)
        states = [s for s, end in zip(("begun", "handed-over", "outcome-running"), lines, strict=True) if end <= size]
        assert (found.state if found else None) == (states[-1] if states else None)
        if found is not None:
            found.append(next(iter(sorted(FOLLOWING[found.state]))))  # what follows is a line of its own
            assert SessionJournal.load(cut, -1) is not None


@pytest.mark.parametrize(
    "damage",
    [b"{}\n", b"[]\n", b"nonsense\n", b'{"state":"ended"}\n{"state":"begun"}\n', b'{"state":7}\n{"state":7}\n'],
)
def test_a_damaged_journal_stops_the_relay_and_names_the_file(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(damage)
    with pytest.raises(SpoolFailed, match="operator"):
        SessionJournal.load(path, -1)


@pytest.mark.parametrize("damage", [b"[]\n", b"7\n", b"nonsense\n", b"[" * 100_000 + b"\n"])
def test_no_move_begins_beside_a_damaged_journal(spool: Spool, damage: bytes) -> None:
    journal = spool.begin(Role.SOURCE, "0" * 32, vm="v")
    with pytest.raises(LocalBroken, match="not over"):
        spool.require_free_source("v")
    journal.path.write_bytes(damage)
    with pytest.raises(SpoolFailed):
        spool.require_free_source("v")


@pytest.mark.parametrize("fails", ["_append_line", "_sync_folder"])
def test_a_session_that_could_not_be_noted_durably_keeps_no_later_one_of_its_vm_waiting(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """It was begun by nobody, so nobody would have ended it: until the relay was started again."""

    def full(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO)) if fails == "_sync_folder" else SpoolFailed("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(spool_module, fails, full)
        with pytest.raises(SpoolFailed):
            spool.begin(Role.SOURCE, "0" * 32, vm="v")
    spool.require_free_source("v")
    assert spool.begin(Role.SOURCE, "0" * 32, vm="v").state == "begun"


def test_what_ended_is_forgotten_and_what_did_not_is_found_by_the_next_process(spool: Spool, tmp_path: Path) -> None:
    ended, open_ = spool.begin(Role.SOURCE, "1" * 32), spool.begin(Role.SOURCE, "2" * 32)
    ended.append("ended")
    assert list(spool.unfinished(Role.SOURCE)) == [], "this process still owns the other"
    open_.append("abandoned")
    os.close(open_._ownership)  # as when the process dies
    (found,) = Spool(tmp_path / "state").unfinished(Role.SOURCE)
    assert found.state == "abandoned"


def test_an_end_that_is_noted_is_one_also_where_its_file_cannot_be_taken_away(
    spool: Spool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error was nobody's to expect, and ended the relay with all sessions; the next try found it ended already."""
    journal = spool.begin(Role.SOURCE, "1" * 32)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", read_only)
        journal.append("ended")
    assert journal.path.exists()
    assert list(Spool(tmp_path / "state").unfinished(Role.SOURCE)) == []
    assert not journal.path.exists()


def test_a_line_for_which_there_is_only_half_the_room_counts_as_none_and_is_written_later(spool: Spool) -> None:
    journal = spool.begin(Role.SOURCE, "1" * 32)
    before = journal.path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (len(before) + 10, hard)
    )  # what is beyond is not taken, as on a full disk
    try:
        with pytest.raises(SpoolFailed, match="nothing is promised"):
            journal.append("handed-over")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (journal.state, journal.path.read_bytes()) == ("begun", before)
    journal.append("abandoned")
    found = SessionJournal.load(journal.path, -1)
    assert found is not None
    assert found.state == "abandoned"


def test_a_state_folder_that_others_can_write_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    Spool(state)
    state.chmod(0o770)
    with pytest.raises(SpoolFailed, match="0700"):
        Spool(state)


def test_what_is_noted_beside_a_state_is_found_by_the_next_process_and_changes_no_state(
    spool: Spool, tmp_path: Path
) -> None:
    journal = spool.begin(Role.DESTINATION, "1" * 32)
    journal.note(receipt_kept=True)
    journal.append("prepared")
    journal.note(other=1)
    os.close(journal._ownership)  # as when the process dies
    (found,) = Spool(tmp_path / "state").unfinished(Role.DESTINATION)
    assert (found.state, found.facts["receipt_kept"], found.facts["other"]) == ("prepared", True, 1)


def test_nothing_is_noted_of_what_has_ended(spool: Spool) -> None:
    journal = spool.begin(Role.DESTINATION, "1" * 32)
    journal.append("ended")
    journal.note(receipt_kept=True)
    assert not journal.path.exists()
