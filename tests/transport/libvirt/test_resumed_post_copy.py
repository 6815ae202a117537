"""Post-copy that was interrupted for good, by a relay's death or the network: libvirt takes it up again by its own
`migrate --postcopy-resume`, through the front, and the guest is unharmed."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.demo.guest import GuestLayout, count_passes, memory_problems
from tests.transport.journals import journals
from tests.transport.libvirt.failures import kill, switch
from tests.transport.libvirt.hosts import MEMORY_MIB, Guest, Host, Pair, require_programs, two_hosts, wait_for

pytestmark = [pytest.mark.real, pytest.mark.whole]

LAYOUT = GuestLayout.for_memory(MEMORY_MIB, 8)
SLOW = ("--postcopy", "--bandwidth", "8", "--postcopy-bandwidth", "8")  # MiB/s
RESUME = ("--postcopy", "--postcopy-resume")
FAILED = "(post-copy failed)"
NOT_NOTICED = "migration is still running"  # what libvirt says of a QEMU whose channels are closed since a moment ago


@pytest.fixture(scope="module")
def rooted() -> Iterator[Pair]:
    require_programs()
    with tempfile.TemporaryDirectory(prefix="slr") as folder, two_hosts(Path(folder), qemu_user="root") as pair:
        yield pair


@pytest.fixture(autouse=True)
def fresh_relays(rooted: Pair) -> Iterator[None]:
    """That give a network up within seconds; and no guest is left by a test that failed."""
    for host in rooted.hosts:
        restart(rooted, host)
    yield
    for moment in ("reached-a", "go-a"):
        (rooted.folder / moment).unlink(missing_ok=True)
    for host in rooted.hosts:
        for guest in rooted.guests:
            host.virsh("destroy", guest.name)
    rooted.guests.clear()


def restart(pair: Pair, host: Host, pause: str = "") -> None:
    if host.relay is not None:
        host.relay.stop()
    pair.start_relay(host, pause, resume_seconds=3.0, silence_seconds=2.0)


def dump(host: Host, guest: Guest, file: Path) -> None:
    """The guest's region of memory; it is stopped before, and stays so."""
    assert host.virsh("suspend", guest.name)[0] == 0
    region = {"val": LAYOUT.start, "size": LAYOUT.size_bytes, "filename": str(file)}
    command = json.dumps({"execute": "pmemsave", "arguments": region})
    code, said = host.virsh("qemu-monitor-command", guest.name, command)
    assert (code, "error" in said) == (0, False), said


def start(pair: Pair, guest: Guest, *options: str) -> subprocess.Popen[bytes]:
    """virsh, under way from a to b."""
    command = ("virsh", "-c", "qemu:///system", "migrate", "--live", guest.name, "--desturi", pair.a.front_uri)
    return subprocess.Popen(
        pair.a.inside(*command, *options), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def interrupt(pair: Pair, guest: Guest, victim: str, *way: str) -> None:
    """Move the guest from a to b by post-copy, and break that for good when it runs at b and lacks most of itself."""
    with start(pair, guest, *way, *SLOW) as mover:
        switch(pair, guest, mover)
        break_off(pair, guest, victim, mover)


def break_off(pair: Pair, guest: Guest, victim: str, mover: subprocess.Popen[bytes]) -> None:
    if victim == "network":
        subprocess.run(pair.b.inside("ip", "link", "set", "lane", "down"), check=True, timeout=20)
    else:
        kill(pair, victim, mover)
        host = pair.host(victim[-1])
        shutil.rmtree(host.base / "sessions")  # as systemd does with /run/sealane
        restart(pair, host)
    try:
        wait_for(lambda: all(FAILED in reason(host, guest) for host in pair.hosts), f"libvirt notices: {victim}")
    finally:
        subprocess.run(pair.b.inside("ip", "link", "set", "lane", "up"), check=True, timeout=20)
    assert mover.wait(60) != 0


def reason(host: Host, guest: Guest) -> str:
    return host.virsh("domstate", "--reason", guest.name)[1]


def asked_to_resume(pair: Pair, guest: Guest, *way: str) -> tuple[int, str]:
    """As a person would, who is told by libvirt that a QEMU has not noticed yet, which takes `resume_seconds`."""
    tries: list[tuple[int, str]] = []

    def is_answered() -> bool:
        tries.append(pair.a.migrate(guest, "--live", *way, *RESUME))
        return NOT_NOTICED not in tries[-1][1]

    wait_for(is_answered, "no QEMU says that the migration is still running")
    return tries[-1]


@contextlib.contextmanager
def taking_up(pair: Pair, guest: Guest, has_begun: Callable[[], bool], *way: str) -> Iterator[subprocess.Popen[bytes]]:
    """The same person's virsh, that has begun with it and goes on."""
    clients: list[subprocess.Popen[bytes]] = []

    def goes_on() -> bool:
        if not clients or clients[-1].poll() is not None:
            said = clients[-1].communicate()[0].decode() if clients else NOT_NOTICED
            assert NOT_NOTICED in said, said
            clients.append(start(pair, guest, *way, *RESUME))
        return has_begun()

    wait_for(goes_on, "it is taken up")
    with clients[-1] as client:
        yield client


def resume(pair: Pair, guest: Guest, *way: str) -> None:
    code, said = asked_to_resume(pair, guest, *way)
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    wait_for(lambda: not unsettled(pair, guest), "both relays have settled the session")


def receipts(pair: Pair, guest: Guest) -> set[tuple[str, bool, bool]]:
    """Of what the relays keep of this guest for their gateway: role, whether it is of a recovery, and whether memory
    had not come."""
    found = set()
    for file in pair.folder.glob("relay-*/receipts/*.json"):
        body: dict[str, Any] = json.loads(json.loads(file.read_bytes())["receipt"]["body"])
        if body["vm"] == guest.uuid:
            found.add((body["role"], body.get("recovery", False), body.get("lacks_memory", False)))
    return found


def unsettled(pair: Pair, guest: Guest) -> list[str]:
    """Files of sessions that are not over."""
    noted = journals(pair.folder, "relay-*/journals/*.jsonl")
    return [name for name, lines in noted.items() if any(guest.uuid in line for line in lines)]


@pytest.mark.parametrize(
    ("victim", "way"),
    [("relay a", ["--p2p"]), ("relay b", ["--p2p"]), ("network", ["--p2p"]), ("relay a", []), ("network", [])],
)
def test_an_interrupted_guest_is_taken_up_and_whole(rooted: Pair, tmp_path: Path, victim: str, way: list[str]) -> None:
    pair, before, after = rooted, tmp_path / "before", tmp_path / "after"
    guest = pair.guest(pair.a)
    dump(pair.a, guest, before)
    pair.a.virsh("resume", guest.name)
    interrupt(pair, guest, victim, *way)
    resume(pair, guest, *way)
    dump(pair.b, guest, after)
    printed = guest.printed(pair.a) + guest.printed(pair.b)
    assert not memory_problems(before, after, LAYOUT, count_passes(printed))
    of_source = {("source", of_recovery, False) for of_recovery in (False, True)}
    assert receipts(pair, guest) == of_source | {("destination", False, True), ("destination", True, False)}


def sends_again(host: Host, guest: Guest) -> bool:
    """Whether QEMU is through with the handshake of a recovery: version 7.2 cannot lose its connection in it."""
    code, said = host.virsh("qemu-monitor-command", guest.name, json.dumps({"execute": "query-migrate"}))
    return code == 0 and json.loads(said)["return"].get("status") == "postcopy-active"


def test_a_recovery_that_is_interrupted_is_taken_up_again(rooted: Pair) -> None:
    pair = rooted
    guest = pair.guest(pair.a)
    interrupt(pair, guest, "network", "--p2p")
    for victim in ("network", "relay a", "relay b"):
        with taking_up(pair, guest, lambda: sends_again(pair.a, guest), "--p2p") as again:
            break_off(pair, guest, victim, again)
    resume(pair, guest, "--p2p")
    count_passes(guest.printed(pair.a) + guest.printed(pair.b))


def test_a_client_that_leaves_after_its_prepare_stands_in_nobodys_way(rooted: Pair) -> None:
    pair = rooted
    guest = pair.guest(pair.a)
    interrupt(pair, guest, "network")
    restart(pair, pair.a, "after:303")
    with taking_up(pair, guest, (pair.folder / "reached-a").exists) as client:  # the destination is prepared
        code, said = pair.a.migrate(guest, "--live", *RESUME)
        assert code != 0
        assert "already" in said  # libvirt's own word, or the front's
        kill(pair, "virsh", client)
        (pair.folder / "go-a").touch()
    wait_for(lambda: FAILED in reason(pair.a, guest), "libvirt gives it up")
    resume(pair, guest)
    count_passes(guest.printed(pair.a) + guest.printed(pair.b))


def test_a_client_that_dies_once_all_has_come_leaves_no_paused_guest_at_the_source(rooted: Pair) -> None:
    """libvirt there would keep it for ever, and lets nobody take it up."""
    pair = rooted
    restart(pair, pair.a, "after:306")
    guest = pair.guest(pair.a)
    with start(pair, guest, *SLOW) as client:
        switch(pair, guest, client)
        wait_for((pair.folder / "reached-a").exists, "the destination's libvirt has answered Finish")
        kill(pair, "virsh", client)
        (pair.folder / "go-a").touch()
    pair.wait_runs_only(guest, pair.b)
    wait_for(lambda: not unsettled(pair, guest), "both relays have settled the session")
    count_passes(guest.printed(pair.a) + guest.printed(pair.b))


def test_where_nothing_was_interrupted_nothing_is_taken_up(rooted: Pair) -> None:
    """libvirt asks nobody then; a guest whose destination has lost it can only be started anew, and virsh says so."""
    pair = rooted
    guest = pair.guest(pair.a)
    code, said = pair.a.migrate(guest, "--live", "--p2p", *RESUME)
    assert code != 0
    assert "is not being migrated" in said
    assert pair.running(guest) == ["a"]
    interrupt(pair, guest, "network", "--p2p")
    pair.b.virsh("destroy", guest.name)
    code, said = asked_to_resume(pair, guest, "--p2p")
    assert code != 0
    assert "offer refused (hypervisor): 'post-copy cannot be recovered: the QEMU of this guest has ended'" in said
    assert pair.running(guest) == []
    pair.a.virsh("destroy", guest.name)
    wait_for(lambda: not [name for name in unsettled(pair, guest) if "source" in name], "the source has settled")
