"""Moving VMs off this host by evacuation permits, at the word of an operator on it. Needs no gateway."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from transport.errors import LocalBroken, TransportError
from transport.relay.evacuations import Evacuation, shown
from transport.relay.gateway_answers import GatewayAway, GatewayRefuses, Migrate
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost
from transport.relay.news import News, Tell

log = structlog.get_logger("sealane.relay")
_FINAL: Final = frozenset({"completed", "failed", "cancelled"})
_REMEMBERED: Final = 1024


@dataclass(slots=True)
class _Use:
    """One permit in use."""

    evacuation_id: str
    vm: str
    vm_name: str
    destination: str
    news: News = field(default_factory=lambda: News("running"))

    def document(self, migration_id: str) -> dict[str, object]:
        seen = self.news.progress
        return {
            "migration_id": migration_id,
            "vm": self.vm,
            "destination": self.destination,
            "state": self.news.state,
            "message": self.news.message,
            "downtime_ms": self.news.downtime_ms,
            "transferred_bytes": seen.transferred_bytes if seen else 0,
            "remaining_bytes": seen.remaining_bytes if seen else 0,
        }


class EvacuationDesk:
    """`migrate`: begin what an assignment of the gateway would."""

    def __init__(self, host: RelayHost, migrate: Callable[[Migrate], Awaitable[None]]) -> None:
        self._host = host
        self._migrate = migrate
        self._uses: dict[str, _Use] = {}
        self._withdrawn: dict[str, bool] = {}  # of what is on its way here: whether it was withdrawn since

    async def fetch(self, link: GatewayLinks, evacuation_id: str) -> None:
        """Take what the gateway has prepared for this host; it hears whether it is held."""
        problem = ""
        self._withdrawn[evacuation_id] = False
        try:
            evacuation = await link.fetch_evacuation(evacuation_id)
            await self._host.on_disk(self._host.evacuations.keep, evacuation)
            if self._withdrawn[evacuation_id]:
                await self._host.on_disk(self._host.evacuations.withdraw, evacuation_id)
                raise LocalBroken("it was withdrawn meanwhile")
            log.warning("evacuation permits are held", evacuation=evacuation_id, permits=len(evacuation.orders))
        except (TransportError, OSError) as error:
            problem = str(error)
            if self._host.log_rate.allows("evacuation permits are not held"):  # a gateway may make up any number
                log.error("evacuation permits are not held", evacuation=evacuation_id, cause=problem)
        finally:
            del self._withdrawn[evacuation_id]
        try:
            await link.tell_evacuation_held(evacuation_id, problem)
        except (GatewayAway, GatewayRefuses) as error:
            if self._host.log_rate.allows("the gateway was not told that evacuation permits are held"):
                log.info("the gateway was not told that evacuation permits are held", cause=str(error))

    async def withdraw(self, evacuation_id: str) -> None:
        if evacuation_id in self._withdrawn:
            self._withdrawn[evacuation_id] = True
        try:
            if await self._host.on_disk(self._host.evacuations.withdraw, evacuation_id):
                log.warning("evacuation permits are withdrawn", evacuation=evacuation_id)
        except (TransportError, OSError) as error:
            if self._host.log_rate.allows("evacuation permits could not be withdrawn"):
                log.error("evacuation permits could not be withdrawn", evacuation=evacuation_id, cause=str(error))

    async def begin(self, vm: str, to: str | None) -> dict[str, object]:
        """Use a permit; the migration runs on by itself. LocalBroken in words, OfferRefused, SpoolFailed."""
        for use in self._uses.values():
            if vm in {use.vm, use.vm_name} and use.news.state not in _FINAL:
                there = use.destination.rpartition("/")[2]
                raise LocalBroken(f"{vm} is on its way to {there}: `sealane relay status` shows how far")
        evacuation, order, claims = await self._host.on_disk(self._host.evacuations.take, vm, to)
        migration_id = claims.migration_id
        if any(each.claims.migration_id == migration_id for each in self._host.board.entries):
            # Told to begin, it would not; and what is noted as begun is taken back by the news of its end alone.
            await self._give_back(evacuation.evacuation_id, order.vm, is_spent=False)
            raise LocalBroken(f"an earlier move of {vm} by this permit is not over yet: try again in a moment")
        use = _Use(evacuation.evacuation_id, order.vm, order.vm_name, order.destination)
        self._uses[migration_id] = use
        while len(self._uses) > _REMEMBERED:
            del self._uses[next(iter(self._uses))]
        log.warning("an evacuation permit is used", migration=migration_id, vm=order.vm, to=order.destination)
        await self._migrate(
            Migrate(
                migration_id,
                order.permit,
                order.destination_address,
                float(order.session_seconds),
                order.downtime_limit_ms,
            )
        )
        return use.document(migration_id)

    def noting(self, migration_id: str, tell: Tell) -> Tell:
        """`tell`, and if it is of an evacuation, its news are kept for whoever asked for it."""
        use = self._uses.get(migration_id)
        if use is None:
            return tell

        async def note(news: News) -> None:
            was_over = use.news.state in _FINAL  # it says so again when its destination has heard, perhaps days later
            use.news = news if news.progress or news.state in _FINAL else News(news.state, use.news.progress)
            if news.state in _FINAL and news.state != "completed" and not was_over:
                await self._give_back(use.evacuation_id, use.vm, is_spent=news.is_spent)
            await tell(news)

        return note

    def outcome(self, migration_id: str) -> dict[str, object] | None:
        use = self._uses.get(migration_id)
        return None if use is None else use.document(migration_id)

    async def shown(self) -> list[dict[str, object]]:
        held: list[Evacuation] = await self._host.on_disk(self._host.evacuations.all)
        return shown(held, int(time.time()))

    async def _give_back(self, evacuation_id: str, vm: str, *, is_spent: bool) -> None:
        try:
            await self._host.on_disk(self._host.evacuations.give_back, evacuation_id, vm, is_spent=is_spent)
        except (TransportError, OSError) as error:
            log.error("an evacuation permit stays noted as used", vm=vm, cause=str(error))
