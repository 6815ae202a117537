"""Permits in use: one whose guest stayed is given back, once."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from tests.transport.relay.conftest import unheard
from tests.transport.relay.test_evacuations import ID, VM, host, prepared, site
from tests.transport.site import Site
from transport.errors import LocalBroken, SpoolFailed
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


@pytest.mark.parametrize("comes", ["while it is fetched", "while it is kept"])
async def test_what_is_withdrawn_on_its_way_here_is_not_held(
    site: Site, host: RelayHost, monkeypatch: pytest.MonkeyPatch, comes: str
) -> None:
    """Else this host would hold for hours what the log says that it was told to forget."""
    told: list[str] = []
    desk = EvacuationDesk(host, lambda _: never())
    keep = Evacuations.keep

    async def fetch(_: str) -> Evacuation:
        if comes == "while it is fetched":
            await desk.withdraw(ID)
        return prepared(site)

    def keep_late(evacuations: Evacuations, evacuation: Evacuation) -> int:
        if comes == "while it is kept":
            trio.from_thread.run(desk.withdraw, ID)
        return keep(evacuations, evacuation)

    async def tell(_: str, problem: str) -> None:
        told.append(problem)

    monkeypatch.setattr(Evacuations, "keep", keep_late)
    link: Any = SimpleNamespace(fetch_evacuation=fetch, tell_evacuation_held=tell)
    await desk.fetch(link, ID)
    assert host.evacuations.all() == []
    assert told == ["it was withdrawn meanwhile"]
    comes = ""
    await desk.fetch(link, ID)
    assert (len(host.evacuations.all()), told[1:]) == (1, [""]), "and that was of that time alone"


async def begins(_: Migrate) -> None:
    """And tells nothing yet."""


async def never() -> None:
    raise AssertionError("nothing moves")


async def test_the_end_of_a_move_whose_guest_stayed_gives_no_later_one_back(site: Site, host: RelayHost) -> None:
    """Its destination may hear days later that the guest stayed, and the move ends then: it has gone elsewhere."""
    host.evacuations.keep(prepared(site))
    desk = EvacuationDesk(host, begins)
    tell = desk.noting(str((await desk.begin(VM, "b"))["migration_id"]), unheard)
    await tell(News("failed", None, None, "the destination cannot be reached"))
    await desk.begin(VM, "c")
    await tell(News("failed", None, None, "the destination cannot be reached"))
    (kept,) = host.evacuations.all()
    assert kept.begun == {VM: site.spiffe("c")}


async def test_a_vm_that_is_on_its_way_is_told_so_by_either_of_its_names(site: Site, host: RelayHost) -> None:
    host.evacuations.keep(prepared(site))
    desk = EvacuationDesk(host, begins)
    await desk.begin("web", None)
    for name in ("web", VM):
        with pytest.raises(LocalBroken, match="is on its way to b"):
            await desk.begin(name, "c")


async def test_after_a_permit_that_was_used_in_vain_the_next_destination_comes(site: Site, host: RelayHost) -> None:
    """Used again, its session's receipt would take the place of the one that says what was carried."""
    host.evacuations.keep(prepared(site))
    desk = EvacuationDesk(host, begins)
    begun = str((await desk.begin("web", None))["migration_id"])
    await desk.noting(begun, unheard)(News("cancelled", message="on request", is_spent=True))
    assert (await desk.begin("web", None))["destination"] == site.spiffe("c")


async def test_a_permit_whose_earlier_session_is_not_over_is_not_noted_as_begun(site: Site, host: RelayHost) -> None:
    """It ends late where the disk is full: told to begin, it would not, and its VM could be sent nowhere any more."""
    host.evacuations.keep(prepared(site))
    order = host.evacuations.all()[0].orders[0]
    permit = host.permits.verify(order.permit, source=host.spiffe_id, destination=None)
    desk = EvacuationDesk(host, lambda _: never())
    with host.board.session("source", permit.claims), pytest.raises(LocalBroken, match="not over yet"):
        await desk.begin("web", "b")
    (kept,) = host.evacuations.all()
    assert kept.begun == {}
