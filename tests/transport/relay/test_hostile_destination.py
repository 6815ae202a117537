"""A destination that the permit names, and that breaks every other rule: the stream ends, and the source is itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import pytest
import trio
from structlog.testing import capture_logs

from gateway.demo.guest import GuestLayout, build_boot_image, count_passes
from gateway.demo.machines import run_state, start_qemu, stop_qemu, wait_passes
from tests.transport.relay.conftest import host_with, unheard, until
from tests.transport.relay.hostile import Conversation, fake_destination
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.relay import log_rate
from transport.relay.host import RelayHost, open_host
from transport.relay.news import News
from transport.relay.source import MigrationOrder, carry_as_source
from transport.wire.messages import (
    Answer,
    Bye,
    Cancel,
    Handover,
    Message,
    Offer,
    Open,
    Outcome,
    Receipt,
    Refusal,
    encode_message,
)

VM = "11111111-2222-4333-8444-555555555555"
IMPATIENT = {"message_seconds": 2.0, "handshake_seconds": 5.0, "settle_retry_seconds": 0.05}
ESCAPES = '\x1b[2J\x1b]0;owned\x07\r\n{"level":"info"}\u202e\x9b31m'
Script = Callable[[Conversation], Awaitable[None]]


def says(*messages: Message | bytes) -> Script:
    async def play(source: Conversation) -> None:
        for message in messages:
            await source.send_bytes(message if isinstance(message, bytes) else encode_message(message))
        await source.hear_all()

    return play


def raw(text: str) -> bytes:
    return len(text).to_bytes(4, "big") + text.encode()


async def hang_up(source: Conversation) -> None:
    pass


async def say_nothing(source: Conversation) -> None:
    await source.hear_all()


async def answer_and_say_nothing_more(source: Conversation) -> None:
    await source.send(Answer({}, 16))
    await source.hear_all()


async def drip(source: Conversation) -> None:
    for byte in encode_message(Answer({}, 1)):
        await source.send_bytes(bytes([byte]))
        await trio.sleep(0.1)


async def carry(site: Site, source: RelayHost, script: Script, permit: str = "") -> tuple[News, list[News]]:
    """One session against the script; whoever comes to settle is told that no such session is known."""
    told: list[News] = []

    async def tell(news: News) -> None:
        told.append(news)

    async def play(conversation: Conversation, offer: Offer) -> None:
        if offer.purpose == "begin":
            await script(conversation)
        else:
            await says(Refusal(RefusalCode.SESSION_UNKNOWN, "who?"))(conversation)

    destination = open_host(site.relay_config("b")).credentials
    with trio.fail_after(20):
        async with fake_destination(destination, play) as fake:
            order = MigrationOrder(permit or site.permit(vm=VM), fake.address, deadline_seconds=3)
            news = await carry_as_source(source, order, tell, trio.Event())
    return news, told


@pytest.fixture
def source(site: Site) -> RelayHost:
    return host_with(site, "a", IMPATIENT)


SCRIPTS: dict[str, tuple[Script, str]] = {
    "answers with no channel": (says(raw('{"type":"answer","next":{},"max_channels":0}')), "does not decode"),
    "answers with 300 channels": (says(raw('{"type":"answer","next":{},"max_channels":300}')), "does not decode"),
    "answers twice": (says(Answer({}, 1), Answer({}, 1)), "Answer from the destination"),
    "says the outcome before the handover": (says(Answer({}, 1), Outcome("running")), "Outcome from the destination"),
    "says the outcome in place of an answer": (says(Outcome("running")), "Outcome from the destination"),
    "opens a channel": (says(Answer({}, 1), Open(0, "memory")), "Open from the destination"),
    "hands over": (says(Answer({}, 1), Handover()), "Handover from the destination"),
    "says bye": (says(Answer({}, 1), Bye()), "Bye from the destination"),
    "offers": (says(Offer(1, "begin", ("x",), "0" * 32, 1)), "Offer from the destination"),
    "sends a receipt unasked": (says(Answer({}, 1), Receipt("{}", "")), "nobody asked for"),
    "acknowledges what was not sent": (says(Answer({}, 1), raw('{"type":"ack","written":{"0":1}}')), "not open"),
    "sends more than 64 KiB": (says(b"\x00\x01\x00\x01"), "more than 64 KiB"),
    "sends what is no message": (says(raw('{"type":"answer"}')), "does not decode"),
    "hangs up": (hang_up, "ended"),
    "answers and hangs up": (lambda source: source.send(Answer({}, 1)), "ended"),
    "never answers": (say_nothing, "did not answer in time"),
    "drips its answer": (drip, "did not answer in time"),
    "cancels with escape sequences": (says(Answer({}, 1), Cancel("broken", ESCAPES)), "owned"),
    "refuses with escape sequences": (says(Refusal(RefusalCode.BUSY, ESCAPES)), "owned"),
}


@pytest.mark.parametrize("what", SCRIPTS)
async def test_whatever_it_does_the_session_fails_with_a_clear_word(site: Site, source: RelayHost, what: str) -> None:
    script, words = SCRIPTS[what]
    with capture_logs() as logs:
        news, told = await carry(site, source, script)
    assert news.state == "failed"
    assert words in news.message
    shown = [each.message for each in told] + [str(log.get("cause")) for log in logs]
    assert all(text.isprintable() and text.isascii() for text in shown), "a peer's words reach nobody raw"
    assert source.spool.receipts() != []
    assert list((source.spool.run_dir).iterdir()) == [], "no session folder is left"


async def test_a_destination_that_never_settles_keeps_no_caller_of_relay_open_waiting(
    site: Site, source: RelayHost
) -> None:
    async def play(conversation: Conversation, _: Offer) -> None:
        await conversation.send(Answer({}, 1))

    destination = open_host(site.relay_config("b")).credentials
    now = site.claims().iat
    permit = site.permit(vm=VM, exp=now + 1, session_until=now + 2)
    with trio.fail_after(10):
        async with fake_destination(destination, play) as fake:
            news = await carry_as_source(source, MigrationOrder(permit, fake.address), unheard, trio.Event())
    assert news.state == "failed"
    assert [(offer.purpose, offer.attempt) for offer in fake.offers] == [("begin", 0), ("settle", 1)]


async def test_a_destination_that_breaks_each_connection_fills_no_log(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_rate, "_SECONDS", 600.0)  # as if all of it came within a second
    source = host_with(site, "a", {**IMPATIENT, "resume_seconds": 20.0})
    cancelled = trio.Event()

    async def answer_and_leave(conversation: Conversation, offer: Offer) -> None:
        await conversation.send(Answer(offer.next, 1))
        if len(fake.offers) > 4:
            cancelled.set()

    destination = open_host(site.relay_config("b")).credentials
    with capture_logs() as logs, trio.fail_after(60):
        async with fake_destination(destination, answer_and_leave) as fake:
            await carry_as_source(source, MigrationOrder(site.permit(vm=VM), fake.address), unheard, cancelled)
    assert len(fake.offers) > 4
    said = [log["event"] for log in logs]
    assert [said.count(event) for event in ("connection lost", "session resumed")] == [1, 1]


async def test_what_the_destination_says_after_it_closed_a_lane_is_the_cause(site: Site, source: RelayHost) -> None:
    lane_closed, folder = trio.Event(), site.folder / "given"
    folder.mkdir()

    async def play(conversation: Conversation, offer: Offer) -> None:
        if offer.purpose == "begin":
            await conversation.send(Answer({}, 16))
            await lane_closed.wait()
            await trio.sleep(0.2)  # a busy host: the source has long seen that its lane is gone
            await conversation.send(Cancel("port", "nobody listens there"))
        else:
            await conversation.send(Refusal(RefusalCode.SESSION_UNKNOWN, "who?"))

    async def close(lane: trio.SocketStream) -> None:
        await lane.aclose()
        lane_closed.set()

    async def connect(news: News) -> None:
        if news.state == "running":
            await held.enter_async_context(await trio.open_unix_socket(folder / "program.sock"))

    destination = open_host(site.relay_config("b")).credentials
    with trio.fail_after(20):
        async with AsyncExitStack() as held, fake_destination(destination, play, close) as fake:
            order = MigrationOrder(site.permit(vm=VM), fake.address, deadline_seconds=10)
            news = await carry_as_source(source, order, connect, trio.Event(), folder / "program.sock")
    assert news.state == "failed"
    assert "nobody listens there" in news.message
    assert [offer.purpose for offer in fake.offers] == ["begin", "settle"], "it is not taken for a lost connection"


@pytest.mark.real
async def test_a_guest_goes_on_at_the_source_when_the_destination_claims_it_without_a_handover(site: Site) -> None:
    layout = GuestLayout.for_memory(32, 2)
    machine = await start_qemu(site.folder / "qa" / VM, VM, memory_mib=32, image=build_boot_image(layout, site.folder))
    hypervisor = {"kind": "qmp", "qmp_socket": str(site.folder / "qa" / "{uuid}" / "qmp.sock")}
    try:
        counted = await wait_passes(machine, 3)
        source = host_with(site, "a", IMPATIENT, **hypervisor)
        for words in ([Outcome("running")], [Answer({}, 16), Outcome("running")], [Answer({}, 16), Open(0, "memory")]):
            news, _ = await carry(site, source, says(*words))
            assert news.state == "failed"
            assert await run_state(machine) == "running"
        for silent in (say_nothing, answer_and_say_nothing_more):
            assert (await carry(site, source, silent))[0].state == "failed"
            assert await run_state(machine) == "running"
        await wait_passes(machine, count_passes(machine.printed()) + counted)
    finally:
        await stop_qemu(machine)


@pytest.mark.real
async def test_a_guest_may_move_elsewhere_while_its_first_destination_cannot_be_reached(site: Site) -> None:
    """Until it hears of it, the first one may hold a whole guest; it can never run it, so nobody has to wait for it,
    nor for its place, of which this host has one."""
    layout = GuestLayout.for_memory(32, 2)
    machine = await start_qemu(site.folder / "qa" / VM, VM, memory_mib=32, image=build_boot_image(layout, site.folder))
    hypervisor = {"kind": "qmp", "qmp_socket": str(site.folder / "qa" / "{uuid}" / "qmp.sock")}
    source = host_with(site, "a", {**IMPATIENT, "max_moves": 1}, **hypervisor)
    credentials = open_host(site.relay_config("b")).credentials
    told: list[News] = []

    async def tell(news: News) -> None:
        told.append(news)

    async def answer_once_and_vanish(conversation: Conversation, offer: Offer) -> None:
        if offer.purpose == "begin" and offer.permits == (first,):
            await conversation.send(Answer({}, 16))

    async def refuse(conversation: Conversation, _: Offer) -> None:
        await conversation.send(Refusal(RefusalCode.HYPERVISOR, "not ready"))

    first, second = site.permit(vm=VM), site.permit(vm=VM)
    try:
        await wait_passes(machine, 3)
        with trio.fail_after(20):
            async with (
                fake_destination(credentials, answer_once_and_vanish) as gone,
                fake_destination(credentials, refuse) as other,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(carry_as_source, source, MigrationOrder(first, gone.address), tell, trio.Event())
                await until(lambda: [news.state for news in told][-1:] == ["failed"])
                await until(lambda: len(gone.offers) > 2)
                news = await carry_as_source(source, MigrationOrder(second, other.address), unheard, trio.Event())
                assert "not ready" in news.message
                nursery.cancel_scope.cancel()
        assert await run_state(machine) == "running"
    finally:
        await stop_qemu(machine)
