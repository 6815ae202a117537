"""The relay's side of the gateway: assignments by long poll, progress, receipts until they are acknowledged.

A gateway that is away delays all of this and stops nothing: a stream whose permit is here goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import msgspec
import structlog
import trio

from transport import link_version
from transport.hypervisors.preflight_facts import Inspection, without_sizes
from transport.relay.address_book import MAX_BYTES, AddressBook
from transport.relay.evacuations import MAX_BYTES as MAX_EVACUATION_BYTES
from transport.relay.evacuations import Evacuation
from transport.relay.gateway_answers import (
    Assignment,
    GatewayAway,
    GatewayRefuses,
    Migrate,
    NotPermitted,
    decode_admission,
    decode_assignments,
    decode_evacuation,
    decode_permit,
    understood,
)
from transport.relay.gateway_line import MAX_ANSWER_BYTES, POLL_SECONDS, GatewayLine
from transport.relay.host import RelayHost
from transport.relay.news import News
from transport.relay.wish import NotAdmitted, Wish

log = structlog.get_logger("sealane.relay")
_RETRY_SECONDS = 2.0
_POLLS_AT_ONCE = 20  # as while a host is emptied; then one each _FLOOR_SECONDS, however soon answers come
_FLOOR_SECONDS = 0.5
_REPORT_SECONDS = 10.0
_FETCH_SECONDS = 10.0
_ADDRESS_BOOK_SECONDS = 60.0
_ADDRESS_BOOK_RETRY_SECONDS = 10.0


class GatewayLink:
    """One relay's conversation with its gateway."""

    def __init__(self, host: RelayHost, url: str | None = None) -> None:
        """`url`: that of the configuration, if none is given."""
        self._host = host
        self.url = url or host.config.gateway.url
        self._line = GatewayLine(host, self.url)

    async def close(self) -> None:
        await self._line.close()

    async def use_identity(self) -> None:
        """Speak with the certificate that is in force now; what was asked with the former one is still answered."""
        await self._line.use_identity()

    async def ask(self, path: str, body: dict[str, object], at_most: int = MAX_ANSWER_BYTES) -> bytes:
        """One question of this host about itself. GatewayAway, GatewayRefuses."""
        return await self._line.post_bytes(path, msgspec.json.encode(body), at_most)

    async def poll_forever(
        self, take: Callable[[Assignment], Awaitable[None]], hear: Callable[[str | None], Awaitable[None]]
    ) -> None:
        """Tell `hear` the version of trust, then hand every assignment to `take`, for ever.

        Says once that the gateway is away, and once that it is back. Answers that come at once, of a gateway that stops
        or of one whose host has a second relay, are not asked for without end.
        """
        away = False
        due = -math.inf
        while True:
            due = max(due, trio.current_time() - _POLLS_AT_ONCE * _FLOOR_SECONDS) + _FLOOR_SECONDS
            await trio.sleep_until(due)
            try:
                answer = understood(decode_assignments, await self._line.post("/v1/relay/poll", self._poll_body()))
            except (GatewayAway, GatewayRefuses) as error:
                if not away and isinstance(error, GatewayRefuses):
                    log.error("the gateway refuses this host; streams go on, no new work comes", cause=str(error))
                elif not away:
                    log.warning("gateway away; streams go on, no new work comes", cause=str(error))
                away = True
                await trio.sleep(_RETRY_SECONDS)
                continue
            if away:
                log.info("gateway is back")
                away = False
            await hear(answer.trust_version)
            for assignment in answer.assignments:
                await take(assignment)

    def _poll_body(self) -> dict[str, object]:
        """A gateway that was not heard yet is asked for no more than the first version has, and answers at once."""
        if self._line.version is None:
            return {"wait_seconds": 0}
        asks: dict[str, object] = {"wait_seconds": POLL_SECONDS}
        if self._line.version >= link_version.ROLLOVERS:
            asks["holds"] = self._host.holds()
        return asks

    async def admit(self, wish: Wish, *, passes_on: bool = False) -> Migrate:
        """Ask for a permit for what a client of libvirt on this host wants. `NotAdmitted`, in words for the caller.

        `passes_on`: GatewayAway where there is another gateway to ask.
        """
        body: dict[str, object] = {"vm": wish.vm, "destination": wish.destination, "ports": list(wish.ports)}
        if wish.token is not None:
            body["token"] = wish.token
        if wish.reason is not None:
            body["reason"] = wish.reason
        try:
            with trio.fail_after(self._host.config.limits.message_seconds):
                answer = understood(decode_admission, await self._line.post("/v1/relay/admission", body))
        except GatewayRefuses as error:
            log.warning("the gateway refuses to answer for a permit", vm=wish.vm, cause=str(error))
            words = "the token that was handed in is not accepted: sign in again" if error.status == 401 else str(error)
            raise NotAdmitted(words) from None
        except (GatewayAway, trio.TooSlowError) as error:
            if passes_on:
                raise GatewayAway(str(error) or "no answer in time") from None
            log.error("the gateway could not be asked for a permit", vm=wish.vm, cause=str(error))
            raise NotAdmitted("the gateway cannot be asked, and nothing moves without its permit") from None
        if isinstance(answer, NotPermitted):
            raise NotAdmitted(answer.message)
        assert isinstance(answer, Migrate)
        return answer

    async def fetch_permit(self, migration_id: str) -> Migrate:
        """The permit that waits for this host; GatewayRefuses once it was withdrawn. GatewayAway: it tells us again."""
        with trio.move_on_after(_FETCH_SECONDS):
            data = await self.ask("/v1/relay/assignment", {"migration_id": migration_id})
            fetched = understood(decode_permit, data)
            if fetched.migration_id != migration_id:
                raise GatewayAway("/v1/relay/assignment: the gateway's answer is of another migration")
            return fetched
        raise GatewayAway("/v1/relay/assignment: no answer in time")

    async def tell(self, migration_id: str, news: News) -> None:
        """Tell how far a migration is. Lost when the gateway is away: receipts, which are kept, say how it ended."""
        seen = news.progress
        body = {
            "migration_id": migration_id,
            "state": news.state,
            "transferred_bytes": seen.transferred_bytes if seen else 0,
            "remaining_bytes": seen.remaining_bytes if seen else 0,
            "total_bytes": seen.total_bytes if seen else 0,
            "rate_bytes_per_second": seen.rate_bytes_per_second if seen else 0,
            "pass": seen.passes if seen else 0,
        }
        if news.downtime_ms is not None:
            body["downtime_ms"] = news.downtime_ms
        if news.message:
            body["message"] = news.message[:500]
        try:
            with trio.fail_after(5):
                await self._line.post("/v1/relay/progress", body)
        except (GatewayAway, GatewayRefuses, trio.TooSlowError) as error:
            if self._host.log_rate.allows("progress was not told"):
                log.info("progress was not told", cause=str(error))

    async def bring_receipt(self, receipt: bytes) -> None:
        """It is on record when this returns. GatewayAway, GatewayRefuses."""
        await self._line.post_bytes("/v1/receipts", receipt)

    async def show_permit(self, permit: str) -> None:
        """Another gateway's, which is or was used here. GatewayAway, GatewayRefuses."""
        await self._line.post("/v1/relay/permit", {"permit": permit})

    async def keep_address_book_forever(self) -> None:
        """Ask now and then whether the gateway has another address book; keep what it gives."""
        kept = self._host.addresses
        while True:
            try:
                await self.refresh_address_book()
                await trio.sleep(_ADDRESS_BOOK_SECONDS)
            except (GatewayAway, GatewayRefuses) as error:
                age = kept.book.age_seconds(int(time.time()))
                log.info("the address book stays as it is", age_seconds=age, cause=str(error))
                await trio.sleep(_ADDRESS_BOOK_RETRY_SECONDS)

    async def refresh_address_book(self) -> None:
        """Fetch the book if it has changed. GatewayAway, GatewayRefuses leave the one that is in force."""
        kept = self._host.addresses
        body = msgspec.json.encode({"known_version": kept.book.version})
        data = await self._line.post_bytes("/v1/relay/hosts", body, MAX_BYTES)
        moment = int(time.time())
        try:
            book = replace(kept.book, fetched=moment) if data == b"null" else AddressBook.decode(data, moment)
        except ValueError as error:
            raise GatewayAway(f"its address book is none: {error}") from None
        try:
            await self._host.on_disk(kept.keep, book)
        except OSError as error:
            log.error("the address book cannot be kept for the time when the gateway is away", cause=str(error))

    async def report_placement(self, report: bytes) -> bytes:
        """Bring one placement report; the gateway's answer. GatewayAway, GatewayRefuses."""
        with trio.move_on_after(_REPORT_SECONDS):
            return await self._line.post_bytes("/v1/relay/placement", report)
        raise GatewayAway("/v1/relay/placement: no answer in time")

    async def report_refused_calls(self, report: bytes) -> None:
        """Bring one report of refused calls; it is on record then. GatewayAway, GatewayRefuses."""
        with trio.move_on_after(_REPORT_SECONDS):
            await self._line.post_bytes("/v1/relay/refusals", report)
            return
        raise GatewayAway("/v1/relay/refusals: no answer in time")

    async def answer_inspection(self, inspection_id: str, found: Inspection) -> None:
        """Lost when the gateway is away: it has stopped waiting then."""
        if found.machine is not None and (self._line.version or link_version.FIRST) < link_version.DISK_SIZES:
            found = msgspec.structs.replace(found, machine=without_sizes(found.machine))
        try:
            await self._line.post("/v1/relay/inspection", {"inspection_id": inspection_id, "found": found})
        except (GatewayAway, GatewayRefuses) as error:
            if self._host.log_rate.allows("an inspection was not answered"):
                log.info("an inspection was not answered", cause=str(error))

    async def fetch_evacuation(self, evacuation_id: str) -> Evacuation:
        """What was prepared for this host under that id. GatewayAway, GatewayRefuses."""
        data = await self.ask("/v1/relay/evacuation", {"evacuation_id": evacuation_id}, MAX_EVACUATION_BYTES)
        return understood(decode_evacuation, data)

    async def tell_evacuation_held(self, evacuation_id: str, problem: str) -> None:
        """GatewayAway, GatewayRefuses."""
        body: dict[str, object] = {"evacuation_id": evacuation_id, "problem": problem[:500]}
        await self._line.post("/v1/relay/evacuation/held", body)
