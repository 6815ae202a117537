"""What a former process of the relay left: its guest comes first, and what nobody hears keeps nothing."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.transport.relay.conftest import unheard, until
from tests.transport.relay.test_carriage import VM
from tests.transport.site import Site
from transport.errors import ConnectionBroken, SpoolFailed
from transport.relay import former_sessions, handover
from transport.relay.evacuations import Evacuations
from transport.relay.host import RelayHost, open_host
from transport.relay.socket_ends import SocketSource
from transport.wire.control import Role


class Guest(SocketSource):
    """A source's end that has a guest."""

    vm_binding = "uuid"
    hands_over = True

    async def resume_guest(self) -> None:
        pass


@pytest.mark.parametrize(
    "trouble", [None, SpoolFailed("no space left on device"), OSError(errno.EMFILE, "Too many open files")]
)
async def test_an_evacuated_guest_that_stayed_may_go_elsewhere_before_its_destination_has_heard_of_it(
    site: Site, monkeypatch: pytest.MonkeyPatch, trouble: Exception | None
) -> None:
    """Which is gone, perhaps for good: so the host could be emptied of it only after 30 days."""
    host = open_host(site.relay_config("a"))
    tries: list[str] = []
    stayed: list[tuple[str, str]] = []

    async def gone(*_: object) -> None:
        tries.append("")
        raise ConnectionBroken("nobody is there any more")

    def note(_: Evacuations, vm: str, destination: str) -> None:
        stayed.append((vm, destination))
        if trouble is not None:
            raise trouble

    monkeypatch.setattr(handover, "_settle_with", gone)
    monkeypatch.setattr(Evacuations, "stayed", note)
    monkeypatch.setattr(RelayHost, "source_end", lambda *_: Guest(frozenset()))
    journal = host.spool.begin(
        Role.SOURCE, "1" * 32, session_id="1" * 32, vm=VM, permit=site.permit(vm=VM), address="127.0.0.9:1"
    )
    link: Any = SimpleNamespace(tell=lambda _id, news: unheard(news))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(former_sessions._settle, host, journal, link, nursery)
        await until(lambda: bool(tries))
        assert stayed == [(VM, site.spiffe("b"))]
        await until(lambda: len(tries) > 1)
        nursery.cancel_scope.cancel()
