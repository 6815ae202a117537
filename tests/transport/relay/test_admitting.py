"""What a source is told that did not get its answer: why, and not what became of its permit meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from traceback import walk_tb
from typing import Any

import pytest
import trio

from certs.identity import spiffe_id_of
from certs.tls import ControlPeer
from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.hostile import Driver
from tests.transport.site import Site
from transport.errors import OfferRefused, RefusalCode
from transport.relay.admitting import Admissions
from transport.relay.host import open_host
from transport.relay.socket_ends import SocketDestination
from transport.wire.messages import Answer, Message, Offer, Purpose, Refusal

VM = "11111111-2222-4333-8444-555555555555"
SOURCE = {"message_seconds": 0.3, "resume_seconds": 20.0}


@pytest.fixture
async def deaf(site: Site) -> AsyncIterator[Path]:
    """A socket that takes connections, as a process that was stopped does, and says nothing."""
    path = site.folder / "deaf"
    with trio.socket.socket(trio.socket.AF_UNIX) as listening:
        await listening.bind(str(path))
        listening.listen(16)
        yield path


@asynccontextmanager
async def hanging(site: Site, deaf: Path, kind: str, **limits: float) -> AsyncIterator[Pair]:
    where: dict[str, Any] = {"qmp_socket": str(deaf)}
    if kind == "libvirt":
        where = {"libvirt_socket": str(deaf), "socket_dir": str(site.folder / "s"), "qemu_user": "root"}
    host = host_with(site, "b", {"hypervisor_seconds": 1.5, **limits}, kind=kind, **where)
    async with serving(host) as (destination, address):
        yield Pair(site, host_with(site, "a", SOURCE), destination, address)


@pytest.mark.parametrize("kind", ["qmp", "libvirt"])
async def test_a_source_that_did_not_wait_is_told_that_the_hypervisor_hangs(
    site: Site, deaf: Path, kind: str, tmp_path: Path
) -> None:
    async with hanging(site, deaf, kind, message_seconds=5.0) as pair:
        with trio.fail_after(30):
            news = await pair.carry(site.permit(vm=VM), tmp_path / "in.sock")
    assert news.state == "failed"
    assert "offer refused (hypervisor): 'the hypervisor there hangs" in str(news.message)


async def test_nor_does_it_wait_for_longer_than_a_message_may_take(site: Site, deaf: Path, tmp_path: Path) -> None:
    async with hanging(site, deaf, "qmp", message_seconds=0.2, hypervisor_seconds=20.0) as pair:
        with trio.fail_after(15):
            news = await pair.carry(site.permit(vm=VM), tmp_path / "in.sock")
    assert "offer refused (hypervisor): 'the hypervisor there hangs" in str(news.message)


async def test_what_is_remembered_of_a_refusal_does_not_grow_with_each_time_that_it_is_told(
    site: Site, deaf: Path
) -> None:
    """An exception that is kept and raised again keeps the frames of all those times, connections and all."""
    host = host_with(site, "b", {"hypervisor_seconds": 0.1}, qmp_socket=str(deaf))
    leaf = open_host(site.relay_config("a")).credentials.chain[0]
    peer = ControlPeer(spiffe_id_of(leaf), leaf, b"", (), "", "", "")
    admissions = Admissions(host, lambda _: None)
    frames: list[int] = []
    for attempt in range(4):
        offer = Offer(1, "begin", (site.permit(vm=VM),), "a" * 32, attempt)
        with pytest.raises(OfferRefused, match="hangs") as refused:
            await admissions.admit(offer, peer)
        frames.append(len(list(walk_tb(refused.value.__traceback__))))
    assert frames[1] == frames[2] == frames[3]


async def test_the_permit_is_spent_all_the_same_and_nobody_else_learns_why(site: Site, deaf: Path) -> None:
    async with hanging(site, deaf, "qmp", message_seconds=5.0, hypervisor_seconds=0.3) as pair:
        permit = site.permit(vm=VM)
        told: list[Refusal] = []
        first = "a" * 32
        for name, session in (("a", first), ("a", first), ("a", "b" * 32), ("b", first)):
            credentials = open_host(site.relay_config(name)).credentials
            async with Driver.connected(pair.address, credentials) as driver:
                said = await driver.offer(permit, session_id=session)
                assert isinstance(said, Refusal)
                told.append(said)
    assert [each.code for each in told] == [
        RefusalCode.HYPERVISOR,
        RefusalCode.HYPERVISOR,
        RefusalCode.PERMIT_REPLAYED,
        RefusalCode.PERMIT_PARTIES,
    ]


async def test_who_is_being_admitted_has_a_place_already(site: Site, deaf: Path) -> None:
    """Many at once, each under a permit of its own, would else all be let in."""
    host = host_with(site, "b", {"hypervisor_seconds": 20.0, "max_sessions": 1}, qmp_socket=str(deaf))
    leaf = open_host(site.relay_config("a")).credentials.chain[0]
    peer = ControlPeer(spiffe_id_of(leaf), leaf, b"", (), "", "", "")
    admissions = Admissions(host, lambda _: None)
    async with trio.open_nursery() as nursery:
        first = Offer(1, "begin", (site.permit(vm=VM),), "a" * 32, 0)
        nursery.start_soon(admissions.admit, first, peer)
        await until(lambda: admissions.is_busy)
        other = Offer(1, "begin", (site.permit(vm=VM.replace("1", "2")),), "b" * 32, 0)
        with pytest.raises(OfferRefused, match="as many sessions as it may"), trio.fail_after(5):
            await admissions.admit(other, peer)
        nursery.cancel_scope.cancel()


async def test_what_is_settled_while_it_is_being_admitted_is_not_called_unknown(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A source that was restarted would take it for never begun, and this VM be held until its connection is missed."""
    is_preparing, may_prepare = trio.Event(), trio.Event()

    async def prepare(_: SocketDestination, __: Path) -> str:
        is_preparing.set()
        await may_prepare.wait()
        return ""

    monkeypatch.setattr(SocketDestination, "prepare", prepare)
    permit = pair.site.permit(vm=VM)
    said: dict[str, Message | None] = {}

    async def offer(purpose: Purpose, attempt: int) -> None:
        async with Driver.connected(pair.address, pair.source.credentials) as driver:
            said[purpose] = await driver.offer(permit, session_id="a" * 32, attempt=attempt, purpose=purpose)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(offer, "begin", 0)
        await is_preparing.wait()
        nursery.start_soon(offer, "settle", 1)
        with trio.move_on_after(0.5):
            await until(lambda: "settle" in said)
        may_prepare.set()
    assert isinstance(said["settle"], Answer)


@asynccontextmanager
async def being_admitted(
    site: Site, deaf: Path, purpose: Purpose
) -> AsyncIterator[tuple[Callable[[int], None], list[int]]]:
    """A session whose admission hangs: how its source comes once more, by which attempt, and the attempts refused."""
    host = host_with(site, "b", {"hypervisor_seconds": 20.0, "message_seconds": 20.0}, qmp_socket=str(deaf))
    leaf = open_host(site.relay_config("a")).credentials.chain[0]
    peer = ControlPeer(spiffe_id_of(leaf), leaf, b"", (), "", "", "")
    admissions, permit, refused = Admissions(host, lambda _: None), site.permit(vm=VM), list[int]()

    async def wait(attempt: int) -> None:
        with pytest.raises(OfferRefused):
            await admissions.admit(Offer(1, purpose, (permit,), "a" * 32, attempt), peer)
        refused.append(attempt)

    def come(attempt: int) -> None:
        nursery.start_soon(wait, attempt)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(admissions.admit, Offer(1, "begin", (permit,), "a" * 32, 0), peer)
        await until(lambda: admissions.is_busy)
        yield come, refused
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("purpose", ["resume", "settle"])
async def test_of_a_source_that_comes_again_and_again_meanwhile_one_connection_waits(
    site: Site, deaf: Path, purpose: Purpose
) -> None:
    """Each held a descriptor, for as long as a message may take."""
    async with being_admitted(site, deaf, purpose) as (come, refused):
        for attempt in range(1, 11):
            come(attempt)
        await until(lambda: len(refused) == 9, 5)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sorted(refused) == list(range(1, 10))


@pytest.mark.parametrize("purpose", ["resume", "settle"])
async def test_nor_does_an_older_one_that_was_held_up_on_its_way_end_the_newer(
    site: Site, deaf: Path, purpose: Purpose
) -> None:
    """Else whoever sits in between could have the source hear a refusal."""
    async with being_admitted(site, deaf, purpose) as (come, refused):
        for attempt in (2, 1):
            come(attempt)
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert refused == [1]
