"""The report of what runs here: snapshots in parts, then changes; and a watch that survives whatever is in its way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from gateway.api.bodies import PlacementReport
from gateway.api.bounds import MAX_BODY_BYTES
from transport.errors import TransportError
from transport.hypervisors.errors import HypervisorUnreachable
from transport.hypervisors.guests import GuestBook, Presence, Sighting
from transport.relay.placement_report import PART, Reporter
from transport.relay.watching import Watch


def uuid(n: int) -> str:
    return f"{n:08x}-0000-4000-8000-000000000000"


def running(n: int) -> Sighting:
    return Sighting(uuid(n), Presence.ACTIVE, "running")


def filled(count: int) -> GuestBook:
    book = GuestBook()
    book.update([running(n) for n in range(count)], [uuid(n) for n in range(count)], 10.0)
    return book


def test_a_snapshot_comes_in_parts_that_say_so() -> None:
    reporter = Reporter(filled(2 * PART + 1), "e" * 32, 15)
    reports = list(reporter.reports(12.0))
    assert [(r["sequence"], r["full"], r["more"], len(r["guests"])) for r in reports] == [
        (1, True, True, PART), (2, False, True, PART), (3, False, False, 1),
    ]  # fmt: skip
    assert reports[0]["guests"][0]["since_ms_ago"] == 2000


def test_then_only_changes_are_told_and_a_sign_of_life_when_there_are_none() -> None:
    book = filled(3)
    reporter = Reporter(book, "e" * 32, 15)
    list(reporter.reports(12.0))
    book.update([running(7)], [uuid(0), uuid(7)], 20.0)
    (report,) = reporter.reports(21.0)
    assert [guest["uuid"] for guest in report["guests"]] == [uuid(7)]
    assert report["gone"] == [uuid(1), uuid(2)]
    (sign_of_life,) = reporter.reports(30.0)
    assert (sign_of_life["guests"], sign_of_life["gone"], sign_of_life["full"]) == ([], [], False)
    assert sign_of_life["confirmed_ms_ago"] == 20_000


def test_an_odd_name_or_a_long_list_never_makes_a_report_that_the_gateway_refuses() -> None:
    """It would blind the gateway to all other guests of the host."""
    wide = "\U0001f600" * 62  # four bytes each
    odd = "".join(map(chr, (9, 10, 127, 0x85, 0x202E))) + wide
    book = GuestBook()
    uuids = [uuid(n) for n in range(80)]
    devices = tuple(f"{n}{wide}" for n in range(10, 42))
    seen = [Sighting(each, Presence.ACTIVE, "no such state", name=odd, devices=devices) for each in uuids]
    book.update(seen, uuids, 10.0)
    told = []
    for report in Reporter(book, "e" * 32, 15).reports(12.0):
        data = msgspec.json.encode(report)
        assert len(data) < MAX_BODY_BYTES
        told += PlacementReport.model_validate_json(data).guests
    assert [guest.uuid for guest in told] == uuids
    assert told[0].run_state == "unknown"


class Host:
    """Guests of our choice, or an error."""

    def __init__(self) -> None:
        self.guests = [running(1)]
        self.error: Exception | None = None

    async def look(self, _now: float) -> tuple[list[Sighting], list[str]]:
        if self.error is not None:
            raise self.error
        return self.guests, [guest.uuid for guest in self.guests]


class Gateway:
    """Takes reports; answers as it is told to."""

    def __init__(self) -> None:
        self.reports: list[dict[str, Any]] = []
        self.answer: Callable[[dict[str, Any]], bytes] = lambda _: b'{"resync":false}'

    async def send(self, data: bytes) -> bytes:
        report = msgspec.json.decode(data)
        answer = self.answer(report)
        self.reports.append(report)
        return answer


def away(_: dict[str, Any]) -> bytes:
    raise TransportError("nobody answers")


async def test_nothing_is_sent_while_nothing_happens_until_a_sign_of_life_is_due(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway, host = Gateway(), Host()
    watch = Watch([host], 5, 15, gateway.send)
    with trio.move_on_after(31):
        await watch.run()
    assert [(r["full"], len(r["guests"])) for r in gateway.reports] == [(True, 1), (False, 0), (False, 0)]


async def test_a_gateway_that_lost_the_thread_gets_a_snapshot_at_once(autojump_clock: trio.testing.MockClock) -> None:
    gateway = Gateway()
    watch = Watch([Host()], 5, 15, gateway.send)
    await watch.look_and_report()
    gateway.answer = lambda report: b'{"resync":false}' if report["full"] else b'{"resync":true}'
    await watch.look_and_report(at_once=True)
    assert [r["full"] for r in gateway.reports] == [True, False, True]


async def test_what_happened_while_the_gateway_was_away_is_in_the_next_snapshot(
    autojump_clock: trio.testing.MockClock,
) -> None:
    gateway, host = Gateway(), Host()
    watch = Watch([host], 5, 15, gateway.send)
    await watch.look_and_report()
    gateway.answer = away
    host.guests = [running(2)]
    await watch.look_and_report()
    gateway.answer = lambda _: b'{"resync":false}'
    await watch.look_and_report()
    assert gateway.reports[-1]["full"]
    assert [guest["uuid"] for guest in gateway.reports[-1]["guests"]] == [uuid(2)]


async def test_half_a_picture_shows_no_vm_as_gone(autojump_clock: trio.testing.MockClock) -> None:
    gateway, one, other = Gateway(), Host(), Host()
    other.guests = [running(2)]
    watch = Watch([one, other], 5, 15, gateway.send)
    await watch.look_and_report()
    other.error = HypervisorUnreachable("libvirtd is away")
    await watch.look_and_report(at_once=True)
    assert set(watch.book.guests) == {uuid(1), uuid(2)}
    assert len(gateway.reports) == 1  # and no sign of life either: the gateway sees the silence


async def test_an_answer_that_is_none_is_as_good_as_no_answer(autojump_clock: trio.testing.MockClock) -> None:
    gateway = Gateway()
    gateway.answer = lambda _: b"{}"
    watch = Watch([Host()], 5, 15, gateway.send)
    await watch.look_and_report()
    gateway.answer = lambda _: b'{"resync":false}'
    await watch.look_and_report()
    assert [r["full"] for r in gateway.reports] == [True, True]


@pytest.mark.parametrize("which", [0, 1])
async def test_descriptors_that_run_out_beside_one_of_two_gateways_are_trouble_and_not_the_end(which: int) -> None:
    """A receipt is read first, for each of them; the error, in a group from the second one's, ended the relay."""
    gateways = [Gateway(), Gateway()]
    watch = Watch([Host()], 5, 15, gateways[0].send, [gateways[1].send])

    def no_descriptor(_: dict[str, Any]) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    gateways[which].answer = no_descriptor
    await watch.look_and_report()
    assert len(gateways[1 - which].reports) == 1, "the other one is told"
    gateways[which].answer = lambda _: b'{"resync":false}'
    await watch.look_and_report(at_once=True)
    assert gateways[which].reports[-1]["full"]
