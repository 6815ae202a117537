"""What this relay is asked for as the source: by the gateway, and by clients of libvirt at the front."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
import trio

from transport.errors import TransportError
from transport.hypervisors.errors import HypervisorError, MigrationCancelled
from transport.relay.caller import Conversation
from transport.relay.evacuating import EvacuationDesk
from transport.relay.failures import words_for_gateway
from transport.relay.fronting import announced_at
from transport.relay.gateway_answers import (
    Assignment,
    CancelMigration,
    Inspect,
    Migrate,
    TakeEvacuation,
    TakePermit,
    WithdrawEvacuation,
)
from transport.relay.gateway_links import GatewayLinks
from transport.relay.host import RelayHost
from transport.relay.inspecting import inspect_destination, inspect_source
from transport.relay.libvirt_orders import LibvirtOrders
from transport.relay.log_rate import LogRate
from transport.relay.news import News, NewsDesk, Tell
from transport.relay.source import MigrationOrder, carry_as_source
from transport.relay.wish import NotAdmitted, Wish

Ask = Callable[[Wish], Awaitable[Migrate]]
log = structlog.get_logger("sealane.relay")
_MAX_INSPECTIONS = 8
_MAX_EVACUATIONS = 4  # that are fetched at once, of some 30 MiB each at most
_LINES_AT_ONCE = 50  # of the log, of each kind: a gateway may make up as many assignments as it likes
_MAX_ORDERS = 4096  # under way or waiting for a place; a gateway tells again of what it has not heard of


class Assignments:
    """Each runs in the background. `give_up_here`: of a migration that arrives here, whose source cannot be told."""

    def __init__(
        self, host: RelayHost, nursery: trio.Nursery, link: GatewayLinks, ask: Ask, give_up_here: Callable[[str], None]
    ) -> None:
        self._host = host
        self._nursery = nursery
        self._link = link
        self._ask = ask
        self._give_up_here = give_up_here
        self._cancels: dict[str, trio.Event] = {}
        self._inspecting: set[str] = set()
        self._fetching: set[str] = set()
        self._orders = LibvirtOrders(host)
        self.announced = announced_at(host)
        self._log_rate = LogRate(at_once=_LINES_AT_ONCE)
        self.evacuating = EvacuationDesk(host, self.take)

    @property
    def are_under_way(self) -> bool:
        return not all(map(self._host.board.is_idle, self._cancels))

    async def take(self, assignment: Assignment) -> None:
        """Do what the gateway asks, in the background."""
        match assignment:
            case Migrate(migration_id=migration_id) | TakePermit(migration_id=migration_id) if (
                self._host.board.is_draining
            ):
                tell = self._telling(migration_id)
                await tell(News("failed", None, None, "the source relay is about to be restarted: repeat the request"))
            case Migrate(migration_id=migration_id) if self._is_new(migration_id):
                self._cancels[migration_id] = trio.Event()
                self._nursery.start_soon(self._migrate, assignment)
            case TakePermit(migration_id=migration_id) if self._is_new(migration_id):
                self._cancels[migration_id] = trio.Event()
                self._nursery.start_soon(self._fetch, migration_id)
            case CancelMigration(migration_id=migration_id) if migration_id in self._cancels:
                self._cancels[migration_id].set()
            case CancelMigration(migration_id=migration_id):
                self._give_up_here(migration_id)
            case Inspect(inspection_id=inspection_id) if len(self._inspecting) < _MAX_INSPECTIONS:
                if inspection_id not in self._inspecting:
                    self._inspecting.add(inspection_id)
                    self._nursery.start_soon(self._inspect, assignment)
            case TakeEvacuation(evacuation_id=evacuation_id) if len(self._fetching) < _MAX_EVACUATIONS:
                if evacuation_id not in self._fetching:
                    self._fetching.add(evacuation_id)
                    self._nursery.start_soon(self._fetch_evacuation, evacuation_id)
            case WithdrawEvacuation(evacuation_id=evacuation_id):
                await self.evacuating.withdraw(evacuation_id)
            case _:
                pass  # told twice, or of what has ended, or one too many

    def _is_new(self, migration_id: str) -> bool:
        """An evacuation has its place in any case: whoever needs it has no use for a gateway that fills them all."""
        has_place = len(self._cancels) < _MAX_ORDERS or self.evacuating.outcome(migration_id) is not None
        return migration_id not in self._cancels and has_place

    def _telling(self, migration_id: str) -> Tell:
        return self.evacuating.noting(migration_id, NewsDesk(self._link, migration_id, self._nursery).tell)

    async def migrate_for_caller(self, wish: Wish, conversation: Conversation) -> News:
        """Automatic admission: ask the gateway for what a client of libvirt wants, and carry it. `NotAdmitted`."""
        if self._host.board.is_draining:
            raise NotAdmitted("this host's relay is about to be restarted: try again in a moment")
        permitted = self._orders.take(wish) or await self._ask(self.announced.named(wish))
        is_ours = permitted.migration_id in self._cancels  # an order of the gateway's, whose end is told there
        self._cancels.setdefault(permitted.migration_id, trio.Event())
        tell = self._telling(permitted.migration_id)
        order = _order_of(permitted)
        try:
            return await carry_as_source(
                self._host,
                order,
                tell,
                self._cancels[permitted.migration_id],
                end=lambda permit: self._host.libvirt_source(permit, conversation, {}),
            )
        except (TransportError, HypervisorError) as error:
            await tell(News("failed", None, None, words_for_gateway(error)))
            raise
        finally:
            if not is_ours:
                del self._cancels[permitted.migration_id]

    async def _inspect(self, asked: Inspect) -> None:
        try:
            config = self._host.config
            found = await (
                inspect_source(config, asked.vm)
                if asked.wanted is None
                else inspect_destination(config, asked.vm, asked.wanted)
            )
            await self._link.answer_inspection(asked.inspection_id, found)
        except Exception:
            # The edge: a bug in a question must not end the sessions.
            log.exception("inspection ended by a bug", vm=asked.vm)
        finally:
            self._inspecting.discard(asked.inspection_id)

    async def _fetch_evacuation(self, evacuation_id: str) -> None:
        try:
            await self.evacuating.fetch(self._link, evacuation_id)
        finally:
            self._fetching.discard(evacuation_id)

    async def _fetch(self, migration_id: str) -> None:
        """Whoever answers this has not withdrawn it; whatever is not fetched is never begun."""
        try:
            assignment = await self._link.fetch_permit(migration_id)
        except TransportError as error:
            if self._log_rate.allows("not fetched"):
                log.warning("a permit was not fetched", migration=migration_id, cause=str(error))
            del self._cancels[migration_id]
        else:
            await self._migrate(assignment)

    async def _migrate(self, assignment: Migrate) -> None:
        tell = self._telling(assignment.migration_id)
        try:
            if self._host.config.hypervisor.kind == "libvirt" and not self._is_of_program(assignment):
                if (trouble := await self._orders.carry_out(assignment)) is not None:
                    await tell(News("failed", None, None, trouble))
            else:
                await carry_as_source(self._host, _order_of(assignment), tell, self._cancels[assignment.migration_id])
        except (TransportError, HypervisorError) as error:
            if self._log_rate.allows("not begun"):
                log.warning("migration not begun", migration=assignment.migration_id, cause=str(error))
            state = "cancelled" if isinstance(error, MigrationCancelled) else "failed"
            await tell(News(state, None, None, words_for_gateway(error)))
        except Exception:
            # The edge: a bug in one session must not end the others.
            log.exception("migration ended by a bug", migration=assignment.migration_id)
            await tell(News("failed", None, None, "internal error of the source relay; see its log"))
        finally:
            del self._cancels[assignment.migration_id]

    def _is_of_program(self, assignment: Migrate) -> bool:
        """Whether it opens a named port, which no hypervisor has to do with. `OfferRefused`."""
        host = self._host
        permit = host.permits.verify(
            assignment.permit, assignment.other_permit, source=host.spiffe_id, destination=None
        )
        return not permit.claims.moves_guest


def _order_of(permitted: Migrate) -> MigrationOrder:
    return MigrationOrder(
        permitted.permit,
        permitted.destination_address,
        permitted.downtime_limit_ms,
        permitted.deadline_seconds,
        permitted.how,
        permitted.other_permit,
    )
