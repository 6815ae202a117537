"""What callers, destinations and hosts do wrong, with real libvirt: the guest goes on where it was; words say why."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transport.libvirt.hosts import QEMU_UID, Guest, Host, Pair, wait_for
from tests.transport.libvirt_rpc.samples import call, prepare, prepare_call, xml
from transport.libvirt_rpc.framing import Packet, PacketReader, Status, decode_error
from transport.libvirt_rpc.migration import PrepareReply
from transport.libvirt_rpc.procedures import Procedure

pytestmark = [pytest.mark.real, pytest.mark.whole]


def start_move(pair: Pair, guest: Guest, *options: str) -> subprocess.Popen[bytes]:
    command = ("virsh", "-c", "qemu:///system", "migrate", "--live", "--p2p", guest.name, "--desturi", pair.a.front_uri)
    return subprocess.Popen(
        pair.a.inside(*command, *options),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def under_way(pair: Pair, guest: Guest) -> bool:
    """Whether the destination's QEMU is there: Prepare has been answered."""
    return bool(pair.b.qemus(guest))


SLOW = ("--bandwidth", "1")  # MiB/s: what the guest dirties in a second is several times as much


def test_a_second_session_of_a_vm_that_is_under_way_is_refused(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    mover = start_move(pair, guest, *SLOW)
    wait_for(lambda: under_way(pair, guest), "the first is under way")
    # libvirt itself would refuse a second job of the VM, so this caller makes its Prepare by itself.
    body = prepare(dom=xml(uuid=guest.uuid).replace(">web<", f">{guest.name}<"), data=b"")
    assert "not settled yet" in error_of(pair, prepare_call(body).encode())
    pair.a.virsh("domjobabort", guest.name)
    mover.wait(60)
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


def error_of(pair: Pair, *packets: bytes) -> str:
    """What the front answers to a caller of our own, in its last reply, as an error."""
    reader, replies = PacketReader(), []
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(30)
        caller.connect(str(pair.a.front))
        for packet in packets:
            caller.sendall(packet)
            while data := caller.recv(65536):
                if found := reader.feed(data):
                    replies += found
                    break
    assert replies, "the front answered nothing"
    assert replies[-1].status is Status.ERROR
    return decode_error(replies[-1].body)[1]


def test_a_vm_that_does_not_run_here_is_not_moved_by_anyone(pair: Pair) -> None:
    assert "0 QEMUs" in error_of(pair, prepare_call(prepare(data=b"")).encode())


@pytest.mark.parametrize(
    "data", [b"\0\0\0\x1c" + bytes(24), b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, call(Procedure.CONNECT_OPEN).encode()]
)
def test_what_is_no_rpc_ends_its_own_connection_and_nothing_else(pair: Pair, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(30)
        caller.connect(str(pair.a.front))
        caller.sendall(data)
        assert caller.recv(65536) == b""
    assert pair.a.relay is not None
    assert pair.a.relay.process.poll() is None


def test_another_user_is_turned_away(pair: Pair) -> None:
    def asked(*other: str) -> subprocess.CompletedProcess[str]:
        command = pair.a.inside(*other, "virsh", "-c", pair.a.front_uri, "uri")
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert asked().stdout.startswith("qemu")
    turned_away = asked("setpriv", "--reuid=64055", "--clear-groups")
    assert (turned_away.stdout, turned_away.returncode == 0) == ("", False)  # 1, or ended by SIGPIPE


@pytest.mark.parametrize("moment", ["before prepare", "under way"])
def test_a_direct_caller_vanishes(pair: Pair, moment: str) -> None:
    guest = pair.guest(pair.a)
    command = ("virsh", "-c", "qemu:///system", "migrate", "--live", *SLOW, guest.name, pair.a.front_uri)
    caller = subprocess.Popen(
        pair.a.inside(*command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    if moment == "under way":
        wait_for(lambda: under_way(pair, guest), "it is under way")
    children = Path(f"/proc/{caller.pid}/task/{caller.pid}/children")
    wait_for(lambda: bool(children.read_text()), "virsh runs")
    os.kill(int(children.read_text()), signal.SIGKILL)
    caller.wait(20)
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


def test_the_destinations_libvirtd_is_down(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    os.kill(pair.b.libvirtd(), signal.SIGKILL)
    try:
        code, said = pair.a.migrate(guest, "--live", "--p2p")
    finally:
        pair.b.start_libvirtd()
    assert code != 0
    assert "the hypervisor there does not take this VM; the log of the relay there says why" in said
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


def test_the_destinations_libvirtd_hangs(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    libvirtd = pair.b.libvirtd()
    os.kill(libvirtd, signal.SIGSTOP)
    try:
        code, said = pair.a.migrate(guest, "--live", "--p2p")
    finally:
        os.kill(libvirtd, signal.SIGCONT)
    assert code != 0
    assert "the hypervisor there hangs: it did not answer in time" in said
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


def test_the_destinations_libvirtd_hangs_over_its_finish(pair: Pair) -> None:
    """The guest stands still then. libvirt alone sends pings and gives up; so does the destination's relay."""
    with paused_relay(pair, pair.b, "before:306", hypervisor_seconds=15.0) as (reached, go):
        guest = pair.guest(pair.a)
        command = ("virsh", "-c", "qemu:///system", "migrate", "--live", "--p2p", guest.name)
        libvirtd = pair.b.libvirtd()
        with subprocess.Popen(
            pair.a.inside(*command, "--desturi", pair.a.front_uri),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as mover:  # fmt: skip
            try:
                wait_for(lambda: reached.exists() or mover.poll() is not None, "Finish is on its way", 180)
                assert reached.exists(), mover.communicate()[0]
                os.kill(libvirtd, signal.SIGSTOP)
                go.touch()
                said, _ = mover.communicate(timeout=180)  # an hour without the pings: `migration_deadline_seconds`
                wait_for(lambda: pair.running(guest) == ["a"], "the guest goes on where it was")
            finally:
                os.kill(libvirtd, signal.SIGCONT)
                mover.kill()
        assert mover.returncode != 0
        assert "Sealane: the peer relay cancelled the session (hypervisor)" in said
        assert "the log of the relay there says which" in said
        pair.wait_runs_only(guest, pair.a)
        assert pair.b.relay is not None
        assert "it has answered no ping for 15 s" in pair.b.relay.log.read_text()
        pair.a.virsh("destroy", guest.name)


@contextlib.contextmanager
def paused_relay(pair: Pair, host: Host, moment: str, **limits: float) -> Iterator[tuple[Path, Path]]:
    """The relay of `host` waits at a moment: (it is there, it may go on). See `permitting_relay.pause_at`."""
    reached, go = (pair.folder / f"{what}-{host.name}" for what in ("reached", "go"))
    assert host.relay is not None
    host.relay.stop()
    pair.start_relay(host, moment, over_ipv6=False, **limits)
    try:
        yield reached, go
    finally:
        go.touch()
        host.relay.stop()
        for each in (reached, go):
            each.unlink(missing_ok=True)
        pair.start_relay(host)


@pytest.mark.parametrize("then", ["is aborted by hand", "goes on to its end"])
def test_virsh_times_out_and_the_job_that_it_left(pair: Pair, then: str) -> None:
    """A virsh that is ended hard leaves libvirt's job running, as it does without Sealane."""
    guest = pair.guest(pair.a)
    mover = start_move(pair, guest, *SLOW)
    wait_for(lambda: under_way(pair, guest), "it is under way")
    wait_for(lambda: "Unbounded" in pair.a.virsh("domjobinfo", guest.name)[1], "memory is under way")
    mover.kill()
    mover.wait(20)
    if then == "is aborted by hand":
        assert pair.a.virsh("domjobabort", guest.name)[0] == 0
        place = pair.a
    else:
        place = pair.b

        def there_when_faster() -> bool:
            # Said again and again: libvirt may set the speed that the move began with later.
            pair.a.virsh("migrate-setspeed", guest.name, "1000")
            return pair.b.state(guest) == "running"

        wait_for(there_when_faster, "it goes on to its end")
    pair.wait_runs_only(guest, place)
    place.virsh("destroy", guest.name)


def test_a_full_socket_folder_is_said_and_nothing_moves(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    folder = pair.b.base / "sessions"
    mount = ("mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "none", str(folder))
    subprocess.run(pair.b.inside(*mount), check=True, timeout=20)
    try:
        code, said = pair.a.migrate(guest, "--live", "--p2p")
    finally:
        subprocess.run(pair.b.inside("umount", str(folder)), check=True, timeout=20)
    assert code != 0
    assert "the relay there cannot keep a session, and its log says why" in said
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


DIAL = """
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(20)
s.connect(sys.argv[1])
try:
    s.sendall(b"QEVM" + bytes(60))
    print("answered", s.recv(1))
except OSError as error:
    print("answered", type(error).__name__)
"""


def domain_and_cookie(pair: Pair, guest: Guest) -> tuple[str, bytes]:
    """What libvirt itself would send of a guest in Prepare."""
    code, domain = pair.a.virsh("dumpxml", "--migratable", guest.name)
    assert code == 0, domain
    who = f"<name>{guest.name}</name><uuid>{guest.uuid}</uuid>"
    host = "<hostname>host-a</hostname><hostuuid>11111111-2222-4333-8444-555555555555</hostuuid>"
    return domain, f"<qemu-migration>{who}{host}</qemu-migration>".encode() + b"\0"


def test_a_prepare_without_a_cookie_does_not_end_the_destinations_libvirtd(pair: Pair) -> None:
    """libvirtd 9.0 dies of it: whoever had one source host could take libvirt from all of its destinations."""
    guest = pair.guest(pair.a)
    domain, _ = domain_and_cookie(pair, guest)
    before = pair.b.libvirtd()
    assert "without a migration cookie" in error_of(pair, prepare_call(prepare(dom=domain, data=b"")).encode())
    assert pair.b.libvirtd() == before
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


def test_the_stream_of_another_vm_does_not_take_the_place_of_the_one_in_prepare(pair: Pair) -> None:
    """A caller prepares one VM; then another VM's QEMU, which runs as the same user, dials the session's socket."""
    guest, other = pair.guest(pair.a), pair.guest(pair.a)
    domain, cookie = domain_and_cookie(pair, guest)
    reader = PacketReader()
    replies: list[Packet] = []
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(60)
        caller.connect(str(pair.a.front))
        caller.sendall(prepare_call(prepare(dom=domain, data=cookie)).encode())
        while not replies:
            replies = reader.feed(caller.recv(65536))
        assert replies[0].status is Status.OK, decode_error(replies[0].body)[1]
        path = (PrepareReply.decode(replies[0].body).uri or "").removeprefix("unix://")
        os.chown(
            path, QEMU_UID, QEMU_UID
        )  # as libvirtd does where its QEMU dials itself; else the kernel refuses already
        as_qemu = ("setpriv", "--reuid=64055", "--clear-groups", sys.executable, "-c", DIAL)
        dialled = subprocess.run(
            pair.a.inside(*as_qemu, path),
            capture_output=True, text=True, timeout=40, check=False,
        )  # fmt: skip
    assert dialled.stdout in ("answered b''\n", "answered BrokenPipeError\n", "answered ConnectionResetError\n"), (
        dialled
    )
    relay = pair.a.relay
    assert relay is not None
    wait_for(lambda: "session socket dialled by another process" in relay.log.read_text(), "the relay says so")
    wait_for(lambda: not pair.b.qemus(guest), "what was prepared is gone with its caller")
    for each in (guest, other):
        assert pair.running(each) == ["a"]
        pair.a.virsh("destroy", each.name)
