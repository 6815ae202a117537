"""The pieces of a gateway, made and joined; nothing runs yet but what must be read before the first answer."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

from audit.errors import AuditError
from audit.index import Index
from audit.log import Log
from gateway.api.app import create_app
from gateway.api.desk import Desk
from gateway.api.https import Bounds, HttpsServer, make_context
from gateway.break_glass.composition import make_break_glass
from gateway.composition.gate import open_gate
from gateway.composition.key_files import host_trust, tls_files
from gateway.composition.rollover import make_rollovers, mend_rollovers
from gateway.composition.sites import open_sites
from gateway.composition.telling import (
    add_metrics_of_certificates,
    add_metrics_of_policy,
    health_document,
    make_metrics,
)
from gateway.config import GatewayConfig
from gateway.elsewhere import Elsewhere, read_peers
from gateway.enrolment.composition import make_office
from gateway.enrolment.files import Late, days_left, tls_marks, watch_tls_files
from gateway.errors import StartRefused
from gateway.evacuating import Evacuating
from gateway.explaining import Explaining
from gateway.gate import Gate
from gateway.issuers import Issuers
from gateway.log_keeping import LogKeeping, open_log_keeping
from gateway.placement_watching import PlacementWatching
from gateway.pruning import Pruning
from gateway.publishing import Publishing
from gateway.reading import Reading
from gateway.recording import Clock
from gateway.refused_calls import RefusedCallsOnRecord
from gateway.reloading import Reloader
from gateway.reporting import Reporting
from gateway.searching import Search
from gateway.services import Services
from gateway.siem.delivery import CommittedEntries, Delivery
from gateway.siem.oversight import Oversight
from gateway.sites.publishing import keep_crls_fresh
from gateway.tile_reading import TileReading
from gateway.unfetched import Unfetched
from gateway.watch import Watch, WatchSettings

Background = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Pieces:
    """`background` are the tasks that run for as long as the gateway serves; the log's writer is not among them."""

    config: GatewayConfig
    server: HttpsServer
    reloader: Reloader
    desk: Desk
    keeping: LogKeeping
    delivery: Delivery
    gate: Gate
    placement: PlacementWatching
    background: tuple[Background, ...]


async def make_pieces(
    config: GatewayConfig, stack: AsyncExitStack, clock: Clock, open_log: Callable[[], Log] | None
) -> Pieces:
    """Errors: GatewayError, each naming what to correct. What must be closed is closed by `stack`."""
    limits = config.limits
    mend_rollovers(config)
    tls_at_start = tls_marks(config)
    keeping = await open_log_keeping(config, stack, clock, open_log)
    committer, recorder, origin = keeping.committer, keeping.recorder, keeping.signer.origin
    gate, trust = await open_gate(config, keeping, stack, clock)
    people = gate.people
    other_sites = await open_sites(config, gate, keeping, stack)
    search = _search(config, keeping, stack)
    reading = Reading(gate, committer, search)
    gate.break_glass = make_break_glass(config, gate, reading)
    unfetched = Unfetched(gate)
    reporting = Reporting(gate, reading, trust, unfetched)
    gate.is_revoked = lambda host: reporting.seen.is_out(host, reporting.trust, clock.wall())
    if config.identity.services:
        people.services = Services(config.identity.services, lambda: reporting.trust)
    issuers = Issuers(config.identity.issuers, has_local_people=people.local is not None)
    placement_watching = PlacementWatching(gate)
    publishing = Publishing(gate.engine, config, recorder, clock, gate.bell)
    gate.shadow = publishing.shadow
    log_directory = config.path(config.log.directory)
    entries = CommittedEntries(committer, origin, log_directory)
    delivery = Delivery(
        config.siem, config.path, config.path(config.gateway.state_dir) / "siem", entries, recorder, clock
    )
    oversight, metrics = Oversight(gate, delivery, keeping.verifiers), make_metrics(config, keeping, delivery)
    reload_tls = Late()
    office = make_office(config, gate, reporting.seen, reload_tls, stack)
    desk = Desk(
        gate=gate,
        office=office,
        elsewhere=Elsewhere(gate, reading, read_peers(config.peers, config.directory)),
        evacuating=None if config.evacuation is None else Evacuating(gate, config.evacuation),
        rollovers=make_rollovers(config, gate, keeping.signer, office, reporting, reload_tls),
        people=people,
        issuers=issuers,
        reading=reading,
        tile_reading=TileReading(reading, committer, recorder, log_directory),
        published_checkpoint=keeping.witnessing.published_checkpoint,
        reporting=reporting,
        placement=placement_watching,
        publishing=publishing,
        explaining=Explaining(),
        refused_calls=RefusedCallsOnRecord(gate, limits.refused_calls_per_host, limits.refused_calls_per_minute),
        oversight=oversight,
        pruning=_pruning(config, gate, keeping),
        metrics=metrics,
        log_verifier=keeping.signer.verifier,
        health=partial(health_document, config, keeping, gate),
        poll_seconds=limits.poll_seconds,
        long_answer_seconds=limits.long_answer_seconds,
    )
    server = _server(config, desk)
    reloader = Reloader(
        config, gate, people, reporting, server, partial(tls_files, config), partial(host_trust, config)
    )
    reload_tls.call = reloader.reload_tls
    if office is not None:
        reloader.after_tls = office.find_root
    watch = Watch(gate, people, reporting.seen, lambda: reporting.trust, unfetched)
    add_metrics_of_policy(metrics, gate, publishing, watch)
    add_metrics_of_certificates(metrics, partial(_days_left, config, reporting, clock), office)
    reloader.reload_delivery = delivery.reload
    revocation = config.revocation
    background: tuple[Background, ...] = (
        keeping.witnessing.run,
        partial(watch.run, WatchSettings(revocation.interval_seconds, revocation.unknown_grace_seconds)),
        unfetched.run,
        gate.sources.run,
        search.follow,
        placement_watching.run,
        desk.refused_calls.run,
        delivery.run,
        desk.tile_reading.run,
        desk.pruning.run,
        partial(watch_tls_files, config, tls_at_start, reloader, gate.dispatch),
        *(() if office is None else (office.run,)),
        *((partial(keep_crls_fresh, other_sites, reporting.tell_foreign_crls),) if other_sites else ()),
    )
    return Pieces(config, server, reloader, desk, keeping, delivery, gate, placement_watching, background)


def _search(config: GatewayConfig, keeping: LogKeeping, stack: AsyncExitStack) -> Search:
    path, origin = config.path(config.gateway.state_dir) / "index.sqlite", keeping.signer.origin
    try:
        index = stack.enter_context(Index(path, origin))
    except (AuditError, sqlite3.Error, OSError) as error:
        raise StartRefused(f"the query index {path} cannot be opened: {error}") from error
    search = Search(index, origin, keeping.committer, config.path(config.log.directory), config.limits.turn_seconds)
    stack.callback(search.close)
    return search


def _days_left(config: GatewayConfig, reporting: Reporting, clock: Clock) -> dict[str, float]:
    return days_left(config, reporting.trust.trust, clock.wall())


def _pruning(config: GatewayConfig, gate: Gate, keeping: LogKeeping) -> Pruning:
    retention = config.log.retention
    archive = None if retention is None else config.path(retention.archive).absolute()
    return Pruning(gate, keeping, config.path(config.log.directory), retention, archive)


def _server(config: GatewayConfig, desk: Desk) -> HttpsServer:
    limits = config.limits
    bounds = Bounds(limits.connections, limits.connections_per_address, limits.handshake_seconds)
    return HttpsServer(create_app(desk, limits.request_seconds), make_context(tls_files(config)), bounds)
