"""Between the hosts nothing passes but what goes to the relay's port: counted on the network between them."""

from __future__ import annotations

import ast
import contextlib
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.processes import killed_after
from tests.transport.libvirt.hosts import Guest, Host, Pair, wait_for

pytestmark = [pytest.mark.real, pytest.mark.whole]

# Every packet of either direction. Neighbour discovery (ARP, ICMPv6) is how hosts find each other on a link at all.
COUNTER = """
import select, socket, struct, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
s.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
s.bind(("lane", 0))
print("counting", flush=True)
seen = {}
def kind(data):
    ethertype = data[12:14].hex()
    if ethertype == "0806":
        return "neighbours"
    if ethertype not in ("0800", "86dd"):
        return ethertype
    protocol, start = (data[23], 14 + (data[14] & 15) * 4) if ethertype == "0800" else (data[20], 54)
    if ethertype == "86dd" and protocol in (0, 58):  # multicast listener reports have a hop-by-hop header
        return "neighbours"
    ports = struct.unpack(">HH", data[start : start + 4])
    version = "IPv4" if ethertype == "0800" else "IPv6"
    return "relay over " + version if protocol == 6 and 7443 in ports else f"{version}/{protocol}/{ports}"
while True:
    ready, _, _ = select.select([s, sys.stdin], [], [])
    if s in ready:
        what = kind(s.recv(128))
        seen[what] = seen.get(what, 0) + 1
    elif ready:
        break
_, dropped = struct.unpack("II", s.getsockopt(263, 6, 8))  # SOL_PACKET, PACKET_STATISTICS
print((seen, dropped))
"""


@contextlib.contextmanager
def counted(pair: Pair) -> Iterator[dict[str, int]]:
    """What passed meanwhile, by kind; filled in at the end of the block."""
    seen: dict[str, int] = {}
    command = pair.b.inside(sys.executable, "-c", COUNTER)
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as counter,
        killed_after(counter, 300),
    ):
        assert counter.stdout is not None
        assert counter.stdout.readline() == "counting\n"
        try:
            yield seen
        finally:
            told, _ = counter.communicate("enough\n", timeout=30)
    found, dropped = ast.literal_eval(told)
    assert not dropped, "the count is not whole"
    seen |= found


def move_all(pair: Pair, legs: list[tuple[Host, list[Guest]]]) -> None:
    """All at once, each from its host to the other one."""
    running = [
        subprocess.Popen(
            host.inside(
                "virsh", "-c", "qemu:///system", "migrate", "--live", "--p2p", guest.name, "--desturi", host.front_uri
            )
        )
        for host, guests in legs
        for guest in guests
    ]
    assert [process.wait(120) for process in running] == [0] * len(running)
    for host, guests in legs:
        for guest in guests:
            pair.wait_runs_only(guest, pair.other(host))


def test_six_guests_cross_at_once_and_come_back_by_the_relays_port_alone(pair: Pair) -> None:
    here, there = [pair.guest(pair.a) for _ in range(3)], [pair.guest(pair.b) for _ in range(3)]
    with counted(pair) as seen:
        move_all(pair, [(pair.a, here), (pair.b, there)])
        move_all(pair, [(pair.b, here), (pair.a, there)])
    assert seen["relay over IPv4"] > 1000
    assert set(seen) <= {"relay over IPv4", "neighbours"}, seen
    for guests, host in ((here, pair.a), (there, pair.b)):
        for guest in guests:
            wait_for(lambda g=guest, h=host: pair.running(g) == [h.name], "it counts at one place")  # type: ignore[misc]
            host.virsh("destroy", guest.name)


def test_a_parallel_migration_over_ipv6_needs_no_other_port(pair: Pair) -> None:
    for host in pair.hosts:
        assert host.relay is not None
        host.relay.stop()
        pair.start_relay(host, over_ipv6=True)
    guest = pair.guest(pair.a)
    with counted(pair) as seen:
        code, said = pair.a.migrate(guest, "--live", "--p2p", "--parallel")
        assert code == 0, said
        pair.wait_runs_only(guest, pair.b)
    assert seen["relay over IPv6"] > 100
    assert set(seen) <= {"relay over IPv6", "neighbours"}, seen
    pair.b.virsh("destroy", guest.name)
