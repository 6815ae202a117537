"""A destination whose guest runs and lacks memory, and a source that recovers it: well, badly, or again and again."""

from __future__ import annotations

import base64
import gc
import json
import os
import shutil
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from certs import layout
from certs.authority import Authority
from tests.transport.relay.conftest import host_with, serving, until
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import VM, listen
from tests.transport.relay.test_hostile_peer import signed_receipt
from tests.transport.site import Site
from transport.relay import destination_session
from transport.relay.host import RelayHost, now, open_host
from transport.relay.socket_ends import SocketDestination
from transport.relay.spool import Spool
from transport.wire.control import Role
from transport.wire.frames import MAX_FRAME_BYTES, FrameType, LaneSealer
from transport.wire.keys import Direction
from transport.wire.messages import Answer, Bye, Message, Open, Receipt, Refusal

FIRST = "1" * 32


class InPostCopy(SocketDestination):
    """An end whose guest runs here and lacks memory; `may_listen`: its hypervisor answers."""

    vm_binding = "uuid"
    hands_over = True

    def __init__(self, at: Path) -> None:
        super().__init__(at)
        self.folders: list[bool] = []
        self.may_listen = trio.Event()
        self.may_listen.set()

    async def listen_again(self, folder: Path) -> None:
        self.folders.append(folder.is_dir())
        await self.may_listen.wait()

    async def hold_until_whole(self) -> None:
        await trio.sleep_forever()


@dataclass
class Place:
    """A relay at `address`, whose former process had started a guest that `permit` brought from host a."""

    site: Site
    host: RelayHost
    end: InPostCopy
    address: str
    permit: str
    folder: Path
    listener: trio.SocketListener

    @asynccontextmanager
    async def source(self) -> AsyncIterator[Driver]:
        """Of host a, as its certificate is now."""
        async with Driver.connected(self.address, open_host(self.site.relay_config("a")).credentials) as driver:
            yield driver

    async def recovered(self, driver: Driver) -> Message | None:
        """What the destination says to who recovers it."""
        with trio.fail_after(10):
            return await driver.offer(self.permit, purpose="recover")

    def receipts(self) -> list[bool]:
        """Those that are kept: whether each says that it is of a recovery."""
        return sorted(body.get("recovery", False) for body in self.certified())

    def certified(self) -> list[dict[str, Any]]:
        bodies = [json.loads(json.loads(p.read_bytes())["receipt"]["body"]) for p in self.host.spool.receipts()]
        assert all(body["outcome"] == "running" for body in bodies)
        return bodies


@pytest.fixture
async def place(site: Site, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Place]:
    async with placed(site, monkeypatch) as here:
        yield here


@asynccontextmanager
async def placed(
    site: Site, monkeypatch: pytest.MonkeyPatch, former: Callable[[RelayHost, str], None] = lambda *_: None
) -> AsyncIterator[Place]:
    """`former`: what the former process did beside that, with the permit."""
    host = host_with(site, "b", {"resume_seconds": 0.3})
    end, permit = InPostCopy(site.folder / "vm" / VM / "memory.sock"), site.permit(vm=VM)
    monkeypatch.setattr(RelayHost, "destination_end", lambda *_: end)
    folder = host.spool.run_dir / FIRST[:16]
    facts: dict[str, Any] = {"session_id": FIRST, "source": site.spiffe("a"), "permit": permit, "folder": str(folder)}
    journal = host.spool.begin(Role.DESTINATION, FIRST, **facts, started_at=now().isoformat())
    journal.append("prepared")
    journal.append("running", post_copy=True)
    journal.append("started")
    os.close(journal._ownership)  # as a process that has ended does
    former(host, permit)
    async with listen(site) as listener, serving(host) as (_, address):
        yield Place(site, host, end, address, permit, folder, listener)


@asynccontextmanager
async def carried_something(place: Place, driver: Driver, *, is_all: bool = False) -> AsyncIterator[None]:
    """Its hypervisor has had some memory; the lane is there. `is_all`: and its end."""
    await driver.send(Open(0, "memory"))
    assert driver.keys is not None
    sealer = LaneSealer(driver.keys.lane_secret(0, Direction.SOURCE_TO_DESTINATION))
    frame = memoryview(bytearray(MAX_FRAME_BYTES))
    async with await driver.lane(0) as lane:
        await lane.send_all(frame[: sealer.seal_into(FrameType.DATA, b"memory", frame)])
        with trio.fail_after(10):
            async with await place.listener.accept() as taken:
                assert await taken.receive_some(6)
                if is_all:
                    await lane.send_all(frame[: sealer.seal_into(FrameType.FIN, b"", frame)])
                    assert await taken.receive_some(1) == b""
                yield


async def test_it_listens_in_the_sessions_folder_also_where_that_was_removed_with_the_former_process(
    place: Place,
) -> None:
    """systemd does so with all of /run/sealane: libvirt and QEMU could bind nothing there, and the guest was lost."""
    assert not place.folder.exists()
    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
    assert place.end.folders == [True]
    assert place.folder.stat().st_mode & 0o777 == 0o700


async def test_status_shows_a_guest_that_may_lack_memory_and_who_must_do_what(place: Place) -> None:
    """Once: it is known by the name of its first session and by that of the last recovery."""

    def messages() -> list[str]:
        return [each["message"] for each in place.host.board.document()["sessions"]]

    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
        assert messages() == [""]
    await until(lambda: len(messages()) == 1 and "the guest runs here and may lack memory" in messages()[0])
    (shown,) = place.host.board.document()["sessions"]
    assert (shown["role"], shown["vm"], shown["peer"]) == ("destination", VM, place.site.spiffe("a"))
    assert "which a can bring until 20" in shown["message"]


async def test_one_recovery_is_tried_at_a_time(place: Place) -> None:
    """Or a source could have as many connections wait for a hypervisor that hangs as it likes."""
    place.end.may_listen = trio.Event()
    said: list[Message | None] = []

    async def recover() -> None:
        async with place.source() as driver:
            said.append(await place.recovered(driver))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(recover)
        await until(lambda: len(said) == 19)
        assert {each.code.value for each in said if isinstance(each, Refusal)} == {"busy"}
        place.end.may_listen.set()
    assert isinstance(said[-1], Answer)
    assert len(place.end.folders) == 1


async def test_nor_more_often_than_once_a_second(place: Place) -> None:
    began = trio.current_time()
    with capture_logs() as logs:
        for _ in range(12):
            async with place.source() as driver:
                await place.recovered(driver)
    most = 1 + int(trio.current_time() - began)
    assert 1 <= len(place.end.folders) <= most
    assert len([line for line in logs if line["event"] == "post-copy goes on in a new session"]) <= most


async def test_fifty_recoveries_that_are_interrupted_leave_nothing_behind(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destination_session, "_RECOVERY_SECONDS", 0.0)

    def held() -> tuple[int, int]:
        gc.collect()
        return trio.lowlevel.current_statistics().tasks_living, len(list(Path("/proc/self/fd").iterdir()))

    before = held()
    for _ in range(50):
        async with place.source() as driver:
            assert isinstance(await place.recovered(driver), Answer)
    await until(lambda: all(here <= then + 2 for here, then in zip(held(), before, strict=True)))
    assert len(place.end.folders) == 50
    assert place.receipts() == [False], "nothing was carried, so there is nothing to certify"


@pytest.mark.parametrize("how", ["breaks off", "says bye"])
async def test_what_a_recovery_carried_is_certified_whether_its_source_asks_for_that_or_not(
    place: Place, how: str
) -> None:
    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
        async with carried_something(place, driver):
            if how == "says bye":
                await driver.send(Bye())
                assert await driver.hear_all() == []
    await until(lambda: place.receipts() == [False, True])
    assert all(body["lacks_memory"] is True for body in place.certified()), "neither brought all"


async def test_a_receipt_that_a_former_process_kept_stays_as_it_is(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It knew whether memory had come; nobody does any more."""

    def keep(host: RelayHost, permit: str) -> None:
        jti = json.loads(base64.urlsafe_b64decode(permit.split(".")[1] + "=="))["jti"]
        host.spool.keep_receipt(f"{jti}-destination", b'{"receipt": {"body": "{\\"outcome\\": \\"running\\"}"}}')

    async with placed(site, monkeypatch, keep) as place:
        kept = place.certified()
        async with place.source() as driver:
            assert isinstance(await place.recovered(driver), Answer)
        await trio.sleep(1.0)
        assert place.certified() == kept == [{"outcome": "running"}]


async def test_a_recovery_that_brought_all_is_certified_as_one(place: Place) -> None:
    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
        async with carried_something(place, driver, is_all=True):
            await driver.send(Bye())
            assert await driver.hear_all() == []
    await until(lambda: place.receipts() == [False, True])
    lacking = {body.get("recovery", False): body.get("lacks_memory", False) for body in place.certified()}
    assert lacking == {False: True, True: False}


async def test_of_recoveries_that_are_interrupted_again_and_again_so_many_are_certified_and_the_last_one(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gateway takes no more of one host, and what comes last counts; and each is a file for good."""
    monkeypatch.setattr(destination_session, "_RECOVERY_SECONDS", 0.0)
    monkeypatch.setattr(destination_session, "MOST_INTERRUPTED", 3)
    for asks in (True, False) * 3:
        async with place.source() as driver:
            assert isinstance(await place.recovered(driver), Answer)
            async with carried_something(place, driver):
                if asks:
                    await driver.send(signed_receipt(open_host(place.site.relay_config("a")), place.permit))
                    assert isinstance(await driver.hear(), Receipt)
        await until(lambda: not place.host.board.entries)
    assert place.receipts() == [False, True, True, True]
    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
        async with carried_something(place, driver, is_all=True):
            await driver.send(Bye())
            assert await driver.hear_all() == []
    await until(lambda: place.receipts() == [False, True, True, True, True])
    *_, last = sorted(place.host.spool.receipts())
    assert "lacks_memory" not in json.loads(json.loads(last.read_bytes())["receipt"]["body"])


@pytest.fixture
def may_keep(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Until it is set, the first receipt is not written."""
    keep_receipt, is_first, may_keep = Spool.keep_receipt, [True], threading.Event()

    def keep_slowly(spool: Spool, name: str, receipt: bytes) -> None:
        if is_first.pop() if is_first else False:
            may_keep.wait(10)
        keep_receipt(spool, name, receipt)

    monkeypatch.setattr(Spool, "keep_receipt", keep_slowly)
    return may_keep


async def test_a_recovery_is_certified_also_where_the_receipt_before_it_takes_its_time(
    site: Site, monkeypatch: pytest.MonkeyPatch, may_keep: threading.Event
) -> None:
    """The relay that was started anew is still keeping what its former process owed, on a disk that is busy."""
    async with placed(site, monkeypatch) as place:
        async with place.source() as driver:
            assert isinstance(await place.recovered(driver), Answer)
            async with carried_something(place, driver, is_all=True):
                await driver.send(Bye())
                assert await driver.hear_all() == []
        await trio.testing.wait_all_tasks_blocked(0.2)
        may_keep.set()
        await until(lambda: place.receipts() == [False, True])


async def test_a_recovery_that_goes_on_is_not_certified_with_what_went_before_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, may_keep: threading.Event
) -> None:
    """Its receipt would count half of what it brings, and be the last one if it breaks."""
    async with placed(site, monkeypatch) as place:
        async with place.source() as driver:
            assert isinstance(await place.recovered(driver), Answer)
            async with carried_something(place, driver):
                may_keep.set()
                await trio.testing.wait_all_tasks_blocked(0.2)
                assert place.receipts() == [False]
        await until(lambda: place.receipts() == [False, True])


async def test_one_that_is_interrupted_is_certified_before_the_next_begins(place: Place) -> None:
    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
        async with carried_something(place, driver):
            await trio.sleep(1.0)
            async with place.source() as another:
                assert isinstance(await place.recovered(another), Answer)
                assert place.receipts() == [False, True]


async def test_a_source_that_was_revoked_recovers_nothing_until_it_is_certified_anew(place: Place) -> None:
    """What is left of the guest's memory would come from whoever has its key. The permit names the host, no key."""
    stolen = open_host(place.site.relay_config("a")).credentials
    Authority.load(place.site.certs).revoke(stolen.chain[0].serial_number, datetime.now(UTC))
    place.host.identity.reload(now())
    async with Driver.connected(place.address, stolen) as driver:
        assert await driver.offer(place.permit, purpose="recover") is None
    assert place.end.folders == []
    shutil.rmtree(place.site.certs / "hosts" / "a")
    layout.issue_host(place.site.certs, "a", datetime.now(UTC))
    place.host.identity.reload(now())
    async with place.source() as driver:
        assert isinstance(await place.recovered(driver), Answer)
