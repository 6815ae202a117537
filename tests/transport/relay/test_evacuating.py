"""Permits in use: one whose guest stayed is given back, once."""

from __future__ import annotations

from tests.transport.relay.conftest import unheard
from tests.transport.relay.test_evacuations import VM, host, prepared, site
from tests.transport.site import Site
from transport.relay.evacuating import EvacuationDesk
from transport.relay.gateway_answers import Migrate
from transport.relay.host import RelayHost
from transport.relay.news import News

__all__ = ["host", "site"]


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
