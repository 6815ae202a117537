"""What a host knows of its guests over time: since when, how they came, what changed."""

from __future__ import annotations

from dataclasses import replace

from transport.hypervisors.guests import MAX_GUESTS, Arrival, GuestBook, Presence, Sighting

VM = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f01"
OTHER = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f02"
RUNNING = Sighting(VM, Presence.ACTIVE, "running")
INCOMING = Sighting(VM, Presence.ARRIVING, "inmigrate")


def test_who_was_here_when_we_began_to_look_was_found_and_who_came_later_was_started() -> None:
    book = GuestBook()
    book.update([RUNNING], [VM], 10.0)
    book.update([replace(RUNNING, uuid=OTHER)], [VM, OTHER], 20.0)
    assert (book.guests[VM].arrival, book.guests[VM].since) == (Arrival.FOUND, 10.0)
    assert (book.guests[OTHER].arrival, book.guests[OTHER].since) == (Arrival.STARTED, 20.0)


def test_who_was_awaited_and_is_active_has_migrated_and_is_here_since_then() -> None:
    book = GuestBook()
    book.update([], [], 0.0)
    book.update([INCOMING], [VM], 10.0)
    book.update([RUNNING], [VM], 30.0)
    assert (book.guests[VM].arrival, book.guests[VM].since) == (Arrival.MIGRATED, 30.0)


def test_a_migration_that_fails_leaves_a_guest_here_since_it_came() -> None:
    book = GuestBook()
    book.update([RUNNING], [VM], 10.0)
    book.update([replace(RUNNING, presence=Presence.LEAVING, run_state="postmigrate")], [VM], 20.0)
    book.update([RUNNING], [VM], 30.0)
    assert (book.guests[VM].arrival, book.guests[VM].since, book.guests[VM].seen) == (Arrival.FOUND, 10.0, 30.0)


def test_what_the_hypervisor_tells_of_the_arrival_counts() -> None:
    book = GuestBook()
    book.update([replace(RUNNING, arrival=Arrival.RESTORED)], [VM], 10.0)
    assert book.guests[VM].arrival is Arrival.RESTORED


def test_changes_are_taken_once_and_can_be_put_back() -> None:
    book = GuestBook()
    book.update([RUNNING], [VM], 10.0)
    book.update([RUNNING], [VM], 11.0)
    changed, gone = book.take_changes()
    assert [guest.sighting.uuid for guest in changed] == [VM]
    assert gone == []
    assert book.take_changes() == ([], [])
    book.put_back(changed, gone)
    assert book.take_changes()[0] == [book.guests[VM]]
    book.update([], [], 12.0)
    assert book.take_changes() == ([], [VM])


def test_who_goes_and_comes_again_is_a_change_and_not_gone() -> None:
    book = GuestBook()
    book.update([RUNNING], [VM], 10.0)
    book.take_changes()
    book.update([], [], 11.0)
    book.update([RUNNING], [VM], 12.0)
    changed, gone = book.take_changes()
    assert [guest.since for guest in changed] == [12.0]
    assert gone == []


def test_a_guest_that_could_not_be_asked_is_still_there_and_was_not_seen() -> None:
    book = GuestBook()
    book.update([RUNNING], [VM], 10.0)
    book.update([replace(RUNNING, run_state="?", is_sure=False)], [VM], 50.0)
    guest = book.guests[VM]
    assert (guest.sighting.run_state, guest.sighting.is_sure, guest.seen) == ("running", False, 10.0)


def test_what_is_confirmed_is_as_old_as_the_oldest_look_at_a_guest_that_could_be_asked() -> None:
    book = GuestBook()
    assert book.confirmed(99.0) == 99.0
    book.update([RUNNING, replace(RUNNING, uuid=OTHER)], [VM, OTHER], 10.0)
    book.update([RUNNING], [VM, OTHER], 40.0)
    assert book.confirmed(99.0) == 10.0
    book.update([replace(RUNNING, uuid=OTHER, is_sure=False)], [VM, OTHER], 50.0)
    assert book.confirmed(99.0) == 40.0


def test_a_flood_of_guests_is_bounded() -> None:
    book = GuestBook()
    uuids = [f"{n:08x}-0000-4000-8000-000000000000" for n in range(MAX_GUESTS + 5)]
    book.update([replace(RUNNING, uuid=uuid) for uuid in uuids], uuids, 1.0)
    assert len(book.guests) == MAX_GUESTS
