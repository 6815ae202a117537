"""Guests between the libvirt and QEMU of this machine and those of another Debian: `make other-libvirt`.

`make test` does not fetch them (270 MB): where they have been fetched it runs these, too, and else it says that they
were left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.hosts import ROOT, Pair, make_disk, require_programs, two_hosts
from tests.transport.libvirt.test_resumed_post_copy import FAILED, RESUME, interrupt, reason, restart

pytestmark = [pytest.mark.real, pytest.mark.whole, pytest.mark.fetched("other-libvirt")]

OTHER = ROOT / ".other-libvirt"
MODES = {
    "peer to peer": ("--live", "--p2p"),
    "direct": ("--live",),
    "parallel": ("--live", "--p2p", "--parallel"),
    "with storage": ("--live", "--p2p", "--copy-storage-all"),
    "its definition": ("--live", "--p2p", "--persistent", "--undefinesource"),
}


@pytest.fixture(scope="module")
def versions() -> Iterator[Pair]:
    require_programs()
    usr = OTHER / "files" / "usr"
    with tempfile.TemporaryDirectory(prefix="slo") as folder, two_hosts(Path(folder), usr_b=usr) as pair:
        yield pair


def test_the_two_hosts_have_different_versions(versions: Pair) -> None:
    here, there = (host.virsh("version", "--daemon")[1] for host in versions.hosts)
    assert here != there
    print(here, there, sep="\n")


@pytest.mark.parametrize("mode", MODES)
def test_a_guest_moves_there_and_back_and_counts_on(versions: Pair, mode: str) -> None:
    """Back, too: it keeps the machine type with which it was started."""
    pair, name = versions, f"d{len(versions.guests)}"
    has_disk, is_persistent = "--copy-storage-all" in MODES[mode], "--persistent" in MODES[mode]
    if has_disk:
        make_disk(pair.b, name, None)
    devices = make_disk(pair.a, name, b"disk") if has_disk else ""
    guest = pair.guest(pair.a, devices=devices, persistent=is_persistent)
    for host in pair.hosts:
        code, said = host.migrate(guest, *MODES[mode])
        assert code == 0, said
        pair.wait_runs_only(guest, pair.other(host))
        if has_disk:
            assert (pair.other(host).base / "lib" / f"{name}.img").read_bytes() == b"disk" * (1 << 20)
        if host is pair.a:
            count_passes(guest.printed(pair.a) + guest.printed(pair.b))
    # Its first file on host a is overwritten by what it printed after its return.
    last_there, first_here = guest.printed(pair.b).split()[-1], guest.printed(pair.a).split()[0]
    assert int(first_here) - int(last_there) in (0, 1)
    for command in ("destroy", *(["undefine"] if is_persistent else [])):
        assert pair.a.virsh(command, guest.name)[0] == 0


def test_a_libvirt_that_dies_of_a_resumption_is_not_asked_for_one() -> None:
    """11.2 and 11.3 do, with libvirt alone, too: whoever moves the guest reads so, and it waits for a newer one."""
    usr = OTHER / "files" / "usr"
    with (
        tempfile.TemporaryDirectory(prefix="slo") as folder,
        two_hosts(Path(folder), qemu_user="root", usr_b=usr) as pair,
    ):
        for host in pair.hosts:
            restart(pair, host)
        guest = pair.guest(pair.a)
        interrupt(pair, guest, "network", "--p2p")
        before = pair.b.libvirtd()
        code, said = pair.a.migrate(guest, "--live", "--p2p", *RESUME)
        assert code != 0
        assert "libvirt 11.3 there dies of it; upgrade it to 11.4 or later" in said
        assert pair.b.libvirtd() == before
        assert all(FAILED in reason(host, guest) for host in pair.hosts)
