"""The network between the relays is gone for longer than libvirt waits for a peer: libvirt notices nothing.

libvirt gives a peer up after 25 to 30 s of silence (`keepalive_interval` 5 s, `keepalive_count` 5). Each relay answers
the pings of its own host while the two are apart, up to `resume_seconds`.
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import Guest, Pair, wait_for

pytestmark = [pytest.mark.real, pytest.mark.whole]

LONGER_THAN_LIBVIRT_WAITS = 40.0
SLOW = ("--bandwidth", "2")  # MiB/s: less than the guest writes, so it is under way until it may go faster


def restart(pair: Pair, *, pause_b: str = "", **limits: float) -> None:
    for host in pair.hosts:
        assert host.relay is not None
        host.relay.stop()
        host.relay.log.unlink()
        pair.start_relay(host, pause_b if host is pair.b else "", over_ipv6=False, message_seconds=30.0, **limits)


@contextlib.contextmanager
def no_network(pair: Pair, seconds: float) -> Iterator[None]:
    """For so long at least."""
    end = time.monotonic() + seconds
    subprocess.run(pair.b.inside("ip", "link", "set", "lane", "down"), check=True, timeout=20)
    try:
        yield
        wait_for(lambda: time.monotonic() > end, "the network is gone for long enough")
    finally:
        subprocess.run(pair.b.inside("ip", "link", "set", "lane", "up"), check=True, timeout=20)


def start_move(pair: Pair, guest: Guest, *options: str) -> subprocess.Popen[str]:
    command = ("virsh", "-c", "qemu:///system", "migrate", "--live", guest.name, "--desturi", pair.a.front_uri)
    return subprocess.Popen(
        pair.a.inside(*command, *options),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def sends(pair: Pair, guest: Guest) -> bool:
    """Whether memory is on its way."""
    _, said = pair.a.virsh("domjobinfo", guest.name)
    found = re.search(r"Memory processed: +([0-9.]+) MiB", said)
    return found is not None and float(found[1]) >= 2


def said_by_relay(pair: Pair, words: str) -> int:
    """Of how many sessions."""
    assert pair.a.relay is not None
    lines = pair.a.relay.log.read_text().rpartition("\n")[0].splitlines()
    return len({json.loads(line)["session"] for line in lines if words in line})


def test_libvirt_outlasts_40_seconds_without_a_network_wherever_it_waits(pair: Pair) -> None:
    """For memory, peer to peer (libvirtd has the peer) and direct (virsh has it); and for the reply to Finish, where
    libvirt alone would run the guest on both hosts."""
    restart(pair, pause_b="after:306")
    for name in ("reached-b", "go-b"):
        (pair.folder / name).unlink(missing_ok=True)
    by_libvirtd, by_virsh, at_its_end = (pair.guest(pair.a) for _ in range(3))
    movers = {
        by_libvirtd: start_move(pair, by_libvirtd, "--p2p", *SLOW),
        by_virsh: start_move(pair, by_virsh, *SLOW),
        at_its_end: start_move(pair, at_its_end, "--p2p"),
    }
    wait_for(lambda: sends(pair, by_libvirtd) and sends(pair, by_virsh), "memory is under way")
    wait_for((pair.folder / "reached-b").exists, "one guest is whole at the destination")
    with no_network(pair, LONGER_THAN_LIBVIRT_WAITS):
        (pair.folder / "go-b").touch()
        wait_for(lambda: said_by_relay(pair, "connection lost") == 3, "the relay notices")
    wait_for(lambda: said_by_relay(pair, "session resumed") == 3, "all sessions go on")
    for guest in (by_libvirtd, by_virsh):
        assert movers[guest].poll() is None, movers[guest].communicate()[0]
        code, said = pair.a.virsh("migrate-setspeed", guest.name, "1000")
        assert code == 0, said
    for guest, mover in movers.items():
        said, _ = mover.communicate(timeout=60)
        assert mover.returncode == 0, said
        pair.wait_runs_only(guest, pair.b)
        count_passes(guest.printed(pair.a) + guest.printed(pair.b))
        pair.b.virsh("destroy", guest.name)


def test_where_the_network_stays_away_libvirt_hears_it_and_keeps_its_guest(pair: Pair) -> None:
    restart(pair, resume_seconds=2.0, silence_seconds=2.0)
    guest = pair.guest(pair.a)
    mover = start_move(pair, guest, "--p2p", *SLOW)
    wait_for(lambda: sends(pair, guest), "memory is under way")
    with no_network(pair, 0):
        said, _ = mover.communicate(timeout=60)
        assert mover.returncode != 0
        assert "Sealane: nobody answers at 10.77.0.2:7443" in said
        assert pair.running(guest) == ["a"]
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)
