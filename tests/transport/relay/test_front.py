"""The front without libvirt: who is let in, what is answered before anything is asked, and how callers end."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from bench.peers import free_port
from tests.transport.libvirt_rpc.samples import LIVE, VM, call, prepare, prepare_call, text
from transport.libvirt_rpc.errors import CallRefused, RpcMalformed
from transport.libvirt_rpc.framing import (
    PING,
    PONG,
    MessageType,
    Packet,
    PacketReader,
    Status,
    decode_error,
)  # fmt: skip
from transport.libvirt_rpc.migration import Prepare
from transport.libvirt_rpc.opening import feature_call, is_supported
from transport.libvirt_rpc.procedures import Feature, MigrateFlag, Procedure
from transport.libvirt_rpc.xdr import XdrWriter
from transport.relay.caller import Conversation, answer_locally, with_nbd_port
from transport.relay.config_sections import FrontDestination, FrontSection
from transport.relay.front import SOCKET_NAME, Front
from transport.relay.interrupted import Interrupted
from transport.relay.limits import LimitsSection
from transport.relay.loopback import peer_uid
from transport.relay.news import News
from transport.relay.refused_calls import RefusedCalls
from transport.relay.wish import NotAdmitted, Wish

RESUMES = LIVE | MigrateFlag.POSTCOPY | MigrateFlag.POSTCOPY_RESUME
OPEN = call(Procedure.CONNECT_OPEN, bytes(XdrWriter().optional_text("qemu:///system").unsigned(0).data))


@dataclass
class Stage:
    """A front whose gateway says no, or breaks."""

    folder: Path
    wishes: list[Wish] = field(default_factory=list)
    port: int = field(default_factory=free_port)
    refused: RefusedCalls = field(default_factory=RefusedCalls)
    interrupted: Interrupted = field(default_factory=Interrupted)
    answer: Exception = field(default_factory=lambda: NotAdmitted("denied by policy no-friday: not on Fridays"))

    @property
    def path(self) -> Path:
        return self.folder / "b" / SOCKET_NAME

    async def migrate(self, wish: Wish, conversation: Conversation) -> News:  # noqa: ARG002
        self.wishes.append(wish)
        raise self.answer


@asynccontextmanager
async def front(
    folder: Path, *, uids: tuple[int, ...] | None = None, loopback: str = "", max_callers: int = 128
) -> AsyncIterator[Stage]:
    stage = Stage(folder)
    async with trio.open_nursery() as nursery:
        section = FrontSection(
            folder=str(folder),
            destinations=[FrontDestination("b", loopback)],
            peer_uids=(os.geteuid(),) if uids is None else uids,
            loopback_port=stage.port,
        )
        limits = LimitsSection(message_seconds=2.0, max_callers=max_callers)
        served = Front(section, limits, stage.migrate, nursery, stage.refused, stage.interrupted)
        served.listen()
        nursery.start_soon(served.serve)
        yield stage
        nursery.cancel_scope.cancel()


async def ask(stage: Stage, *packets: Packet) -> list[Packet]:
    """One reply for each packet, from a caller that leaves afterwards."""
    with trio.fail_after(10):
        stream = await trio.open_unix_socket(str(stage.path))
        async with stream:
            return await converse(stream, *packets)


async def converse(stream: trio.SocketStream, *packets: Packet) -> list[Packet]:
    reader = PacketReader()
    replies: list[Packet] = []
    for number, packet in enumerate(packets):
        await stream.send_all(packet.encode())
        while len(replies) <= number:
            data = await stream.receive_some(65536)
            if not data:
                return replies
            replies += reader.feed(bytes(data))
    return replies


def words(reply: Packet) -> str:
    assert reply.status is Status.ERROR
    return decode_error(reply.body)[1]


async def test_a_caller_is_answered_without_anybody_being_asked(tmp_path: Path) -> None:
    async with front(tmp_path) as stage:
        replies = await ask(
            stage,
            call(Procedure.AUTH_LIST),
            OPEN,
            call(Procedure.CONNECT_SUPPORTS_FEATURE, feature_call(Feature.MIGRATION_PARAMS)),
            call(Procedure.CONNECT_SUPPORTS_FEATURE, feature_call(Feature.FD_PASSING)),
            PING,
            call(Procedure.CONNECT_CLOSE),
        )
        assert [reply.status for reply in replies] == [Status.OK] * 6
        assert [is_supported(reply.body) for reply in replies[2:4]] == [True, False]
        assert replies[4] == PONG
        assert stage.wishes == []


async def dial_as(uid: int, path: Path) -> socket.socket:
    """Held open. Whose it is, the kernel notes at that moment."""
    await trio.testing.wait_all_tasks_blocked()  # so that there is room in the backlog
    dialled, own = socket.socket(socket.AF_UNIX), os.geteuid()
    os.seteuid(uid)
    try:
        dialled.connect(str(path))
    finally:
        os.seteuid(own)
    return dialled


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
async def test_a_user_who_takes_all_places_locks_no_other_out() -> None:
    other = 65534
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)  # a folder of pytest's is root's alone
        async with front(Path(name), uids=(0, other, other), max_callers=4) as stage:
            with contextlib.ExitStack() as held, capture_logs() as said:
                for _ in range(20):
                    held.enter_context(await dial_as(other, stage.path))
                held.enter_context(await dial_as(0, stage.path))
                assert len(await ask(stage, OPEN, PING)) == 2, "root has two, whatever the other does"
                refused = [each["uid"] for each in said if each["event"] == "caller at the front refused"]
                assert set(refused) == {other}


@pytest.mark.parametrize(("others", "answers"), [(3, 1), (4, 0)])
async def test_the_only_user_has_all_places(tmp_path: Path, others: int, answers: int) -> None:
    async with front(tmp_path, max_callers=4) as stage:
        with contextlib.ExitStack() as held:
            for _ in range(others):
                held.enter_context(await dial_as(os.geteuid(), stage.path))
            replies: list[Packet] = []
            with contextlib.suppress(trio.BrokenResourceError):  # closed before or after we spoke
                replies = await ask(stage, OPEN)
            assert len(replies) == answers


async def test_a_prepare_is_asked_for_by_its_uuid_and_refused_in_the_gateways_words(tmp_path: Path) -> None:
    async with front(tmp_path) as stage:
        (reply,) = await ask(stage, prepare_call())
        assert words(reply) == "Sealane: denied by policy no-friday: not on Fridays"
        assert [(w.vm, w.vm_name, w.destination, w.ports) for w in stage.wishes] == [
            (VM, "web", "b", ("libvirt", "memory"))
        ]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (prepare(text("migrate_uri", "tcp://127.77.0.2")), "no loopback address leads to b"),
        (prepare(flags=LIVE | MigrateFlag.TLS), "--tls is not carried"),
        (prepare(flags=LIVE | MigrateFlag.TUNNELLED), "leave --tunnelled away"),
        (prepare(flags=RESUMES), "then virsh start it on one"),
        (prepare(flags=RESUMES | MigrateFlag.OFFLINE), "--postcopy-resume goes with --postcopy, and with nothing"),
        (prepare(flags=LIVE | MigrateFlag.NON_SHARED_DISK), "disks-NAME.sock"),
        (prepare(text("disks_uri", "unix:///etc/disks.sock"), flags=LIVE | MigrateFlag.NON_SHARED_DISK), "disks-NAME"),
        (prepare(dom="<domain type='kvm'><name>x</name></domain>"), "exactly one <uuid>"),
    ],
)
async def test_what_cannot_be_carried_is_refused_before_anybody_is_asked(
    tmp_path: Path, value: Prepare, said: str
) -> None:
    async with front(tmp_path) as stage:
        (reply,) = await ask(stage, prepare_call(value))
        assert said in words(reply)
        assert stage.wishes == []


async def test_disks_at_a_port_that_is_none_are_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    """It was noticed once the permit was spent, as a bug."""
    wish = text("disks_uri", "tcp://127.77.9.9:65536")
    async with front(tmp_path, loopback="127.77.9.9") as stage:
        (reply,) = await ask(stage, prepare_call(prepare(wish, flags=LIVE | MigrateFlag.NON_SHARED_DISK)))
        assert "disks-NAME" in words(reply)
        assert stage.wishes == []


async def test_a_resumption_goes_to_the_session_that_waits_for_it_and_to_no_gateway(tmp_path: Path) -> None:
    """The policy has decided on that one, this VM and this destination; another destination, or a second client while
    the first is served, is refused, and put on record."""
    async with front(tmp_path) as stage, trio.open_nursery() as nursery:
        served = trio.Event()

        async def session() -> None:
            async with stage.interrupted.client((VM, "b"), trio.sleep_forever) as conversation:
                assert conversation is not None
                conversation.cause = "as asked for"
                conversation.broke.set()
                await served.wait()

        (reply,) = await ask(stage, prepare_call(prepare(flags=RESUMES)))
        assert "waits to be taken up, and --postcopy-resume begins nothing" in words(reply)
        nursery.start_soon(session)
        await trio.testing.wait_all_tasks_blocked()
        assert stage.interrupted.why_not(VM, "c") is not None
        async with await trio.open_unix_socket(str(stage.path)) as first:
            await first.send_all(prepare_call(prepare(flags=RESUMES)).encode())
            with trio.fail_after(5):
                while stage.interrupted.why_not(VM, "b") is None:
                    await trio.sleep(0.01)
            (reply,) = await ask(stage, prepare_call(prepare(flags=RESUMES)))
            assert "is being taken up already" in words(reply)
            served.set()
            (reply,) = PacketReader().feed(bytes(await first.receive_some(65536)))
        assert words(reply) == "Sealane: migration failed: as asked for"
        assert [(refused.procedure, refused.vm) for refused, _ in stage.refused.take().entries] == [(303, VM)] * 2
        assert stage.wishes == []


async def test_of_two_clients_that_come_at_once_one_takes_it_up_and_the_other_is_on_record(tmp_path: Path) -> None:
    async with front(tmp_path) as stage, trio.open_nursery() as nursery:
        served = trio.Event()

        async def session() -> None:
            async with stage.interrupted.client((VM, "b"), trio.sleep_forever) as conversation:
                assert conversation is not None
                await served.wait()

        nursery.start_soon(session)
        streams = [await trio.open_unix_socket(str(stage.path)) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked()
        for stream in streams:  # both before the front has read either
            os.write(stream.socket.fileno(), prepare_call(prepare(flags=RESUMES)).encode())
        await trio.testing.wait_all_tasks_blocked()
        assert [(refused.procedure, refused.vm) for refused, _ in stage.refused.take().entries] == [(303, VM)]
        served.set()
        for stream in streams:
            await stream.aclose()


PAGE = (Path(__file__).parents[3] / "docs" / "libvirt.md").read_text()


def test_the_page_lists_each_procedure_that_passes_and_no_other() -> None:
    table = PAGE[PAGE.index("| procedure | number |") : PAGE.index("Prepare's `migrate_uri`")]
    cells = [line.split("|")[2] for line in table.splitlines()[2:] if line.startswith("|")]
    listed = {int(number) for cell in cells for number in cell.split(",")}
    passing = set()
    for procedure in range(1000):  # libvirt 11 has 453
        # Whether it is known at all: most of these calls lack the arguments that theirs have.
        with contextlib.suppress(CallRefused):
            with contextlib.suppress(RpcMalformed):
                answer_locally(call(procedure))
            passing.add(procedure)
    assert listed == passing | {Procedure.MIGRATE_PREPARE3_PARAMS, Procedure.MIGRATE_FINISH3_PARAMS}


@pytest.mark.parametrize("procedure", [11, 12, 14, 28, 273, 304])
async def test_every_other_call_is_refused(tmp_path: Path, procedure: int) -> None:
    async with front(tmp_path) as stage:
        (reply,) = await ask(stage, call(procedure))
        assert f"procedure {procedure} is refused" in words(reply)


async def test_a_caller_that_is_refused_again_and_again_is_put_out(tmp_path: Path) -> None:
    async with front(tmp_path) as stage:
        replies = await ask(stage, *[call(Procedure.DOMAIN_DESTROY)] * 20)
        assert len(replies) == 16
        assert len(await ask(stage, OPEN)) == 1


async def test_another_user_is_not_spoken_to(tmp_path: Path) -> None:
    async with front(tmp_path, uids=(54321,)) as stage:
        with contextlib.suppress(trio.BrokenResourceError):  # closed before or after we spoke
            assert await ask(stage, OPEN) == []


async def test_nor_can_it_fill_the_log(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with front(tmp_path, uids=(54321,)) as stage:
            for _ in range(30):
                with contextlib.suppress(trio.BrokenResourceError):
                    await ask(stage, OPEN)
    assert 1 <= len([log for log in logs if log["event"] == "caller at the front refused"]) <= 3


async def test_a_relay_out_of_descriptors_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To ask who calls takes one: by an error there whoever may dial could have ended all sessions."""
    duplicate, failures = os.dup, [errno.EMFILE]

    def scarce(descriptor: int) -> int:
        if failures:
            raise OSError(failures.pop(), "Too many open files")
        return duplicate(descriptor)

    async with front(tmp_path) as stage:
        monkeypatch.setattr(os, "dup", scarce)
        with contextlib.suppress(trio.BrokenResourceError):
            assert await ask(stage, OPEN) == []
        assert len(await ask(stage, OPEN)) == 1


async def test_a_bug_that_a_caller_finds_ends_that_caller_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Packet:
        raise ZeroDivisionError

    async with front(tmp_path) as stage:
        with monkeypatch.context() as patch:
            patch.setattr("transport.relay.caller.answer_locally", broken)
            assert await ask(stage, OPEN) == []
        assert len(await ask(stage, OPEN)) == 1
        stage.answer = ZeroDivisionError("a bug")
        (reply,) = await ask(stage, prepare_call())
        assert "internal error" in words(reply)


async def test_a_flood_of_calls_ends_its_connection(tmp_path: Path) -> None:
    async with front(tmp_path) as stage:
        with trio.fail_after(10):
            stream = await trio.open_unix_socket(str(stage.path))
            async with stream:
                with trio.move_on_after(5):
                    await stream.send_all(b"".join([prepare_call().encode(), *[OPEN.encode()] * 100]))
                while await stream.receive_some(65536):
                    pass
        assert len(await ask(stage, OPEN)) == 1


async def test_a_client_that_knows_tcp_only_is_served_at_the_loopback_address(tmp_path: Path) -> None:
    async with front(tmp_path, loopback="127.77.9.9") as stage:
        with trio.fail_after(10):
            stream = await trio.open_tcp_stream("127.77.9.9", stage.port)
            async with stream:
                assert len(await converse(stream, OPEN)) == 1
        (reply,) = await ask(stage, prepare_call(prepare(text("migrate_uri", "tcp://127.77.9.9"))))
        assert "no-friday" in words(reply)


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_the_kernel_tells_whose_a_loopback_connection_is(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listening:
        listening.bind((address, 0))
        listening.listen()
        with socket.create_connection(listening.getsockname()[:2]) as client:
            accepted, _ = listening.accept()
            with accepted:
                assert peer_uid(accepted) == os.geteuid()
                client.send(b"orders")
                client.close()
                # The kernel shows an orphan as root's, and what it sent can still be read.
                assert peer_uid(accepted) is None
                assert accepted.recv(6) == b"orders"


@pytest.mark.parametrize("nbd", ["<nbd/>", "<nbd port='49153'/>", "<nbd port='1'><disk/></nbd>"])
def test_the_cookie_names_this_hosts_port_for_disks(nbd: str) -> None:
    changed = with_nbd_port(f"<qemu-migration>{nbd}</qemu-migration>\0".encode(), 1234)
    assert changed.count(b"<nbd port='1234'") == 1
    assert b"49153" not in changed


async def test_what_is_refused_is_noted_with_its_caller(tmp_path: Path) -> None:
    async with front(tmp_path) as stage:
        await ask(stage, OPEN, call(Procedure.DOMAIN_LOOKUP_BY_NAME, bytes(XdrWriter().text("web").data)))
        ((refused, _),) = stage.refused.take().entries
        assert (refused.role, refused.peer, refused.procedure, refused.vm_name) == ("source", "b", 23, "web")
        assert refused.uid == os.geteuid()
        assert await ask(stage, Packet(0x20008087, 1, MessageType.CALL, 1, Status.OK, b"")) == []
        with trio.fail_after(5):
            await stage.refused.wait()
        ((refused, _),) = stage.refused.take().entries
        assert "program 0x20008087" in refused.cause


async def test_hosts_come_and_go_and_who_is_being_served_stays(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        stage = Stage(tmp_path)
        section = FrontSection(folder=str(tmp_path), peer_uids=(os.geteuid(),), loopback_port=stage.port)
        limits = LimitsSection(message_seconds=2.0)
        served = Front(section, limits, stage.migrate, nursery, stage.refused, stage.interrupted)
        served.listen()
        nursery.start_soon(served.serve)
        served.lead_to([FrontDestination("b", "127.77.0.2"), FrontDestination("c")])
        with trio.fail_after(10):
            async with await trio.open_unix_socket(str(stage.path)) as stream:
                assert (await converse(stream, call(Procedure.AUTH_LIST)))[0].status is Status.OK
                served.lead_to([FrontDestination("c")])
                assert not (tmp_path / "b").exists()
                assert (await converse(stream, OPEN))[0].status is Status.OK
            with pytest.raises(OSError, match=r"127\.77\.0\.2"):
                await trio.open_tcp_stream("127.77.0.2", stage.port)
            served.lead_to([FrontDestination("b", "127.77.0.2")])
            async with await trio.open_tcp_stream("127.77.0.2", stage.port) as stream:
                assert (await converse(stream, call(Procedure.AUTH_LIST)))[0].status is Status.OK
        nursery.cancel_scope.cancel()
