"""Post-copy: the guest runs at the destination before it is whole there, and can never run at the source again.

QEMU runs as root here: as another user it may use userfaultfd only where vm.unprivileged_userfaultfd is 1.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo.guest import count_passes
from tests.transport.libvirt.failures import DURING_FINISH, KINDS, with_relays
from tests.transport.libvirt.hosts import Guest, Pair, require_programs, two_hosts, wait_for
from tests.transport.libvirt.test_resumed_post_copy import receipts, unsettled

pytestmark = [pytest.mark.real, pytest.mark.whole]


@pytest.fixture(scope="module")
def rooted() -> Iterator[Pair]:
    require_programs()
    with tempfile.TemporaryDirectory(prefix="slp") as folder, two_hosts(Path(folder), qemu_user="root") as pair:
        yield pair


def switched(pair: Pair, guest: Guest) -> bool:
    """Whether the source's relay saw the guest stopped for post-copy."""
    assert pair.a.relay is not None
    lines = pair.a.relay.log.read_text().splitlines()
    return any("stopped here for post-copy" in line and guest.uuid in line for line in lines)


@pytest.mark.parametrize("way", [("--p2p",), ()])
def test_a_guest_that_never_converges_moves_by_post_copy(rooted: Pair, way: tuple[str, ...]) -> None:
    guest = rooted.guest(rooted.a)
    slow = ("--bandwidth", "16")  # MiB/s: less than it writes
    code, said = rooted.a.migrate(guest, "--live", *way, *slow, "--postcopy", "--postcopy-after-precopy")
    assert code == 0, said
    assert switched(rooted, guest)
    rooted.wait_runs_only(guest, rooted.b)
    count_passes(guest.printed(rooted.a) + guest.printed(rooted.b))
    wait_for(lambda: not unsettled(rooted, guest), "both relays have settled the session")
    assert receipts(rooted, guest) == {("source", False, False), ("destination", False, False)}
    rooted.b.virsh("destroy", guest.name)


def test_post_copy_that_is_allowed_and_not_needed_is_a_pre_copy(rooted: Pair) -> None:
    guest = rooted.guest(rooted.a)
    code, said = rooted.a.migrate(guest, "--live", "--p2p", "--postcopy")
    assert code == 0, said
    assert not switched(rooted, guest)
    rooted.wait_runs_only(guest, rooted.b)
    rooted.b.virsh("destroy", guest.name)


def test_a_libvirtd_that_is_restarted_at_the_destination_takes_no_guest_along(rooted: Pair) -> None:
    """Its memory is on the way, by the relays alone; libvirt without them would have kept the guest, too."""
    outcome = with_relays(rooted, KINDS["postcopy"], "b", DURING_FINISH, "libvirtd b")
    assert (outcome.where, outcome.twice) == (("b",), False)
