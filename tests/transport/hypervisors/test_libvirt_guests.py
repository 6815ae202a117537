"""A real libvirtd: what runs, how it came, and events that say so at once; read-only."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio

from tests.transport.hypervisors.libvirtd import Libvirtd, running_libvirtd
from transport.hypervisors.errors import HypervisorError, HypervisorRefused, HypervisorUnreachable
from transport.hypervisors.guests import Arrival, Presence
from transport.hypervisors.libvirt_guests import LibvirtGuests
from transport.hypervisors.virsh import XMLS_AT_ONCE, Virsh

pytestmark = pytest.mark.real
VM = "7f9c24e8-3b5a-4f0e-8d6b-0c2a1e5d9f01"


@pytest.fixture
async def libvirtd() -> AsyncIterator[Libvirtd]:
    with tempfile.TemporaryDirectory(prefix="sl", ignore_cleanup_errors=True) as folder:
        async with running_libvirtd(Path(folder) / "a") as running:
            yield running


async def test_a_start_a_save_and_a_restore_are_seen_by_events_and_told_apart(libvirtd: Libvirtd) -> None:
    guests = LibvirtGuests(libvirtd.read_only_uri, "virsh", recheck_seconds=3600)
    news, heard = trio.open_memory_channel[None](100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(guests.follow, lambda: news.send_nowait(None))

        async def sighting() -> tuple[Presence, Arrival | None] | None:
            """After an event; None if the guest is not there."""
            with trio.fail_after(20):
                await heard.receive()
                seen, present = await guests.look(trio.current_time())
            return (seen[0].presence, seen[0].arrival) if present else None

        async def until(wanted: tuple[Presence, Arrival | None] | None) -> None:
            while await sighting() != wanted:
                pass

        await guests.look(trio.current_time())
        with trio.fail_after(10):
            while not guests.hears_events:
                await trio.sleep(0.01)
        await libvirtd.start("guest one", VM, "<interface type='user'/>")
        await until((Presence.ACTIVE, Arrival.STARTED))
        await libvirtd.virsh("save", "guest one", str(libvirtd.folder / "saved"))
        await until(None)
        await libvirtd.virsh("restore", str(libvirtd.folder / "saved"))
        await until((Presence.ACTIVE, Arrival.RESTORED))
        assert await guests.look(trio.current_time()) == ([], [VM])  # nothing happened: nothing is asked
        nursery.cancel_scope.cancel()


async def test_without_events_it_is_asked_each_time(libvirtd: Libvirtd) -> None:
    await libvirtd.start("web", VM)
    guests = LibvirtGuests(libvirtd.read_only_uri, "virsh", recheck_seconds=3600)
    for _ in range(2):
        (seen,), present = await guests.look(trio.current_time())
        assert (seen.name, seen.run_state, present) == ("web", "running", [VM])


async def test_a_device_that_is_plugged_in_later_is_seen(libvirtd: Libvirtd) -> None:
    """The test's machine takes no host device: its description is real but for that one line."""
    await libvirtd.start("web", VM)
    guests = LibvirtGuests(libvirtd.read_only_uri, "virsh", recheck_seconds=1)
    ((before,), _) = await guests.look(0.0)
    real = guests._virsh.domain_xmls

    async def with_device(uuids: Sequence[str]) -> dict[str, str]:
        device = "<hostdev mode='subsystem' type='pci'/></devices>"
        return {uuid: xml.replace("</devices>", device) for uuid, xml in (await real(uuids)).items()}

    guests._virsh.domain_xmls = with_device  # type: ignore[method-assign]
    ((soon,), _) = await guests.look(10.0)
    ((later,), _) = await guests.look(31.0)
    assert (before.devices, soon.devices) == ((), ())  # read at most twice a minute
    assert later.devices == ("hostdev:pci",)


async def test_many_domains_are_described_by_few_commands_and_one_that_has_ended_is_left_out(
    libvirtd: Libvirtd,
) -> None:
    """Fifty of them, two times a minute: a virsh for each took more of the host than a relay may when nothing moves."""
    await libvirtd.start("web", VM)
    virsh, asked = Virsh(libvirtd.read_only_uri), list[str]()
    real = virsh.ask

    async def ask(*arguments: str, read_only: bool = True) -> str:
        asked.extend(arguments)
        return await real(*arguments, read_only=read_only)

    virsh.ask = ask  # type: ignore[method-assign]
    gone = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(XMLS_AT_ONCE)]
    found = await virsh.domain_xmls([*gone[:8], VM, *gone[8:]])
    assert list(found) == [VM]
    assert (found[VM][:8], found[VM][-9:]) == ("<domain ", "</domain>")
    assert len(asked) == 2
    assert await virsh.domain_xmls([]) == {}


async def test_a_libvirtd_that_is_away_is_an_error_and_no_empty_host(libvirtd: Libvirtd) -> None:
    guests = LibvirtGuests(libvirtd.read_only_uri.replace("libvirt-sock-ro", "nobody"), "virsh", 30)
    with pytest.raises(HypervisorUnreachable):
        await guests.look(0.0)


async def test_the_relays_connection_cannot_change_anything(libvirtd: Libvirtd) -> None:
    await libvirtd.start("web", VM)
    with pytest.raises(HypervisorRefused, match="read only"):
        await Virsh(libvirtd.read_only_uri).ask("destroy", "web")
    with pytest.raises(HypervisorError):
        await Virsh(libvirtd.read_only_uri).ask("dumpxml", "nobody")
