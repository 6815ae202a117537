"""A source that is authenticated, has a good permit, and breaks every other rule: it harms its own session alone."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
import trio
import trio.testing
from OpenSSL import SSL
from structlog.testing import capture_logs

from certs import layout
from certs.authority import Authority
from certs.tls import local_leaf_sha256
from gateway.demo.machines import run_state, start_qemu, stop_qemu
from tests.transport.journals import journals
from tests.transport.relay.conftest import Pair, host_with, running_relay, serving, until
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import dial, listen
from tests.transport.site import Site
from transport.errors import RefusalCode
from transport.hypervisors.errors import HypervisorTimeout
from transport.relay import log_rate
from transport.relay.host import RelayHost, now, open_host
from transport.relay.receipts import ReceiptFacts, make_receipt
from transport.relay.socket_ends import SocketDestination
from transport.wire.control import Role
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
    Receipt,
    Refusal,
    encode_message,
)

pytestmark = pytest.mark.whole

VM = "11111111-2222-4333-8444-555555555555"
OTHER_VM = "99999999-2222-4333-8444-555555555555"
IMPATIENT = {"message_seconds": 2.0, "handshake_seconds": 2.0, "drain_seconds": 2.0}


async def require_still_carrying(pair: Pair) -> None:
    """The relay carries an honest source's session, whole."""
    listener = listen(pair.site, str(vm := uuid.uuid4()))
    path = pair.site.folder / f"{vm.hex[:8]}.sock"
    told = len(pair.news)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.carry, pair.site.permit(vm=str(vm)), path)
            source, destination = await dial(path), await listener.accept()
            await source.send_all(b"guest")
            assert await destination.receive_some(100) == b"guest"
            await source.aclose()
            await destination.aclose()
    await listener.aclose()
    assert pair.news[told:][-1].state == "completed"


@contextlib.asynccontextmanager
async def begun(pair: Pair, permit: str) -> AsyncIterator[Driver]:
    """A hostile source whose offer was answered; the VM's socket listens."""
    async with Driver.connected(pair.address, pair.source.credentials) as driver:
        answer = await driver.offer(permit)
        assert isinstance(answer, Answer), answer
        yield driver


def states(host: RelayHost) -> list[str]:
    """The state of every session that the destination has noted."""
    noted = journals(host.spool.run_dir.parent / "journals", "destination-*.jsonl")
    return sorted(json.loads(lines[-1])["state"] for lines in noted.values() if lines)


def receipt_outcomes(host: RelayHost) -> list[str]:
    return [json.loads(json.loads(p.read_bytes())["receipt"]["body"])["outcome"] for p in host.spool.receipts()]


@pytest.fixture
async def vm_listener(site: Site) -> AsyncIterator[trio.SocketListener]:
    async with listen(site, VM) as listener:
        yield listener


@pytest.fixture
async def impatient(site: Site) -> AsyncIterator[Pair]:
    """A destination whose deadlines are short."""
    async with serving(host_with(site, "b", IMPATIENT)) as (destination, address):
        yield Pair(site, open_host(site.relay_config("a")), destination, address)


def signed_receipt(host: RelayHost, permit: str) -> Receipt:
    """A receipt that this host has really signed, of a session that never was."""
    verified = host.permits.verify(permit, source=None, destination=None)
    facts = ReceiptFacts(Role.SOURCE, verified, "uuid", now(), local_leaf_sha256(host.credentials))
    return make_receipt(facts, host.credentials, now())


BAD_RECEIPT = Receipt("{}", base64.b64encode(b"no signature").decode())
JUNK = (
    b"",
    b"null",
    b"[]",
    b"{",
    b'{"type":"open"}',
    b'{"type":"open","channel":0,"port":"memory","more":1}',
    b'{"type":"open","channel":true,"port":"memory"}',
    b'{"type":"open","channel":256,"port":"memory"}',
    b'{"type":"open","channel":-1,"port":"memory"}',
    b'{"type":"nothing"}',
    b'{"type":"cancel","code":"a","reason":"\xff"}',
    b'{"type":"cancel","code":"a","reason":"\\ud800"}',
    b'{"type":"cancel","code":"A\\u001b[2J","reason":""}',
    b'{"type":"ack","written":{"00":0}}',
    b'{"type":"ack","written":{"0":1e400}}',
    b"[" * 60_000,
)
VIOLATIONS: dict[str, list[Message | bytes]] = {
    "the first channel is 1": [Open(1, "memory")],
    "a channel is opened twice": [Open(0, "memory"), Open(0, "memory")],
    "a channel is left out": [Open(0, "memory"), Open(2, "memory")],
    "a channel beyond what was answered": [Open(0, "memory"), Open(1, "memory"), Open(2, "memory")],
    "a port that the permit does not name": [Open(0, "libvirt")],
    "an Ack for a channel that is not open": [Ack({"0": 0})],
    "an Ack of frames that were not sent": [Open(0, "memory"), Ack({"0": 1})],
    "a second Offer": [Offer(1, "begin", ("x",), "0" * 32, 1)],
    "an Answer": [Answer({}, 1)],
    "an Outcome": [Outcome("running")],
    "a Refusal": [Refusal(RefusalCode.BUSY, "no")],
    "a receipt with a bad signature": [BAD_RECEIPT],
    "a message of more than 64 KiB": [(64 * 1024 + 1).to_bytes(4, "big")],
    "the largest length there is": [b"\xff\xff\xff\xff"],
    **{f"junk: {junk[:60]!r}": [len(junk).to_bytes(4, "big") + junk] for junk in JUNK},
}


@pytest.mark.parametrize("what", VIOLATIONS)
async def test_a_violation_ends_the_session_and_nothing_else(
    pair: Pair, vm_listener: trio.SocketListener, what: str
) -> None:
    limits = type(pair.site.claims().limits)(max_channels=2, bandwidth_bytes_per_second=0)
    with capture_logs() as logs:
        async with begun(pair, pair.site.permit(vm=VM, limits=limits)) as driver:
            for message in VIOLATIONS[what]:
                await driver.send_bytes(message if isinstance(message, bytes) else encode_message(message))
            heard = await driver.hear_all()
        await until(lambda: states(pair.destination) == ["discarded"])
    assert heard == [Cancel("broken", "the destination relay ended the session")]
    assert [log for log in logs if "broke the wire protocol" in str(log.get("cause"))]
    assert "\\u001b" not in str(logs)
    await require_still_carrying(pair)


@pytest.mark.parametrize("first", [Open(0, "memory"), Handover(), Bye(), Cancel("a", ""), Ack({}), BAD_RECEIPT])
async def test_whatever_comes_before_the_offer_is_answered_by_silence(pair: Pair, first: Message) -> None:
    async with Driver.connected(pair.address, pair.source.credentials) as driver:
        await driver.send(first)
        assert await driver.hear_all() == []
    assert states(pair.destination) == []
    await require_still_carrying(pair)


async def test_an_acknowledgement_that_falls_ends_the_session(pair: Pair, vm_listener: trio.SocketListener) -> None:
    async with begun(pair, pair.site.permit(vm=VM)) as driver:
        await driver.send(Open(0, "memory"))
        vm = await vm_listener.accept()
        async with vm, await driver.lane(0) as lane:
            await vm.send_all(b"to the source")
            assert await lane.receive_some(100)
            await driver.send(Ack({"0": 1}), Ack({"0": 0}))
            assert isinstance(await driver.hear(), Cancel)
    await until(lambda: states(pair.destination) == ["discarded"])
    await require_still_carrying(pair)


async def test_what_is_said_after_the_outcome_changes_it_no_more(pair: Pair, vm_listener: trio.SocketListener) -> None:
    async with begun(pair, pair.site.permit(vm=VM)) as driver:
        await driver.send(Handover(), Handover(), Cancel("late", "changed my mind"), Handover())
        assert await driver.hear() == Outcome("discarded")
        await driver.send(Open(0, "memory"), Bye())
        assert await driver.hear_all() == []
    await until(lambda: states(pair.destination) == [])
    await require_still_carrying(pair)


async def test_cancel_and_handover_at_once_have_one_outcome(pair: Pair, vm_listener: trio.SocketListener) -> None:
    async with begun(pair, pair.site.permit(vm=VM)) as driver:
        await driver.send(Cancel("both", ""), Cancel("both", ""), Handover())
        assert await driver.hear() == Outcome("discarded")
        await driver.send(Bye())
        assert await driver.hear_all() == []
    await require_still_carrying(pair)


async def test_a_session_is_settled_only_by_its_own_host_under_its_own_permit_and_forward(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    site = pair.site
    layout.issue_host(site.certs, "c", datetime.now(UTC))
    stranger = open_host(site.relay_config("c")).credentials
    own = pair.source.credentials
    permit = site.permit(vm=VM)
    async with begun(pair, permit) as driver:
        session_id = driver.session_id
        for credentials, token, attempt, code in (
            (stranger, permit, 5, RefusalCode.SESSION_UNKNOWN),
            (stranger, site.permit(vm=VM, source=site.spiffe("c")), 5, RefusalCode.SESSION_UNKNOWN),
            (own, site.permit(vm=VM), 5, RefusalCode.SESSION_UNKNOWN),
            (own, permit, 0, RefusalCode.PROTOCOL),
        ):
            async with Driver.connected(pair.address, credentials) as other:
                said = await other.offer(token, session_id=session_id, attempt=attempt, purpose="settle")
                assert isinstance(said, Refusal)
                assert said.code is code
                assert await other.hear_all() == []
        # None of it has touched the session's own connection.
        await driver.send(Open(0, "memory"))
        await (await vm_listener.accept()).aclose()
        async with Driver.connected(pair.address, own) as again:
            answer = await again.offer(permit, session_id=session_id, attempt=1, purpose="settle")
            assert isinstance(answer, Answer)
            assert await driver.hear() is None, "the older connection is closed first"
            await again.send(Handover())
            assert await again.hear() == Outcome("discarded")
    await require_still_carrying(pair)


async def test_many_settling_at_once_leave_one_connection_and_one_outcome(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    permit = pair.site.permit(vm=VM)
    heard: list[Message] = []
    async with begun(pair, permit) as driver:

        async def settle(attempt: int) -> None:
            async with Driver.connected(pair.address, pair.source.credentials) as other:
                await other.offer(permit, session_id=driver.session_id, attempt=attempt, purpose="settle")
                with contextlib.suppress(trio.BrokenResourceError, SSL.Error):  # a newer one has ended it
                    await other.send(Handover(), Bye())
                heard.extend(await other.hear_all())

        async with trio.open_nursery() as nursery:
            for attempt in range(1, 9):
                nursery.start_soon(settle, attempt)
    assert {message for message in heard if isinstance(message, Outcome)} == {Outcome("discarded")}
    await until(lambda: set(states(pair.destination)) <= {"ended", "discarded"})
    await require_still_carrying(pair)


async def test_a_permit_is_spent_by_its_first_session(pair: Pair, vm_listener: trio.SocketListener) -> None:
    permit = pair.site.permit(vm=VM)
    async with begun(pair, permit) as driver:
        await driver.send(Handover())
        assert await driver.hear() == Outcome("discarded")
        same = driver.session_id
        await driver.send(Bye())
        assert await driver.hear_all() == []
    await until(lambda: states(pair.destination) == [])
    for session_id in (same, "0" * 32):
        code = RefusalCode.SESSION_KNOWN
        with trio.fail_after(10):
            while code is RefusalCode.SESSION_KNOWN:  # its journal is gone before it is forgotten
                async with Driver.connected(pair.address, pair.source.credentials) as driver:
                    said = await driver.offer(permit, session_id=session_id, attempt=9)
                    assert isinstance(said, Refusal)
                    code = said.code
        assert code is RefusalCode.PERMIT_REPLAYED
    await require_still_carrying(pair)


async def test_a_second_relay_of_the_host_refuses_a_spent_permit_and_leaves_the_firsts_sessions_alone(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    permit = pair.site.permit(vm=VM)
    # By these it is noticed, and does not start; what a permit and a session are safe by does not rest on them.
    pair.destination.control_socket.unlink()
    (pair.site.folder / "relay-b" / "serving.lock").unlink()
    async with begun(pair, permit) as driver, running_relay(pair.site, "b") as (_, second):
        async with Driver.connected(second, pair.source.credentials) as other:
            said = await other.offer(permit)
            assert isinstance(said, Refusal)
            assert said.code is RefusalCode.PERMIT_REPLAYED
        assert states(pair.destination) == ["prepared"], "the second relay must not recover a live session"
        await driver.send(Open(0, "memory"))
        await (await vm_listener.accept()).aclose()
    await require_still_carrying(pair)


async def test_another_session_of_a_vm_that_is_under_way_is_refused_as_busy(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    async with begun(pair, pair.site.permit(vm=VM)) as driver:
        async with Driver.connected(pair.address, pair.source.credentials) as other:
            said = await other.offer(pair.site.permit(vm=VM))
            assert isinstance(said, Refusal)
            assert said.code is RefusalCode.BUSY
        async with Driver.connected(pair.address, pair.source.credentials) as other:
            said = await other.offer(pair.site.permit(vm=OTHER_VM), session_id=driver.session_id)
            assert isinstance(said, Refusal)
            assert said.code is RefusalCode.SESSION_KNOWN
    await require_still_carrying(pair)


async def test_two_sessions_of_one_name_at_once_do_not_take_each_others_place(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    """Under two permits: the one that came first goes on, and is served; the other's permit is not spent."""
    said: dict[str, Message | None] = {}
    permits = {vm: pair.site.permit(vm=vm) for vm in (VM, OTHER_VM)}

    async def offer(vm: str) -> None:
        async with Driver.connected(pair.address, pair.source.credentials) as driver:
            said[vm] = await driver.offer(permits[vm], session_id="2" * 32)
            await until(lambda: len(said) == 2)

    async with listen(pair.site, OTHER_VM), trio.open_nursery() as nursery:
        for vm in permits:
            nursery.start_soon(offer, vm)
    refused = {vm: answer for vm, answer in said.items() if isinstance(answer, Refusal)}
    assert [answer.code for answer in refused.values()] == [RefusalCode.SESSION_KNOWN], said
    async with Driver.connected(pair.address, pair.source.credentials) as driver:
        assert isinstance(await driver.offer(permits[next(iter(refused))]), Answer)
    await require_still_carrying(pair)


async def test_the_same_offer_many_times_at_once_is_taken_once(pair: Pair, vm_listener: trio.SocketListener) -> None:
    permit = pair.site.permit(vm=VM)
    said: list[Message | None] = []

    async def offer() -> None:
        async with Driver.connected(pair.address, pair.source.credentials) as driver:
            said.append(await driver.offer(permit, session_id="1" * 32))
            await until(lambda: len(said) == 8)

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(offer)
    assert sum(isinstance(message, Answer) for message in said) == 1
    assert sum(isinstance(message, Refusal) for message in said) == 7
    await require_still_carrying(pair)


async def test_a_source_that_drips_its_offer_meets_the_deadline(impatient: Pair) -> None:
    offer = encode_message(Offer(1, "begin", (impatient.site.permit(vm=VM),), "0" * 32, 0))
    async with Driver.connected(impatient.address, impatient.source.credentials) as driver:
        with trio.fail_after(20), contextlib.suppress(trio.BrokenResourceError):
            for n in range(len(offer)):
                await driver.send_bytes(offer[n : n + 1])
                await trio.sleep(0.05)
        assert await driver.hear_all() == []
    assert states(impatient.destination) == []
    await require_still_carrying(impatient)


async def test_a_source_that_says_nothing_more_meets_the_sessions_deadline(
    site: Site, vm_listener: trio.SocketListener
) -> None:
    limits = IMPATIENT | {"migration_deadline_seconds": 1.0}
    async with serving(host_with(site, "b", limits)) as (destination, address):
        pair = Pair(site, open_host(site.relay_config("a")), destination, address)
        async with begun(pair, site.permit(vm=VM)) as driver:
            assert await driver.hear_all() == [Cancel("deadline", "the destination relay ended the session")]
        await until(lambda: states(destination) == ["discarded"])
        await require_still_carrying(pair)


async def test_a_lane_that_was_announced_and_never_comes_ends_the_session(
    impatient: Pair, vm_listener: trio.SocketListener
) -> None:
    async with begun(impatient, impatient.site.permit(vm=VM)) as driver:
        await driver.send(Open(0, "memory"))
        assert isinstance(await driver.hear(), Cancel)
    await until(lambda: states(impatient.destination) == ["discarded"])
    await require_still_carrying(impatient)


async def test_a_source_that_never_reads_keeps_only_its_own_session_waiting(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    async with begun(pair, pair.site.permit(vm=VM)) as driver:
        await driver.send(Open(0, "memory"))
        vm = await vm_listener.accept()
        async with vm, await driver.lane(0):
            sent = 0
            with trio.move_on_after(1):  # until every buffer on the way is full
                while sent < 1 << 28:
                    await vm.send_all(bytes(1 << 20))
                    sent += 1 << 20
            assert sent < 1 << 28, "the relay must not take what nobody reads"
            await require_still_carrying(pair)


@pytest.mark.parametrize(
    "last",
    [[Bye()], [Handover(), Bye()], [Open(0, "memory"), Open(0, "memory")], []],
    ids=["bye", "handover, bye", "violation", "hang up"],
)
@pytest.mark.real
async def test_a_vm_to_which_nothing_was_sent_is_discarded_and_not_left_waiting(
    site: Site, last: list[Message]
) -> None:
    vm = await start_qemu(site.folder / "qb" / VM, VM, memory_mib=16, incoming=True)
    hypervisor = {"kind": "qmp", "qmp_socket": str(site.folder / "qb" / "{uuid}" / "qmp.sock")}
    host = host_with(site, "b", {"drain_seconds": 0.5, "hypervisor_seconds": 1.0}, **hypervisor)
    try:
        async with serving(host) as (destination, address):
            pair = Pair(site, open_host(site.relay_config("a")), destination, address)
            async with begun(pair, site.permit(vm=VM)) as driver:
                await driver.send(*last)
                if last:
                    await driver.hear_all()
            await until(lambda: vm.ended)
            # What has ended is forgotten at once: then there is no journal left to look at.
            await until(lambda: states(destination) in (["discarded"], ["ended"], []))
    finally:
        await stop_qemu(vm)


@pytest.mark.real
async def test_no_receipt_certifies_a_guest_that_was_not_handed_over(site: Site) -> None:
    vm = await start_qemu(site.folder / "qb" / VM, VM, memory_mib=16, incoming=True)
    hypervisor = {"kind": "qmp", "qmp_socket": str(site.folder / "qb" / "{uuid}" / "qmp.sock")}
    host = host_with(site, "b", {"drain_seconds": 0.5}, **hypervisor)
    try:
        async with serving(host) as (destination, address):
            source = open_host(site.relay_config("a"))
            pair = Pair(site, source, destination, address)
            permit = site.permit(vm=VM)
            async with begun(pair, permit) as driver:
                await driver.send(signed_receipt(source, permit))
                assert not [m for m in await driver.hear_all() if isinstance(m, Receipt)]
            await until(lambda: receipt_outcomes(destination) == ["discarded"])
            assert await run_state(vm) == "gone"
    finally:
        await stop_qemu(vm)


async def test_what_a_host_does_again_and_again_fills_no_log(
    pair: Pair, vm_listener: trio.SocketListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A certificate is enough for the first, a permit for the others; each took a line, or two."""
    monkeypatch.setattr(log_rate, "_SECONDS", 600.0)  # as if all of it came within a second
    with capture_logs() as logs:
        for _ in range(12):
            async with Driver.connected(pair.address, pair.source.credentials) as driver:
                await driver.send(Bye())
                await driver.hear_all()
        permit = pair.site.permit(vm=VM)
        async with begun(pair, permit) as first:
            pass
        for purpose in ("resume", "settle"):
            for attempt in range(1, 13):
                async with Driver.connected(pair.address, pair.source.credentials) as driver:
                    number = attempt + (100 if purpose == "settle" else 0)
                    await driver.offer(permit, session_id=first.session_id, attempt=number, purpose=purpose)
                    if purpose == "settle":
                        await driver.send(Handover())
                        await driver.hear()
        await until(lambda: states(pair.destination) == ["discarded"])
    said = [log["event"] for log in logs if log["log_level"] in {"info", "warning", "error"}]
    assert [said.count(each) for each in ("control connection ended", "session broke", "offer refused")] == [1, 1, 1]
    assert len(said) <= 8, said


class Stuck(SocketDestination):
    """Of a hypervisor that hangs over the end of its guest. `asked`: how often it was to end it."""

    vm_binding = "uuid"
    hands_over = True
    asked = 0

    async def discard(self) -> None:
        self.asked += 1
        await trio.sleep(0.01)
        raise HypervisorTimeout("it hangs")


async def comes_again_and_again(site: Site, address: str, saying: Message) -> None:
    """A source that begins a session, and then settles it twenty times, with a connection each time that it leaves."""
    credentials = open_host(site.relay_config("a")).credentials
    permit, name = site.permit(vm=VM), "7" * 32
    for attempt in range(21):
        async with Driver.connected(address, credentials) as driver:
            await driver.offer(permit, session_id=name, attempt=attempt, purpose="settle" if attempt else "begin")
            await driver.send(saying)


async def test_a_hypervisor_that_hangs_is_asked_no_more_often_for_each_time_that_its_source_comes(
    site: Site, vm_listener: trio.SocketListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection that was lost left one more behind who asked for ever, each with its lines in the log, and the
    source that came at last waited behind all of them."""
    end = Stuck(site.folder / "vm" / VM / "memory.sock")
    monkeypatch.setattr(RelayHost, "destination_end", lambda *_: end)
    async with serving(host_with(site, "b", {**IMPATIENT, "settle_retry_seconds": 0.2})) as (_, address):
        await comes_again_and_again(site, address, Cancel("abandoned", ""))
        await trio.sleep(0.5)
        before = end.asked
        await trio.sleep(1)
        assert 0 < end.asked - before <= 1 / 0.2


async def test_who_asks_again_and_again_for_an_outcome_that_does_not_come_leaves_few_behind(
    site: Site, vm_listener: trio.SocketListener, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, may_answer = Stuck(site.folder / "vm" / VM / "memory.sock"), trio.Event()

    async def wait(*_: object) -> bool:
        await may_answer.wait()
        return False

    monkeypatch.setattr(Stuck, "wait_loaded", wait)
    monkeypatch.setattr(RelayHost, "destination_end", lambda *_: end)
    async with serving(host_with(site, "b", {**IMPATIENT, "settle_retry_seconds": 60.0})) as (_, address):
        await comes_again_and_again(site, address, Handover())
        await trio.testing.wait_all_tasks_blocked(0.05)
        may_answer.set()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < end.asked <= 6


async def test_a_host_that_is_revoked_before_it_offers_is_refused_though_it_was_let_in(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    """Half a minute of silence was enough to begin a session after its relay had known of the revocation."""
    permit = pair.site.permit(vm=VM)
    async with (
        Driver.connected(pair.address, pair.source.credentials) as renewed,
        Driver.connected(pair.address, pair.source.credentials) as revoked,
    ):
        pair.destination.identity.reload(now())
        said = await renewed.offer(pair.site.permit(vm=OTHER_VM))
        assert isinstance(said, Refusal), "nobody listens there, and that is all that is said against it"
        assert said.code is RefusalCode.HYPERVISOR
        serial = pair.source.credentials.chain[0].serial_number
        Authority.load(pair.site.certs).revoke(serial, datetime.now(UTC))
        pair.destination.identity.reload(now())
        assert await revoked.offer(permit) is None
    assert states(pair.destination) == []


async def test_an_acknowledgement_on_a_channel_that_came_too_late_is_none_and_no_bug(
    pair: Pair, vm_listener: trio.SocketListener
) -> None:
    """It was announced once the destination had chosen, which did not dial for it; each time there was a traceback."""
    with capture_logs() as logs:
        async with begun(pair, pair.site.permit(vm=VM)) as driver:
            await driver.send(Handover())
            assert await driver.hear() == Outcome("discarded")
            await driver.send(Open(0, "memory"), Ack({"0": 0}), Bye())
            assert await driver.hear_all() == []
    assert not [log for log in logs if log["event"].startswith("bug")]
    await until(lambda: states(pair.destination) == [])
    await require_still_carrying(pair)
