"""What a former process of the relay left: its guest comes first, and what nobody hears keeps nothing."""

from __future__ import annotations

import errno
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from tests.transport.relay.conftest import running_relay, unheard, until, with_limits
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.site import Site
from transport.errors import ConnectionBroken, OfferRefused, RefusalCode, SpoolFailed
from transport.relay import former_sessions, handover, source_session
from transport.relay.destination import Destination
from transport.relay.evacuations import Evacuations
from transport.relay.host import RelayHost, now, open_host
from transport.relay.socket_ends import SocketDestination, SocketSource
from transport.relay.source_session import SourceSession
from transport.relay.spool import SessionJournal
from transport.wire.control import Role

STARTED = "2026-11-22T21:42:21.123456+00:00"


def begun_before(
    host: RelayHost, permit: str, address: str = "127.0.0.9:1", session_id: str = "1" * 32
) -> SessionJournal:
    """What a former process of a source's relay noted."""
    facts = {"session_id": session_id, "vm": VM, "permit": permit, "address": address, "started": STARTED}
    return host.spool.begin(Role.SOURCE, session_id, **facts)


class Guest(SocketSource):
    """A source's end that has a guest."""

    vm_binding = "uuid"
    hands_over = True

    async def resume_guest(self) -> None:
        pass


@pytest.mark.parametrize(
    "trouble", [None, SpoolFailed("no space left on device"), OSError(errno.EMFILE, "Too many open files")]
)
async def test_an_evacuated_guest_that_stayed_may_go_elsewhere_before_its_destination_has_heard_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, trouble: Exception | None
) -> None:
    """Which is gone, perhaps for good: so the host could be emptied of it only after 30 days."""
    host = open_host(site.relay_config("a"))
    tries: list[str] = []
    stayed: list[tuple[str, str]] = []

    async def gone(*_: object) -> None:
        tries.append("")
        raise ConnectionBroken("nobody is there any more")

    def note(_: Evacuations, vm: str, destination: str, *, is_spent: bool) -> None:
        assert not is_spent, "its destination may never have heard of it"
        stayed.append((vm, destination))
        if trouble is not None:
            raise trouble

    monkeypatch.setattr(handover, "_settle_with", gone)
    monkeypatch.setattr(Evacuations, "stayed", note)
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: Guest(frozenset()))
    journal = begun_before(host, site.permit(vm=VM))
    link: Any = SimpleNamespace(tell=lambda _id, news: unheard(news))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(former_sessions._settle, host, journal, link, nursery)
        await until(lambda: bool(tries))
        assert stayed == [(VM, site.spiffe("b"))]
        await until(lambda: len(tries) > 1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("post_copy", [False, True])
async def test_status_shows_a_session_that_a_former_process_left_and_who_must_do_what(
    site: Site, monkeypatch: pytest.MonkeyPatch, post_copy: bool
) -> None:
    host = open_host(with_limits(site.relay_config("a"), settle_retry_seconds=0.05))

    async def silent(*_: object) -> None:
        raise ConnectionBroken("the peer did not answer in time")

    monkeypatch.setattr(handover, "_settle_with", silent)
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: Guest(frozenset()))
    journal = begun_before(host, site.permit(vm=VM))
    journal.append("handed-over", **({"post_copy": True} if post_copy else {}))
    link: Any = SimpleNamespace(tell=lambda _id, news: unheard(news))

    def shown() -> dict[str, Any]:
        (found,) = host.board.document()["sessions"]
        return cast("dict[str, Any]", found)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(former_sessions._settle, host, journal, link, nursery)
        await until(lambda: any("cannot ask" in each["message"] for each in host.board.document()["sessions"]))
        assert (shown()["role"], shown()["vm"], shown()["state"]) == ("source", VM, "handed-over")
        assert "did not answer in time" in shown()["message"]
        assert "see that the relay of b runs and can be reached" in shown()["message"]
        assert "docs/failures.md" in shown()["message"]
        assert host.board.is_empty, "a relay that drains leaves it to its successor"
        nursery.cancel_scope.cancel()
    assert host.board.document()["sessions"] == []


class Whole(SocketDestination):
    """A destination's end that has all of a guest."""

    vm_binding = "uuid"
    hands_over = True

    async def wait_loaded(self, seconds: float) -> bool:  # noqa: ARG002 - it has come
        return True


async def test_status_shows_a_guest_that_is_held_until_its_source_settles(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = open_host(site.relay_config("b"))
    monkeypatch.setattr(RelayHost, "destination_end", lambda *_: Whole(None))
    facts = {"session_id": "1" * 32, "source": site.spiffe("a"), "permit": site.permit(vm=VM)}
    times = {"folder": str(site.folder / "none"), "started_at": now().isoformat()}
    journal = host.spool.begin(Role.DESTINATION, "1" * 32, **facts, **times)
    journal.append("prepared")
    async with trio.open_nursery() as nursery:
        destination = Destination(host, nursery)
        destination.recover(journal, former_sessions._permit_of(host, journal))
        await trio.testing.wait_all_tasks_blocked()
        (shown,) = host.board.document()["sessions"]
        assert (shown["role"], shown["peer"], shown["state"]) == ("destination", site.spiffe("a"), "held")
        assert "until the relay of a says where it runs" in shown["message"]
        (session,) = destination.admissions.sessions.values()
        await session.settle(handed_over=True)
        assert host.board.document()["sessions"] == []
        nursery.cancel_scope.cancel()


async def test_a_clock_that_was_ahead_before_the_last_restart_keeps_no_guest_waiting(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts of a restarted source begin by its clock: it was refused one by one until that had been reached."""
    permit, ahead = site.permit(vm=VM), int(now().timestamp()) + 86400
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: Guest(frozenset()))
    listener = listen(site)
    async with listener, running_relay(site, "b") as (_, address):
        source = open_host(with_limits(site.relay_config("a"), settle_retry_seconds=0.02))
        async with Driver.connected(address, source.credentials) as driver:
            await driver.offer(permit)
        async with Driver.connected(address, source.credentials) as former:
            await former.offer(permit, session_id=driver.session_id, attempt=ahead, purpose="settle")
        journal = begun_before(source, permit, address, driver.session_id)
        journal.append("handed-over")
        link: Any = SimpleNamespace(tell=lambda _id, news: unheard(news))
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await former_sessions._settle(source, journal, link, nursery)
        assert journal.is_ended
    (path,) = source.spool.receipts()
    certified = json.loads(json.loads(path.read_bytes())["receipt"]["body"])
    assert (certified["started"], certified["lacks_counts"]) == ("2026-11-22T21:42:21.123456Z", True)


@pytest.mark.parametrize("moment", [-5, 0, 1 << 32, 253_402_300_799])
def test_the_first_attempt_after_a_restart_is_one_whatever_the_clock_says(
    monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    monkeypatch.setattr(source_session, "now", lambda: datetime.fromtimestamp(moment, UTC))
    nothing: Any = None
    session = SourceSession(nothing, nothing, "", cast("Any", SimpleNamespace(facts={"recovered": True})), nothing)
    attempts = [session.next_attempt() for _ in range(3)]
    assert attempts == sorted(set(attempts))
    assert attempts[0] >= 0
    assert attempts[-1] < 1 << 32


@pytest.mark.parametrize("is_gone", [False, True])
async def test_a_guest_whose_session_is_unknown_to_its_destination_stays_paused_unless_it_is_gone(
    site: Site, monkeypatch: pytest.MonkeyPatch, *, is_gone: bool
) -> None:
    """The destination may have lost its folder, and run the guest."""
    host = open_host(with_limits(site.relay_config("a"), settle_retry_seconds=0.02))
    asked: list[str] = []

    async def unknown(*_: object) -> None:
        asked.append("")
        raise OfferRefused(RefusalCode.SESSION_UNKNOWN, "no session of this name and host is known here")

    class Paused(Guest):
        async def is_gone(self) -> bool:
            return is_gone

        async def resume_guest(self) -> None:
            raise AssertionError("it would run twice")

    monkeypatch.setattr(handover, "_settle_with", unknown)
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: Paused(frozenset()))
    journal = begun_before(host, site.permit(vm=VM))
    journal.append("handed-over")
    link: Any = SimpleNamespace(tell=lambda _id, news: unheard(news))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(former_sessions._settle, host, journal, link, nursery)
        await until(lambda: journal.is_ended if is_gone else len(asked) > 3)
        assert journal.state == ("ended" if is_gone else "handed-over")
        nursery.cancel_scope.cancel()
