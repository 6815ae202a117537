"""A relay's gateways, where its site runs two: each with its own log and keys, none knowing the other's assignments.

It polls all of them at once, answers each about what came from it, and asks the next one where one is away. Receipts
and placement go to all, and with a receipt the permit that it stands on: so a gateway that did not permit a move knows,
by the other's pinned keys and log, that it was permitted. With one gateway this is that one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from transport.hypervisors.preflight_facts import Inspection
from transport.relay.evacuations import Evacuation
from transport.relay.gateway_answers import Assignment, GatewayAway, GatewayRefuses, Migrate
from transport.relay.gateway_link import GatewayLink
from transport.relay.host import RelayHost
from transport.relay.news import News
from transport.relay.receipts import for_gateway_and_permit
from transport.relay.wish import Wish

log = structlog.get_logger("sealane.relay")
_RETRY_SECONDS: Final = 2.0
_LOOK_SECONDS: Final = 1.0
_REMEMBERED: Final = 4096
_NEXT_SECONDS: Final = 5.0  # after which silence of one gateway has the next one asked
_FORBIDDEN: Final = 403

Hear = Callable[[str | None, GatewayLink], Awaitable[None]]
Take = Callable[[Assignment], Awaitable[None]]


class GatewayLinks:
    """All of them, the configured order first to last."""

    def __init__(self, host: RelayHost) -> None:
        self._host = host
        self.all = [GatewayLink(host, url) for url in (host.config.gateway.url, *host.config.gateway.others)]
        self._origin: dict[str, GatewayLink] = {}
        self._taken: dict[tuple[str, int], set[GatewayLink]] = {}  # receipts, and who has them on record
        self._refused: dict[tuple[str, int], set[GatewayLink]] = {}
        self._delivering = {link: trio.Lock() for link in self.all}

    async def close(self) -> None:
        for link in self.all:
            await link.close()

    async def use_identity(self) -> None:
        """See `GatewayLink.use_identity`."""
        for link in self.all:
            await link.use_identity()

    async def run(self, take: Take, hear: Hear) -> None:
        """Poll each, deliver receipts to each, keep the address book by whichever answers; for ever."""
        async with trio.open_nursery() as nursery:
            for link in self.all:
                nursery.start_soon(link.poll_forever, partial(self._take, link, take), partial(_heard, link, hear))
                nursery.start_soon(self._deliver_forever, link)
                nursery.start_soon(link.keep_address_book_forever)

    async def _take(self, link: GatewayLink, take: Take, assignment: Assignment) -> None:
        """Whose it is: news of it go back there."""
        names = ("migration_id", "inspection_id", "evacuation_id")
        found = next(str(getattr(assignment, name)) for name in names if hasattr(assignment, name))
        self._remember(found, link)
        await take(assignment)

    def _remember(self, name: str, link: GatewayLink) -> None:
        self._origin[name] = link
        while len(self._origin) > _REMEMBERED:
            del self._origin[next(iter(self._origin))]

    async def ask(self, path: str, body: dict[str, object], at_most: int) -> bytes:
        """The first that answers. GatewayAway: none does; GatewayRefuses."""
        for link in self.all[:-1]:
            try:
                with trio.fail_after(_NEXT_SECONDS * 2):
                    return await link.ask(path, body, at_most)
            except (GatewayAway, trio.TooSlowError) as error:
                log.info("this gateway is away; the next one is asked", url=link.url, cause=str(error))
        return await self.all[-1].ask(path, body, at_most)

    async def admit(self, wish: Wish) -> Migrate:
        """See `GatewayLink.admit`; of the first that answers."""
        for link in self.all[:-1]:
            try:
                with trio.fail_after(_NEXT_SECONDS):
                    return self._of(link, await link.admit(wish, passes_on=True))
            except (GatewayAway, trio.TooSlowError) as error:
                log.warning("this gateway is away; the next one is asked for a permit", url=link.url, cause=str(error))
        return self._of(self.all[-1], await self.all[-1].admit(wish))

    def _of(self, link: GatewayLink, permitted: Migrate) -> Migrate:
        self._remember(permitted.migration_id, link)
        return permitted

    async def tell(self, migration_id: str, news: News) -> None:
        """To the gateway that gave the permit; to each where that is not known: of a session that was recovered."""
        link = self._origin.get(migration_id)
        for each in self.all if link is None else [link]:
            await each.tell(migration_id, news)

    async def answer_inspection(self, inspection_id: str, found: Inspection) -> None:
        await self._origin.get(inspection_id, self.all[0]).answer_inspection(inspection_id, found)

    async def fetch_permit(self, migration_id: str) -> Migrate:
        """See `GatewayLink.fetch_permit`."""
        return await self._origin.get(migration_id, self.all[0]).fetch_permit(migration_id)

    async def fetch_evacuation(self, evacuation_id: str) -> Evacuation:
        return await self._origin.get(evacuation_id, self.all[0]).fetch_evacuation(evacuation_id)

    async def tell_evacuation_held(self, evacuation_id: str, problem: str) -> None:
        await self._origin.get(evacuation_id, self.all[0]).tell_evacuation_held(evacuation_id, problem)

    async def show_permit(self, permit: str) -> None:
        """Tell all that a permit is being used here; one that is away learns it with the receipt."""
        if len(self.all) == 1:
            return
        async with trio.open_nursery() as nursery:
            for link in self.all:
                nursery.start_soon(self._show, link, permit)

    async def report_refused_calls(self, report: bytes) -> None:
        """To the first that takes it. GatewayAway: none does."""
        for link in self.all[:-1]:
            try:
                await link.report_refused_calls(report)
            except GatewayAway:
                continue
            return
        await self.all[-1].report_refused_calls(report)

    async def report_placement(self, link: GatewayLink, report: bytes) -> bytes:
        """What moved while it was away, first: a guest that it sees on another host would else be an alarm."""
        await self._deliver(link)
        return await link.report_placement(report)

    async def _show(self, link: GatewayLink, permit: str) -> None:
        try:
            await link.show_permit(permit)
        except (GatewayAway, GatewayRefuses) as error:
            log.info("a gateway was not told of a permit", url=link.url, cause=str(error))

    async def _deliver_forever(self, link: GatewayLink) -> None:
        while True:
            try:
                await self._deliver(link)
                await trio.sleep(_LOOK_SECONDS)
            except GatewayAway as error:
                log.info("receipts are kept for this gateway", url=link.url, cause=str(error))
                await trio.sleep(_RETRY_SECONDS)
            except OSError as error:
                log.error("receipts cannot be read now", cause=str(error))
                await trio.sleep(_RETRY_SECONDS)

    async def _deliver(self, link: GatewayLink) -> None:
        """Bring every kept receipt that this gateway has not. GatewayAway, OSError."""
        async with self._delivering[link]:
            kept = self._host.spool.receipts()
            self._forget_all_but(kept)
            for path in kept:
                with contextlib.suppress(FileNotFoundError):  # the other gateway was the last to take it
                    await self._deliver_one(link, path)

    def _forget_all_but(self, kept: list[Path]) -> None:
        """Who has what: of receipts that newer ones have replaced, or that were taken away, nobody asks any more."""
        current = set()
        for path in kept:
            with contextlib.suppress(FileNotFoundError):
                current.add((path.name, path.stat().st_mtime_ns))
        for of in (self._taken, self._refused):
            for key in of.keys() - current:
                del of[key]

    async def _deliver_one(self, link: GatewayLink, path: Path) -> None:
        key = path.name, path.stat().st_mtime_ns  # a session that was settled again keeps a newer one of that name
        taken, refused = (of.setdefault(key, set()) for of in (self._taken, self._refused))
        if link not in taken | refused:
            body, permit = for_gateway_and_permit(await self._host.on_disk(path.read_bytes))
            try:
                await self._bring(link, body, permit)
                taken.add(link)
            except GatewayRefuses as error:
                log.error("a receipt is refused", receipt=path.name, url=link.url, cause=str(error))
                refused.add(link)
        if len(taken | refused) == len(self.all):
            spool = self._host.spool
            await self._host.on_disk(spool.forget_receipt if taken else spool.set_receipt_aside, path, key[1])
            self._taken.pop(key, None)
            self._refused.pop(key, None)

    async def _bring(self, link: GatewayLink, body: bytes, permit: str | None) -> None:
        """A gateway that knows no such migration is shown the permit, and asked again. GatewayAway, GatewayRefuses."""
        try:
            await link.bring_receipt(body)
        except GatewayRefuses as error:
            if error.status != _FORBIDDEN or permit is None:
                raise
            await link.show_permit(permit)
            await link.bring_receipt(body)


async def _heard(link: GatewayLink, hear: Hear, version: str | None) -> None:
    await hear(version, link)
