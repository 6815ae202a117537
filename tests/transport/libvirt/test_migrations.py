"""Unmodified clients of libvirt move real guests through two relays; what must not pass does not."""

from __future__ import annotations

import subprocess

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import Pair, make_disk

pytestmark = [pytest.mark.real, pytest.mark.whole]

MODES = {
    "peer to peer": ("--live", "--p2p"),
    "parallel": ("--live", "--p2p", "--parallel", "--parallel-connections", "3"),
    "direct": ("--live",),
    "direct, parallel": ("--live", "--parallel"),
    "stopped": ("--p2p",),
}


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_moves_and_goes_on_counting_without_a_gap(pair: Pair, mode: str) -> None:
    guest = pair.guest(pair.a)
    code, said = pair.a.migrate(guest, *MODES[mode])
    assert code == 0, said
    # The relay answers libvirt's goodbye only when the guest runs: whoever waited finds it running.
    assert pair.b.state(guest) == "running" or mode.startswith("direct")
    pair.wait_runs_only(guest, pair.b)
    count_passes(guest.printed(pair.a) + guest.printed(pair.b))
    pair.b.virsh("destroy", guest.name)


def test_virshs_own_bandwidth_is_kept(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    code, said = pair.a.migrate(guest, "--live", "--p2p", "--bandwidth", "32")
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    assert pair.b.arrived_mib_per_second(guest) < 64  # 250 without it
    pair.b.virsh("destroy", guest.name)


def test_a_client_that_knows_tcp_only_is_led_by_a_loopback_address(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    code, said = pair.a.migrate(
        guest, "--live", "--p2p", "--migrateuri", "tcp://127.77.0.2", uri="qemu+tcp://127.77.0.2/system"
    )
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    pair.b.virsh("destroy", guest.name)


def test_a_guest_that_is_to_arrive_suspended_stays_so(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    code, said = pair.a.migrate(guest, "--live", "--p2p", "--suspend")
    assert code == 0, said
    assert pair.b.state(guest) == "paused"
    assert not pair.a.qemus(guest)
    pair.b.virsh("resume", guest.name)
    pair.wait_runs_only(guest, pair.b)
    pair.b.virsh("destroy", guest.name)


def test_a_definition_moves_along_and_leaves_the_source(pair: Pair) -> None:
    guest = pair.guest(pair.a, persistent=True)
    code, said = pair.a.migrate(guest, "--live", "--p2p", "--persistent", "--undefinesource")
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    assert pair.a.state(guest) == ""
    pair.b.virsh("destroy", guest.name)
    assert pair.b.state(guest) == "shut off"
    pair.b.virsh("undefine", guest.name)


def test_a_refusal_is_what_the_operator_reads(pair: Pair) -> None:
    guest = pair.guest(pair.a)
    pair.deny("denied by policy zone-of-production: VMs of zone production stay in it (record 17)")
    try:
        code, said = pair.a.migrate(guest, "--live", "--p2p")
    finally:
        pair.allow()
    assert code != 0
    assert "denied by policy zone-of-production" in said
    assert pair.a.state(guest) == "running"
    assert not pair.b.qemus(guest)
    pair.a.virsh("destroy", guest.name)


@pytest.mark.parametrize(
    "command",
    [("list", "--all"), ("destroy", "NAME"), ("dumpxml", "NAME"), ("qemu-monitor-command", "NAME", "--hmp", "quit")],
)
def test_nothing_but_a_migration_passes_the_front(pair: Pair, command: tuple[str, ...]) -> None:
    guest = pair.guest(pair.b)
    line = [guest.name if word == "NAME" else word for word in command]
    done = subprocess.run(
        pair.a.inside("virsh", "-c", pair.a.front_uri, *line), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert guest.name not in done.stdout
    assert pair.b.state(guest) == "running"
    pair.b.virsh("destroy", guest.name)


@pytest.mark.parametrize(
    ("option", "words"), [("--tls", "leave it away"), ("--tunnelled", "refused"), ("--dname=other", "--dname")]
)
def test_what_is_not_carried_is_refused_in_words(pair: Pair, option: str, words: str) -> None:
    guest = pair.guest(pair.a)
    code, said = pair.a.migrate(guest, "--live", "--p2p", option)
    assert code != 0
    assert words in said
    assert pair.a.state(guest) == "running"
    pair.a.virsh("destroy", guest.name)


def test_a_guest_with_a_command_line_of_its_own_does_not_reach_the_destination(pair: Pair) -> None:
    qemu = "<qemu:commandline><qemu:arg value='-global'/><qemu:arg value='isa-serial.index=0'/></qemu:commandline>"
    guest = pair.guest(pair.a, qemu=qemu)
    code, said = pair.a.migrate(guest, "--live", "--p2p")
    assert code != 0
    assert "allow_qemu_namespace" in said
    pair.wait_runs_only(guest, pair.a)
    pair.a.virsh("destroy", guest.name)


@pytest.mark.parametrize("way", ["unix socket", "loopback address"])
def test_disks_are_copied_along(pair: Pair, way: str) -> None:
    content = bytes(range(256))
    name = f"d{len(pair.guests)}"
    make_disk(pair.b, name, None)
    guest = pair.guest(pair.a, devices=make_disk(pair.a, name, content))
    more = ["--disks-uri", f"unix://{pair.a.front.parent}/disks-{name}.sock"] if way == "unix socket" else []
    code, said = pair.a.migrate(guest, "--live", "--p2p", "--copy-storage-all", *more)
    assert code == 0, said
    pair.wait_runs_only(guest, pair.b)
    pair.b.virsh("destroy", guest.name)
    assert (pair.b.base / "lib" / f"{name}.img").read_bytes() == content * ((4 << 20) // 256)


@pytest.mark.parametrize("path", ["/etc/disks.sock", "front/b/libvirt.sock"])
def test_disks_go_nowhere_but_to_the_fronts_own_folder(pair: Pair, path: str) -> None:
    name = f"d{len(pair.guests)}"
    make_disk(pair.b, name, None)
    guest = pair.guest(pair.a, devices=make_disk(pair.a, name, None))
    at = path if path.startswith("/") else f"{pair.a.base}/{path}"
    code, said = pair.a.migrate(guest, "--live", "--p2p", "--copy-storage-all", "--disks-uri", f"unix://{at}")
    assert code != 0
    assert "disks-NAME.sock" in said
    pair.a.virsh("destroy", guest.name)


def test_a_definition_alone_moves_offline(pair: Pair) -> None:
    guest = pair.guest(pair.a, persistent=True)
    pair.a.virsh("destroy", guest.name)
    code, said = pair.a.migrate(guest, "--offline", "--p2p", "--persistent", "--undefinesource")
    assert code == 0, said
    assert pair.b.state(guest) == "shut off"
    assert pair.a.state(guest) == ""
    pair.b.virsh("undefine", guest.name)
