"""Permits in use: one whose guest stayed is given back, once."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from tests.transport.relay.conftest import unheard
from tests.transport.relay.test_evacuations import ID, VM, host, prepared, site
from tests.transport.site import Site
from transport.errors import SpoolFailed
from transport.relay.evacuating import EvacuationDesk
from transport.relay.evacuations import Evacuation, Evacuations
from transport.relay.gateway_answers import Migrate
from transport.relay.host import RelayHost
from transport.relay.news import News

__all__ = ["host", "site"]


@pytest.mark.parametrize("trouble", [SpoolFailed("disk full"), OSError(errno.EMFILE, "Too many open files")])
async def test_permits_that_cannot_be_kept_are_told_as_not_held(
    site: Site, host: RelayHost, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """Descriptors that ran out as the folder was listed ended the relay."""
    told: list[str] = []

    async def fetch(_: str) -> Evacuation:
        return prepared(site)

    async def tell(_: str, problem: str) -> None:
        told.append(problem)

    def fail(*_: object) -> int:
        raise trouble

    monkeypatch.setattr(Evacuations, "keep", fail)
    link: Any = SimpleNamespace(fetch_evacuation=fetch, tell_evacuation_held=tell)
    await EvacuationDesk(host, lambda _: never()).fetch(link, ID)
    assert told == [str(trouble)]


async def never() -> None:
    raise AssertionError("nothing moves")


async def test_the_end_of_a_move_whose_guest_stayed_gives_no_later_one_back(site: Site, host: RelayHost) -> None:
    """Its destination may hear days later that the guest stayed, and the move ends then: it has gone elsewhere."""
    begun: list[Migrate] = []

    async def migrate(order: Migrate) -> None:
        begun.append(order)

    host.evacuations.keep(prepared(site))
    desk = EvacuationDesk(host, migrate)
    await desk.begin(VM, "b")
    tell = desk.noting(begun[0].migration_id, unheard)
    await tell(News("failed", None, None, "the destination cannot be reached"))
    await desk.begin(VM, "c")
    await tell(News("failed", None, None, "the destination cannot be reached"))
    (kept,) = host.evacuations.all()
    assert kept.begun == {VM: site.spiffe("c")}
