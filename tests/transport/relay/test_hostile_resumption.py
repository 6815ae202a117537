"""Who may take a session up, and from where: its own host, under its own permit, forward, and with true counts."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import msgspec
import pytest
import trio
import trio.testing

from tests.transport.relay.conftest import Pair, host_with, serving, unheard, until
from tests.transport.relay.hostile import Conversation, Driver, fake_destination
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.hypervisors.moving import How, Movement
from transport.relay.host import open_host
from transport.relay.source import MigrationOrder, carry_as_source
from transport.wire.frames import MAX_FRAME_BYTES, FrameType, LaneSealer
from transport.wire.keys import Direction
from transport.wire.messages import (
    Ack,
    Answer,
    Bye,
    Cancel,
    Handover,
    Message,
    Offer,
    Open,
    Outcome,
    Refusal,
)

pytestmark = pytest.mark.whole
LIMITS = {"resume_seconds": 5.0, "silence_seconds": 2.0}


@pytest.fixture
async def pair(site: Site) -> AsyncIterator[Pair]:
    async with serving(host_with(site, "b", LIMITS)) as (destination, address):
        yield Pair(site, host_with(site, "a", LIMITS), destination, address)


@pytest.fixture
async def vm_listener(pair: Pair) -> AsyncIterator[trio.SocketListener]:
    listener = listen(pair.site)
    async with listener:
        yield listener


@contextlib.asynccontextmanager
async def begun(pair: Pair, permit: str) -> AsyncIterator[Driver]:
    async with Driver.connected(pair.address, pair.source.credentials) as driver:
        assert isinstance(await driver.offer(permit), Answer)
        yield driver


async def resumed(
    pair: Pair, permit: str, session_id: str, attempt: int, following: dict[str, int] | None = None, host: str = "a"
) -> Message | None:
    """What the destination says to somebody who wants to take the session up."""
    credentials = pair.source.credentials if host == "a" else open_host(pair.site.relay_config(host)).credentials
    async with Driver.connected(pair.address, credentials) as driver:
        return await driver.offer(
            permit, session_id=session_id, attempt=attempt, purpose="resume", following=following or {}
        )


@contextlib.asynccontextmanager
async def said_something(driver: Driver, *, frames: int = 3) -> AsyncIterator[None]:
    """One channel, and some frames on it, each its number; then the lane breaks."""
    await driver.send(Open(0, "memory"))
    lane = await driver.lane(0)
    assert driver.keys is not None
    sealer = LaneSealer(driver.keys.lane_secret(0, Direction.SOURCE_TO_DESTINATION))
    frame = memoryview(bytearray(MAX_FRAME_BYTES))
    for number in range(frames):
        await lane.send_all(frame[: sealer.seal_into(FrameType.DATA, bytes([number]), frame)])
    async with lane:
        yield


async def test_a_session_is_taken_up_by_its_own_host_under_its_own_permit_and_forward(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    permit, another = pair.site.permit(vm=VM), pair.site.permit(vm=VM)
    async with begun(pair, permit) as driver, said_something(driver):
        session = driver.session_id
        taken = await vm_listener.accept()
        assert await taken.receive_some(3)
    known = {"0": 0}
    refused = [
        await resumed(pair, permit, "f" * 32, 1, known),
        await resumed(pair, another, session, 1, known),
        await resumed(pair, permit, session, 0, known),
        await resumed(pair, permit, session, 1, known, host="b"),
    ]
    assert [getattr(answer, "code", None) for answer in refused] == [
        RefusalCode.SESSION_UNKNOWN,
        RefusalCode.SESSION_UNKNOWN,
        RefusalCode.PROTOCOL,
        RefusalCode.SESSION_UNKNOWN,
    ]
    answer = await resumed(pair, permit, session, 1, known)
    assert isinstance(answer, Answer)
    assert answer.next == {"0": 3}
    assert isinstance(await resumed(pair, permit, session, 1, known), Refusal), "each attempt once"
    await taken.aclose()


async def test_nothing_is_recovered_that_was_not_given_away_in_post_copy(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    permit = pair.site.permit(vm=VM)

    async def recovered(text: str, session_id: str, host: str = "a", following: dict[str, int] | None = None) -> object:
        credentials = pair.source.credentials if host == "a" else open_host(pair.site.relay_config(host)).credentials
        async with Driver.connected(pair.address, credentials) as driver:
            answer = await driver.offer(text, session_id=session_id, purpose="recover", following=following or {})
            return getattr(answer, "code", answer)

    async with begun(pair, permit) as driver, said_something(driver):
        taken = await vm_listener.accept()
        assert await taken.receive_some(3)
        refused = [
            await recovered(permit, "e" * 32),
            await recovered(permit, driver.session_id),
            await recovered(pair.site.permit(vm=VM), "e" * 32),
            await recovered(permit, "e" * 32, host="b"),
        ]
        assert refused == [RefusalCode.SESSION_UNKNOWN] * 4
        assert await recovered(permit, "e" * 32, following={"0": 1}) is None, "a violation, which gets no answer"
    assert isinstance(await resumed(pair, permit, driver.session_id, 1, {"0": 0}), Answer), "the session lives on"
    await taken.aclose()


LIES: dict[str, dict[str, int]] = {
    "more than was ever sent": {"0": 1},
    "a channel that was never opened": {"0": 0, "1": 4},
    "a channel left out": {},
    "channels with a gap": {"0": 0, "2": 0},
}


@pytest.mark.parametrize("lie", LIES)
async def test_a_source_that_resumes_from_where_it_cannot_be_ends_its_session(
    pair: Pair, vm_listener: trio.SocketListener, lie: str
) -> None:
    permit = pair.site.permit(vm=VM)
    async with begun(pair, permit) as driver, said_something(driver):
        taken = await vm_listener.accept()
        assert await taken.receive_some(3)
    answer = await resumed(pair, permit, driver.session_id, 1, LIES[lie])
    assert not isinstance(answer, Answer)
    if lie != "channels with a gap":  # which is refused before it is looked up
        assert await taken.receive_some(3) == b"", "its channel was closed"
        assert isinstance(await resumed(pair, permit, driver.session_id, 2, {"0": 0}), Refusal)
    await taken.aclose()


async def test_a_source_that_acknowledged_what_it_then_says_it_lacks_ends_its_session(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    permit = pair.site.permit(vm=VM)
    async with begun(pair, permit) as driver:
        await driver.send(Open(0, "memory"))
        taken = await vm_listener.accept()
        async with await driver.lane(0) as lane:
            await taken.send_all(b"to the source")
            assert await lane.receive_some(100)
            await driver.send(Ack({"0": 1}))
            await until(lambda: pair.destination.board.entries[0].channels[0].sent_frames == 1)
    assert not isinstance(await resumed(pair, permit, driver.session_id, 1, {"0": 0}), Answer)
    assert await taken.receive_some(3) == b"", "its channel was closed"
    await taken.aclose()
    assert isinstance(await resumed(pair, permit, driver.session_id, 2, {"0": 1}), Refusal)


async def test_a_session_whose_source_stays_away_is_let_go(site: Site) -> None:
    async with serving(host_with(site, "b", {"resume_seconds": 0.5})) as (destination, address):
        pair = Pair(site, open_host(site.relay_config("a")), destination, address)
        listener = listen(site)
        permit = site.permit(vm=VM)
        async with begun(pair, permit) as driver, said_something(driver):
            taken = await listener.accept()
        await until(lambda: not destination.board.entries)
        assert await taken.receive_some(10) in (b"\x00\x01\x02", b"\x00", b"\x00\x01")
        answer = await resumed(pair, permit, driver.session_id, 1, {"0": 0})
        assert isinstance(answer, Refusal)
        assert answer.code is RefusalCode.SESSION_UNKNOWN
        await taken.aclose()
        await listener.aclose()


async def test_a_session_that_is_to_be_settled_is_not_taken_up_again(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    permit = pair.site.permit(vm=VM)
    async with begun(pair, permit) as driver, said_something(driver):
        taken = await vm_listener.accept()
    async with Driver.connected(pair.address, pair.source.credentials) as settling:
        answer = await settling.offer(permit, session_id=driver.session_id, attempt=1, purpose="settle")
        assert isinstance(answer, Answer)
        assert isinstance(await resumed(pair, permit, driver.session_id, 2, {"0": 0}), Refusal)
    await taken.aclose()


async def test_a_lost_answer_is_asked_for_again_and_an_offer_that_never_came_is_made_again(
    site: Site,
) -> None:
    source = host_with(site, "a", LIMITS)

    async def play(conversation: Conversation, offer: Offer) -> None:
        if offer.purpose == "resume":
            await conversation.send(Refusal(RefusalCode.SESSION_UNKNOWN, "never heard of it"))
        elif len(fake.offers) > 1:
            await conversation.send(Refusal(RefusalCode.PERMIT_REPLAYED, "used"))

    async with fake_destination(open_host(site.relay_config("b")).credentials, play) as fake:
        pair = Pair(site, source, source, fake.address)
        with trio.fail_after(20):
            news = await pair.carry(site.permit(vm=VM), site.folder / "in.sock")
    assert news.state == "failed"
    assert [offer.purpose for offer in fake.offers][:3] == ["begin", "resume", "begin"]
    assert [offer.attempt for offer in fake.offers] == sorted({offer.attempt for offer in fake.offers})
    assert not any(offer.next for offer in fake.offers)


@pytest.mark.parametrize("following", [{"0": 9}, {"0": 0, "1": 0}], ids=str)
async def test_a_destination_that_resumes_from_where_it_cannot_be_ends_the_session(
    site: Site, following: dict[str, int]
) -> None:
    source = host_with(site, "a", LIMITS)

    async def play(conversation: Conversation, offer: Offer) -> None:
        await conversation.send(Answer({} if offer.purpose == "begin" else following, 4))
        if offer.purpose == "begin":
            assert isinstance(await conversation.hear(), Open)  # and leaves
        else:
            await conversation.hear_all()

    async with fake_destination(open_host(site.relay_config("b")).credentials, play) as fake:
        pair = Pair(site, source, source, fake.address)
        path = site.folder / "in.sock"
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pair.carry, site.permit(vm=VM), path)
                async with await dial(path) as stream:
                    await stream.send_all(b"x")
                    await until(lambda: pair.news[-1].state == "failed", 15)
    assert [offer.purpose for offer in fake.offers][:2] == ["begin", "resume"]
    assert "broke the wire protocol" in pair.news[-1].message


async def test_the_end_of_a_session_is_no_reason_to_come_back(pair: Pair, vm_listener: trio.SocketListener) -> None:
    permit = pair.site.permit(vm=VM)
    async with begun(pair, permit) as driver:
        await driver.send(Cancel("x", "changed my mind"), Bye())
        await driver.hear_all()
    assert isinstance(await resumed(pair, permit, driver.session_id, 1), Refusal)


async def test_how_a_guest_moves_is_said_where_a_session_begins_and_not_again(site: Site) -> None:
    """A destination that goes by the document takes no `movement` in a resumption."""
    source = host_with(site, "a", LIMITS)

    async def play(conversation: Conversation, offer: Offer) -> None:
        if offer.purpose == "resume":
            await conversation.send(Refusal(RefusalCode.PERMIT_TIMES, "over"))

    async with fake_destination(open_host(site.relay_config("b")).credentials, play) as fake:
        order = MigrationOrder(site.permit(vm=VM), fake.address, how=How(multifd_channels=2))
        with trio.fail_after(20):
            await carry_as_source(source, order, unheard, trio.Event())
    assert [(offer.purpose, offer.movement) for offer in fake.offers] == [
        ("begin", Movement(multifd_channels=2)),
        ("resume", msgspec.UNSET),
    ]


async def test_a_resumption_that_is_refused_takes_no_session_from_the_connection_that_settles_it(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    """That one waited for an older connection to close, and gave way to a newer attempt, which was refused: the session
    had no connection, no end, and its VM could not come to this host any more."""
    permit = pair.site.permit(vm=VM)
    vm_listener.socket.listen(0)
    path = str(vm_listener.socket.getsockname())
    async with (
        await trio.open_unix_socket(path),  # fills the queue, so that the older connection closes when it is taken
        begun(pair, permit) as driver,
        Driver.connected(pair.address, pair.source.credentials) as settling,
    ):
        await driver.send(Open(0, "memory"))
        await trio.testing.wait_all_tasks_blocked(0.002)
        await settling.send(Offer(1, "settle", (permit,), driver.session_id, 1))
        await trio.testing.wait_all_tasks_blocked(0.002)
        refused = await resumed(pair, permit, driver.session_id, 2, {"0": 0})
        assert getattr(refused, "code", None) is RefusalCode.SESSION_UNKNOWN
        with trio.fail_after(5):
            for _ in range(2):
                await (await vm_listener.accept()).aclose()
        assert isinstance(await settling.hear(), Answer)
        await settling.send(Handover())
        assert await settling.hear() == Outcome("discarded")
