"""A destination whose disk takes nothing for a while: what was owed is done when it does again, without a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from certs.identity import spiffe_id_of
from certs.tls import ControlPeer
from tests.transport.relay.conftest import Pair, host_with, serving, until
from tests.transport.relay.test_carriage import VM, dial, listen
from tests.transport.relay.test_hostile_peer import states
from tests.transport.site import Site
from transport.errors import OfferRefused, RefusalCode, SpoolFailed
from transport.relay import destination_session, former_sessions, spool
from transport.relay.destination import Destination
from transport.relay.host import RelayHost, now, open_host
from transport.relay.socket_ends import SocketDestination
from transport.wire.control import Role
from transport.wire.messages import Offer


class Disk:
    """Takes no line of a destination with that state while it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: str) -> None:
        self.is_full, self.refused = True, 0
        append = spool._append_line

        def append_unless_full(path: Path, entry: dict[str, Any]) -> None:
            if self.is_full and path.name.startswith("destination") and entry["state"] == state:
                self.refused += 1
                raise SpoolFailed("No space left on device")
            append(path, entry)

        monkeypatch.setattr(spool, "_append_line", append_unless_full)


async def carried(pair: Pair, path: Path) -> str:
    async with listen(pair.site) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(pair.carry, pair.site.permit(vm=VM), path)
        source = await dial(path)
        destination = await listener.accept()
        await source.aclose()
        await destination.aclose()
    return pair.news[-1].state


async def test_a_session_whose_end_cannot_be_noted_keeps_its_vm_no_longer_than_the_disk_is_full(
    site: Site, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It kept it until the relay was restarted."""
    disk = Disk(monkeypatch, "ended")
    async with serving(host_with(site, "b", {"settle_retry_seconds": 0.05})) as (destination, address):
        pair = Pair(site, host_with(site, "a", {}), destination, address)
        with trio.fail_after(30):
            assert await carried(pair, short_path / "one.sock") == "completed"
            await until(lambda: disk.refused > 0)
            disk.is_full = False
            await until(lambda: not states(destination))


async def test_a_source_is_told_what_its_offer_failed_by_and_not_that_its_permit_is_spent(
    site: Site, short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch, "ended")
    async with serving(host_with(site, "b", {})) as (destination, address):
        pair = Pair(site, host_with(site, "a", {"resume_seconds": 5.0}), destination, address)
        with trio.fail_after(30):
            news = await pair.carry(site.permit(vm=VM), short_path / "one.sock")
        assert disk.refused == 1
    assert news.state == "failed"
    assert "nobody listens" in news.message


class InPostCopy(SocketDestination):
    """A destination's end whose guest runs and lacks memory."""

    vm_binding = "uuid"
    hands_over = True

    def __init__(self) -> None:
        super().__init__(None)
        self.listened = 0

    async def listen_again(self, folder: Path) -> None:  # noqa: ARG002
        self.listened += 1

    async def hold_until_whole(self) -> None:
        await trio.sleep_forever()


async def test_a_guest_in_post_copy_is_recovered_once_the_disk_takes_the_receipt_of_what_went_before(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its QEMU was told to listen, and its source heard nothing."""
    host, end = host_with(site, "b", {}), InPostCopy()
    monkeypatch.setattr(RelayHost, "destination_end", lambda *_: end)
    permit = site.permit(vm=VM)
    facts = {"session_id": "1" * 32, "source": site.spiffe("a"), "permit": permit, "folder": str(site.folder / "none")}
    journal = host.spool.begin(Role.DESTINATION, "1" * 32, **facts, started_at=now().isoformat())
    journal.append("prepared")
    journal.append("running", post_copy=True)
    journal.append("started")
    keep, full = host.spool.keep_receipt, True

    def keep_unless_full(name: str, receipt: bytes) -> None:
        if full:
            raise SpoolFailed("No space left on device")
        keep(name, receipt)

    monkeypatch.setattr(host.spool, "keep_receipt", keep_unless_full)
    leaf = open_host(site.relay_config("a")).credentials.chain[0]
    peer = ControlPeer(spiffe_id_of(leaf), leaf, b"", (), "", "", "")
    async with trio.open_nursery() as nursery:
        destination = Destination(host, nursery)
        destination.recover(journal, former_sessions._permit_of(host, journal))
        with pytest.raises(OfferRefused) as refused:
            await destination.admissions.admit(Offer(1, "recover", (permit,), "2" * 32, 0), peer)
        assert (refused.value.code, end.listened) == (RefusalCode.INTERNAL, 0)
        full = False
        monkeypatch.setattr(destination_session, "_RECOVERY_SECONDS", 0.0)
        session = await destination.admissions.admit(Offer(1, "recover", (permit,), "3" * 32, 0), peer)
        assert (session.recovery_id, end.listened) == ("3" * 32, 1)
        nursery.cancel_scope.cancel()
