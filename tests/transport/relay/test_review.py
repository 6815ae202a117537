"""What a hostile reading of the relay found: each test failed before its fix."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections import Counter
from pathlib import Path

import pytest
import trio
import trio.testing

from certs.tls import local_leaf_sha256
from tests.transport.hypervisors.test_qmp import greet, monitor
from tests.transport.journals import journals
from tests.transport.relay.conftest import Pair, until
from tests.transport.relay.hostile import Driver
from tests.transport.relay.test_carriage import VM, listen
from transport.errors import ConnectionBroken, LocalBroken, SpoolFailed
from transport.hypervisors.errors import HypervisorGone, HypervisorUnreachable
from transport.hypervisors.migration_settings import MigrationSettings
from transport.hypervisors.process import is_gone, process_identity
from transport.hypervisors.qmp import QmpConnection
from transport.relay import handover
from transport.relay.control import ControlLink
from transport.relay.dialling import offered
from transport.relay.ends import Milestones, Report, SourceEnd
from transport.relay.handover import close_source, settle_source
from transport.relay.host import RelayHost, now
from transport.relay.inlets import SourceLanes, listen_unix
from transport.relay.news import News, Tell
from transport.relay.outgoing import Leaving, connect
from transport.relay.qmp_source import QmpSource
from transport.relay.receipts import ReceiptFacts
from transport.relay.socket_ends import SocketSource
from transport.relay.source_session import SourceSession
from transport.relay.spool import Spool
from transport.wire.control import Role
from transport.wire.messages import Bye, Cancel, Handover, Message, Open

pytestmark = pytest.mark.whole


def test_a_living_process_is_not_gone_when_no_descriptor_is_left_to_look_at_it() -> None:
    identity = process_identity(os.getpid())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (_used_descriptors() + 3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                held.append(os.dup(0))
        with pytest.raises(HypervisorUnreachable):
            is_gone(identity)
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not is_gone(identity)
    boot, pid, start = identity.split(":")
    assert is_gone(f"{boot}:{pid}:{int(start) + 1}")
    assert is_gone(f"other-boot:{pid}:{start}")


def _used_descriptors() -> int:
    return max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())


class GoneSource(SocketSource):
    """A source's end whose hypervisor has died."""

    async def is_gone(self) -> bool:
        return True

    async def resume_guest(self) -> None:
        raise HypervisorUnreachable("nobody there")


async def handed_over(pair: Pair, session_id: str, token: str) -> SourceSession:
    """A source session that a restarted relay finds handed over."""
    host = pair.source
    permit = host.permits.verify(token, source=host.spiffe_id, destination=None)
    facts = ReceiptFacts(Role.SOURCE, permit, "none", now(), local_leaf_sha256(host.credentials))
    journal = host.spool.begin(Role.SOURCE, session_id, session_id=session_id)
    journal.append("handed-over")
    journal.facts["recovered"] = True
    return SourceSession(host, permit, pair.address, journal, facts)


async def settle_and_close(session: SourceSession, end: SourceEnd, tell: Tell) -> News:
    await settle_source(session, end, tell)
    return await close_source(session, tell)


@pytest.mark.parametrize("is_source_gone", [True, False])
async def test_the_outcome_is_durable_before_the_destination_may_forget_it(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, is_source_gone: bool
) -> None:
    token = pair.site.permit(vm=VM)
    session = await handed_over(pair, "1" * 32, token)
    listener = listen(pair.site)
    async with offered(pair.source, session.permit, pair.address, "1" * 32, 0, "begin"):
        pass  # broken at once
    states: list[str] = []
    send = ControlLink.send

    async def noting_send(link: ControlLink, message: Message) -> None:
        if isinstance(message, Bye):
            states.append(session.journal.state)
        await send(link, message)

    monkeypatch.setattr(ControlLink, "send", noting_send)
    with trio.fail_after(10):
        news = await settle_and_close(
            session, GoneSource(frozenset()) if is_source_gone else SocketSource(frozenset()), pair.tell
        )
    await listener.aclose()
    assert states == ["outcome-discarded"]
    assert news.state == "failed"
    assert session.journal.is_ended


async def test_a_source_whose_hypervisor_died_does_not_wait_for_ever(
    pair: Pair,
) -> None:
    session = await handed_over(pair, "1" * 32, pair.site.permit(vm=VM))
    with trio.fail_after(10):
        news = await settle_and_close(session, GoneSource(frozenset()), pair.tell)
    assert news.state == "failed"
    paused_here = await handed_over(pair, "2" * 32, pair.site.permit(vm=VM))
    with trio.move_on_after(1) as patience:
        await settle_and_close(paused_here, SocketSource(frozenset()), pair.tell)
    assert patience.cancelled_caught  # a guest that is here stays paused: only an operator may decide
    assert paused_here.journal.state == "handed-over"


async def test_a_destination_hears_that_the_source_keeps_the_guest_also_after_a_restart(pair: Pair) -> None:
    token = pair.site.permit(vm=VM)
    session = await handed_over(pair, "1" * 32, token)
    session.journal.state = "resumed"
    listener = listen(pair.site)
    async with offered(pair.source, session.permit, pair.address, "1" * 32, 0, "begin"):
        with trio.fail_after(10):
            await settle_and_close(session, SocketSource(frozenset()), pair.tell)
    await listener.aclose()
    assert session.was_answered


async def test_a_destination_that_vanishes_again_and_again_keeps_a_bounded_number_of_sessions_waiting(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may move a VM there would else fill this relay: none of them holds a place any more."""
    tries: Counter[str] = Counter()

    async def vanished(session: SourceSession, _: Handover | Cancel) -> None:
        tries[session.session_id] += 1
        raise ConnectionBroken("nobody is there any more")

    monkeypatch.setattr(handover, "_settle_with", vanished)
    monkeypatch.setattr(handover, "_MAX_UNTOLD", 2, raising=False)
    sessions = [await handed_over(pair, str(number) * 32, pair.site.permit(vm=VM)) for number in range(3)]
    for session in sessions:
        session.journal.state, session.facts.vm_binding = "resumed", "uuid"
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for session in sessions[:2]:
                nursery.start_soon(close_source, session, pair.tell)
            await until(lambda: all(tries[session.session_id] > 1 for session in sessions[:2]))
            await close_source(sessions[2], pair.tell)
            nursery.cancel_scope.cancel()
    assert tries[sessions[2].session_id] == 1
    assert [session.journal.is_ended for session in sessions] == [False, False, True]
    with pair.source.waiting_to_tell(sessions[0].permit.claims.destination) as others:
        assert others == 0, "who is told, or stopped, waits no more"


async def test_a_relay_that_drains_leaves_it_to_its_successor_to_tell_a_destination_that_is_gone(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A destination that answers and vanishes would else keep the upgrade of its source waiting for 30 days."""
    tries: list[str] = []

    async def vanished(session: SourceSession, _: Handover | Cancel) -> None:
        tries.append(session.session_id)
        raise ConnectionBroken("nobody is there any more")

    monkeypatch.setattr(handover, "_settle_with", vanished)
    session = await handed_over(pair, "1" * 32, pair.site.permit(vm=VM))
    session.journal.state, session.facts.vm_binding = "resumed", "uuid"
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(close_source, session, pair.tell)
            await until(lambda: len(tries) > 1)
            pair.source.board.is_draining = True
    assert [news.state for news in pair.news] == ["failed"]
    assert session.journal.state == "resumed", "what its successor is owed"
    assert pair.source.spool.receipts() == []


async def test_a_command_cancelled_before_it_was_sent_spoils_no_monitor(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.send_all(b'{"return": {}, "id": 2}\r\n')
        await trio.sleep_forever()

    async with monitor(tmp_path / "s", play):
        connection = await QmpConnection.connect(tmp_path / "s", deadline_seconds=5)
        async with connection, trio.open_nursery() as nursery:
            held = trio.Event()
            with trio.CancelScope() as scope:

                async def hold() -> None:
                    async with connection._turn:
                        held.set()
                        await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()  # the command has its turn by now, and has sent nothing

                nursery.start_soon(hold)
                await held.wait()
                await connection.execute("query-status", deadline_seconds=5)
            assert scope.cancelled_caught
            assert connection.is_usable


async def test_a_spoilt_monitor_is_opened_anew(tmp_path: Path) -> None:
    async def play(stream: trio.SocketStream) -> None:
        await greet(stream)
        await stream.receive_some(4096)
        await stream.send_all(b'{"return": {"UUID": "%s"}, "id": 2}\r\n' % VM.encode())

    end = QmpSource(tmp_path / "s", VM, "", MigrationSettings(), 5)
    for _ in range(2):
        async with monitor(tmp_path / "s", play):
            machine = await end.machine()
            assert machine.is_usable
            with pytest.raises(HypervisorGone):
                await machine.status()
        (tmp_path / "s").unlink()
    await end.__aexit__(None, None, None)


@pytest.mark.parametrize("name", ["a..b", "x" * 70 + ".y"])
async def test_a_destination_whose_name_is_none_is_a_broken_connection(name: str) -> None:
    with pytest.raises(ConnectionBroken):
        await connect((name, 1), Leaving(), 1.0)


async def test_a_connection_that_only_settles_carries_nothing(pair: Pair) -> None:
    token = pair.site.permit(vm=VM)
    permit = pair.source.permits.verify(token, source=pair.source.spiffe_id, destination=None)
    listener = listen(pair.site)
    async with (
        offered(pair.source, permit, pair.address, "1" * 32, 0, "begin"),
        offered(pair.source, permit, pair.address, "1" * 32, 1, "settle") as again,
    ):
        await again.link.send(Open(0, "memory"))
        assert isinstance(await again.link.next(), Cancel)
    with trio.move_on_after(0.2) as patience:
        await listener.accept()
    assert patience.cancelled_caught, "the hypervisor was dialled"
    await listener.aclose()


async def test_a_destination_out_of_descriptors_loses_one_session_and_frees_its_vm(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listen(pair.site)
    folder = pair.destination.spool.run_dir.parent / "journals"
    for number, error in enumerate((OSError(errno.EMFILE, "Too many open files"), KeyError("a bug"))):
        token = pair.site.permit(vm=VM)
        permit = pair.source.permits.verify(token, source=pair.source.spiffe_id, destination=None)
        session_id = f"{number}" * 32
        async with offered(pair.source, permit, pair.address, session_id, 0, "begin") as connection:
            with monkeypatch.context() as patch:

                def no_socket(*_: object, error: Exception = error) -> None:
                    raise error

                patch.setattr(trio.socket, "socket", no_socket)
                await connection.link.send(Open(0, "memory"))
                with contextlib.suppress(ConnectionBroken):
                    assert isinstance(await connection.link.next(), Cancel)
        await until(lambda: all('"discarded"' in "".join(lines) for lines in journals(folder, "dest*").values()))
    await listener.aclose()


class HandingOverSource(SocketSource):
    """A source's end that has a guest, which it counts the wakings of."""

    hands_over = True
    woken = 0

    async def migrate(self, lanes: SourceLanes, milestones: Milestones, report: Report) -> None:  # noqa: ARG002
        await trio.sleep_forever()

    async def resume_guest(self) -> None:
        self.woken += 1


async def test_a_vm_has_one_session_at_its_source_at_a_time(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that still waits to resume its guest would do so after a second one has handed it over."""
    end = HandingOverSource(frozenset())
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: end)
    first = pair.source.spool.begin(Role.SOURCE, "1" * 32, session_id="1" * 32, vm=VM)
    for state in ("abandoned", "resumed"):
        with pytest.raises(LocalBroken, match="not over here yet"), trio.fail_after(5):
            await pair.carry(pair.site.permit(vm=VM), pair.site.folder / "in.sock")
        await pair.source.enter(first, state)
    pair.cancelled.set()
    with trio.fail_after(5):
        assert (await pair.carry(pair.site.permit(vm=VM), pair.site.folder / "in.sock")).state == "cancelled"
    assert end.woken == 1


async def test_a_source_whose_folder_cannot_be_made_ends_its_session(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = HandingOverSource(frozenset())
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: end)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with trio.fail_after(5):
        news = await pair.carry(pair.site.permit(vm=VM), pair.site.folder / "in.sock")
    assert news.state == "failed"
    assert end.woken == 1


async def test_a_full_disk_at_the_end_is_waited_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    session = await handed_over(pair, "1" * 32, pair.site.permit(vm=VM))
    session.journal.state = "outcome-running"
    keep, tries = Spool.keep_receipt, []

    def often_full(spool: Spool, name: str, receipt: bytes) -> None:
        tries.append(name)
        if len(tries) < 3:
            raise SpoolFailed("no space left on device")
        keep(spool, name, receipt)

    monkeypatch.setattr(Spool, "keep_receipt", often_full)
    with trio.fail_after(5):
        assert (await settle_and_close(session, SocketSource(frozenset()), pair.tell)).state == "completed"
    assert session.journal.is_ended


async def test_the_sessions_socket_is_the_owners_alone(tmp_path: Path) -> None:
    with listen_unix(tmp_path / "s"):
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600


async def test_a_relay_out_of_descriptors_lives_and_a_host_cannot_hold_them_all_in_silence(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def no_descriptor(_: Spool) -> list[Path]:
        failures.append(1)
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Spool, "receipts", no_descriptor)
    closed: list[None] = []
    async with trio.open_nursery() as nursery:

        async def say_nothing() -> None:
            async with Driver.connected(pair.address, pair.source.credentials) as driver:
                assert await driver.hear_all() == []
                closed.append(None)

        for _ in range(20):
            nursery.start_soon(say_nothing)
        await until(lambda: len(closed) == 4)
        await trio.sleep(0.2)
        assert len(closed) == 4
        await until(lambda: bool(failures))
        nursery.cancel_scope.cancel()
    listener = listen(pair.site)
    permit = pair.source.permits.verify(pair.site.permit(vm=VM), source=pair.source.spiffe_id, destination=None)
    async with offered(pair.source, permit, pair.address, "1" * 32, 0, "begin"):
        pass
    await listener.aclose()
