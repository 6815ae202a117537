"""The placement report: what this relay tells its gateway of its host's guests. Pure; docs/hosts.md has the format.

First a full snapshot, in parts; then changes, and nothing but a sign of life when nothing changed. Ages travel, not
times: two hosts' clocks need not agree. A gateway that lost the thread asks for a snapshot.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final, TypeVar

import msgspec

from transport.hypervisors.guests import Guest, GuestBook

T = TypeVar("T")
PART: Final = 100  # guests in one report: the gateway takes bodies of 64 KiB


class ReportAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    resync: bool


decode_answer: Final = msgspec.json.Decoder(ReportAnswer).decode


class Reporter:
    """Makes reports of one `GuestBook`. `epoch`: 16 random bytes as hex, of this process."""

    def __init__(self, book: GuestBook, epoch: str, report_seconds: float) -> None:
        self._book = book
        self._epoch = epoch
        self._seconds = report_seconds
        self._sequence = 0
        self.needs_snapshot = True

    def reports(self, now: float) -> Iterator[dict[str, Any]]:
        """The reports to send now, one after the other; at least one. A snapshot takes all changes with it."""
        changed, gone = self._book.take_changes()
        is_full = self.needs_snapshot
        guests = sorted(self._book.guests.values(), key=lambda guest: guest.sighting.uuid) if is_full else changed
        parts = list(zip_longest(_parts(guests), _parts([] if is_full else gone)))
        for number, (told, departed) in enumerate(parts):
            self._sequence += 1
            yield {
                "epoch": self._epoch,
                "sequence": self._sequence,
                "full": is_full and number == 0,
                "more": number < len(parts) - 1,
                "report_seconds": self._seconds,
                "confirmed_ms_ago": _ms(now - self._book.confirmed(now)),
                "guests": [_entry(guest, now) for guest in told or ()],
                "gone": list(departed or ()),
            }
        self.needs_snapshot = False


def _parts(items: Sequence[T]) -> list[Sequence[T]]:
    """At least one, which may be empty."""
    return [items[at : at + PART] for at in range(0, len(items), PART)] or [()]


def _entry(guest: Guest, now: float) -> dict[str, Any]:
    sighting = guest.sighting
    return {
        "uuid": sighting.uuid,
        "name": sighting.name,
        "presence": sighting.presence.value,
        "run_state": sighting.run_state,
        "is_sure": sighting.is_sure,
        "arrival": guest.arrival.value,
        "since_ms_ago": _ms(now - guest.since),
        "seen_ms_ago": _ms(now - guest.seen),
        "devices": list(sighting.devices),
    }


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
