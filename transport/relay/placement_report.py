"""The placement report: what this relay tells its gateway of its host's guests. Pure; docs/hosts.md has the format.

First a full snapshot, in parts; then changes, and nothing but a sign of life when nothing changed. Ages travel, not
times: two hosts' clocks need not agree. A gateway that lost the thread asks for a snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any, Final, TypeVar

import msgspec

from transport.hypervisors.guests import MAX_DEVICES, MAX_TEXT, Guest, GuestBook

T = TypeVar("T")
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
PART: Final = 100  # guests in one report, and as many that are gone
PART_BYTES: Final = 40 * 1024  # of guests; the gateway takes bodies of 64 KiB


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
        entries = [_entry(guest, now) for guest in guests]
        parts = list(zip_longest(_parts(entries), _parts([] if is_full else gone)))
        for number, (told, departed) in enumerate(parts):
            self._sequence += 1
            yield {
                "epoch": self._epoch,
                "sequence": self._sequence,
                "full": is_full and number == 0,
                "more": number < len(parts) - 1,
                "report_seconds": self._seconds,
                "confirmed_ms_ago": _ms(now - self._book.confirmed(now)),
                "guests": list(told or ()),
                "gone": list(departed or ()),
            }
        self.needs_snapshot = False


def _parts(items: Sequence[T]) -> list[list[T]]:
    """At least one, which may be empty; none longer than PART, or than a body that the gateway takes."""
    parts: list[list[T]] = [[]]
    size = 0
    for item in items:
        length = len(msgspec.json.encode(item)) + 1
        if len(parts[-1]) == PART or size + length > PART_BYTES:
            parts.append([])
            size = 0
        parts[-1].append(item)
        size += length
    return parts


def _entry(guest: Guest, now: float) -> dict[str, Any]:
    sighting = guest.sighting
    return {
        "uuid": sighting.uuid,
        "name": _line(sighting.name),
        "presence": sighting.presence.value,
        "run_state": _word(sighting.run_state),
        "is_sure": sighting.is_sure,
        "arrival": guest.arrival.value,
        "since_ms_ago": _ms(now - guest.since),
        "seen_ms_ago": _ms(now - guest.seen),
        "devices": [_line(device) for device in sighting.devices[:MAX_DEVICES]],
    }


def _line(text: str) -> str:
    """As the gateway takes it: a domain with an odd name must not make its host's whole report refused."""
    return "".join(c if c.isprintable() else "?" for c in text)[:MAX_TEXT]


def _word(text: str) -> str:
    return text if _WORD.fullmatch(text) else "unknown"


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
