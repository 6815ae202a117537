"""A source that waits for a client to take interrupted post-copy up: what it holds meanwhile, and its end."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from certs.tls import local_leaf_sha256
from tests.transport.relay.conftest import host_with, serving, unheard, until
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.site import Site
from transport.errors import LocalBroken, SpoolFailed
from transport.relay import destination_session, recovering
from transport.relay.assignments import Assignments
from transport.relay.caller import Conversation
from transport.relay.ends import Milestones, Report
from transport.relay.gateway_answers import Migrate
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost, now
from transport.relay.inlets import SourceLanes
from transport.relay.interrupted import key_of
from transport.relay.receipts import ReceiptFacts
from transport.relay.recovering import recover_post_copy
from transport.relay.socket_ends import SocketDestination, SocketSource
from transport.relay.source_session import SourceSession
from transport.relay.wish import Wish
from transport.wire.control import Role

WISH = Wish(VM, "web", "b", ("libvirt", "memory"), 0)


class Destination(SocketDestination):
    """An end that takes a guest in post-copy."""

    vm_binding = "uuid"
    hands_over = True

    def begin_post_copy(self) -> bool:
        return True

    async def listen_again(self, folder: Path) -> None:
        pass


class Source(SocketSource):
    """An end whose guest is given away in post-copy, which breaks at once; a client takes it up, as libvirt's would."""

    vm_binding = "uuid"
    hands_over = True
    recovers = "somebody takes it up"

    def __init__(self, host: RelayHost, permit: Any) -> None:
        super().__init__(frozenset())
        self._host, self._key = host, key_of(permit.claims)
        self.breaks = True
        self.is_over = False
        self._taken_by: Conversation | None = None

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        await milestones.switched()
        raise LocalBroken("interrupted for good")

    async def is_in_post_copy(self) -> bool:
        return not self.is_over

    @asynccontextmanager
    async def recovery(self, pause_seconds: float) -> AsyncIterator[bool]:  # noqa: ARG002
        async with self._host.interrupted.client(self._key, trio.sleep_forever) as client:
            self._taken_by = client
            yield client is not None

    def broke(self, cause: str) -> None:
        if self._taken_by is not None:
            self._taken_by.cause = cause
            self._taken_by.broke.set()

    async def go_on_with_post_copy(self, lanes: SourceLanes, report: Report) -> None:  # noqa: ARG002
        ours, theirs = socket.socketpair()
        with ours:
            await lanes.open("memory", theirs)
            ours.send(b"memory")
            await trio.sleep(0.3)
            if self.breaks:
                raise LocalBroken("interrupted once more")
        self.is_over = True

    async def release(self) -> None:
        assert self.is_over


@dataclass
class Place:
    """A relay on host a, whose callers are permitted what they want."""

    host: RelayHost
    assignments: Assignments
    nursery: trio.Nursery
    ends: list[Source] = field(default_factory=list)

    @property
    def waits(self) -> bool:
        return self.host.interrupted.why_not(VM, "b") is None

    async def take_up(self) -> str:
        conversation: Any = SimpleNamespace(cause="", broke=trio.Event())
        return (await self.host.interrupted.claim(WISH, conversation)()).state

    def receipts(self) -> list[tuple[bool, str]]:
        """Those of the source: whether each says that it is of a recovery, and what it certifies."""
        bodies = [json.loads(json.loads(p.read_bytes())["receipt"]["body"]) for p in self.host.spool.receipts()]
        return sorted((body.get("recovery", False), body["outcome"]) for body in bodies)


@pytest.fixture
async def place(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    """In which a guest waits for a client."""
    source = host_with(site, "a", {"max_moves": 1, "settle_retry_seconds": 0.05, "drain_seconds": 0.5})
    monkeypatch.setattr(RelayHost, "destination_end", lambda *_: Destination(site.folder / "vm" / VM / "memory.sock"))
    async with listen(site), serving(host_with(site, "b", {"drain_seconds": 0.5})) as (_, address):
        links = GatewayLinks(source)
        async with trio.open_nursery() as nursery:

            async def ask(_: Wish) -> Migrate:
                return Migrate("m1", site.permit(vm=VM, migration_id="m1"), address, 600, 300)

            here = Place(source, Assignments(source, nursery, links, ask, lambda _: None), nursery)

            def end(_host: RelayHost, permit: Any, *_: object) -> Source:
                here.ends.append(Source(source, permit))
                return here.ends[-1]

            monkeypatch.setattr(RelayHost, "libvirt_source", end)
            conversation: Any = None
            nursery.start_soon(here.assignments.migrate_for_caller, WISH, conversation)
            await until(lambda: here.waits)
            yield here
            nursery.cancel_scope.cancel()
        await links.close()


async def test_who_waits_for_a_client_keeps_no_drain_waiting_and_who_is_served_does(place: Place) -> None:
    """A client may never come; the next process waits as well."""
    board = place.host.board
    assert board.is_empty
    assert not place.assignments.are_under_way
    place.nursery.start_soon(place.take_up)
    await until(lambda: not place.waits)
    assert not board.is_empty
    assert place.assignments.are_under_way
    await until(lambda: place.waits)
    assert board.is_empty


async def test_nor_does_it_keep_others_from_leaving_the_host(place: Place) -> None:
    with trio.fail_after(5):
        async with place.host.board.places.place("another", "vm", 0, trio.Event()):
            assert place.waits


async def test_status_says_until_when_it_may_be_taken_up_and_what_was_in_the_way_last(place: Place) -> None:
    def shown() -> str:
        return str(place.host.board.document()["sessions"][0]["message"])

    assert "somebody takes it up, until 20" in shown()
    assert await place.take_up() == "failed"
    await until(lambda: place.waits)
    assert "interrupted once more" in shown()


async def test_a_recovery_that_was_interrupted_is_certified_as_well_as_the_one_that_ends_it(place: Place) -> None:
    assert place.receipts() == [(False, "handed-over")], "before anybody took it up"
    assert await place.take_up() == "failed"
    assert place.receipts() == [(False, "handed-over"), (True, "handed-over")]
    place.ends[-1].breaks = False
    await until(lambda: place.waits)
    with trio.fail_after(10):  # the destination takes it a second later at the earliest
        while await place.take_up() != "completed":
            await until(lambda: place.waits)
    assert place.receipts() == [(False, "handed-over"), (True, "completed"), (True, "handed-over")]


async def test_of_recoveries_that_are_interrupted_again_and_again_so_many_are_certified_and_the_one_that_ends_it(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway takes no more of one host, and would refuse the last."""
    monkeypatch.setattr(recovering, "MOST_INTERRUPTED", 1)
    monkeypatch.setattr(destination_session, "_RECOVERY_SECONDS", 0.0)
    for _ in range(3):
        assert await place.take_up() == "failed"
        await until(lambda: place.waits)
    assert place.receipts() == [(False, "handed-over"), (True, "handed-over")]
    place.ends[-1].breaks = False
    with trio.fail_after(10):
        assert await place.take_up() == "completed"
    assert place.receipts() == [(False, "handed-over"), (True, "completed"), (True, "handed-over")]


async def test_what_went_another_way_than_through_the_relays_is_certified_to_be_over(place: Place) -> None:
    """By two monitors that an operator brought together, say: its last receipt said that memory is here."""
    place.ends[-1].is_over = True
    await place.take_up()
    await until(lambda: place.receipts() == [(False, "completed"), (True, "handed-over")])


async def test_its_receipt_waits_for_a_disk_that_is_full(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guest is whole and its session over, so nobody tries again."""
    keep, refused = place.host.spool.keep_receipt, 3

    def keep_unless_full(name: str, receipt: bytes) -> None:
        nonlocal refused
        if ".recovery-" in name and refused:
            refused -= 1
            raise SpoolFailed("No space left on device")
        keep(name, receipt)

    monkeypatch.setattr(place.host.spool, "keep_receipt", keep_unless_full)
    place.ends[-1].breaks = False
    with trio.fail_after(10):
        assert await place.take_up() == "completed"
    assert place.receipts() == [(False, "handed-over"), (True, "completed")]
    assert refused == 0


async def test_what_a_former_process_certified_of_it_stays_as_it_is(site: Site) -> None:
    """It had counted what went before it was interrupted; a relay that was restarted would certify that nothing did."""
    host = host_with(site, "a", {})
    permit = host.permits.verify(site.permit(vm=VM), source=host.spiffe_id, destination=None)
    journal = host.spool.begin(Role.SOURCE, "1" * 32, session_id="1" * 32)
    journal.append("handed-over", post_copy=True)
    journal.append("outcome-running")

    async def interrupted() -> SourceSession:
        """As each process finds it, which then goes on another way."""
        facts = ReceiptFacts(Role.SOURCE, permit, "uuid", now(), local_leaf_sha256(host.credentials))
        session = SourceSession(host, permit, "", journal, facts)
        end: Any = Source(host, permit)

        @asynccontextmanager
        async def recovery(_: float) -> AsyncIterator[bool]:
            end.is_over = True
            yield False

        end.recovery = recovery
        await recover_post_copy(session, end, unheard)
        return session

    await interrupted()
    (path,) = host.spool.receipts()
    host.spool.forget_receipt(path, path.stat().st_mtime_ns)  # as once the gateway has logged it
    session = await interrupted()
    assert host.spool.receipts() == []
    assert not session.has_receipt, "that it is over now is still to be certified"
