"""The composition root: reads the configuration, puts the pieces together, serves, reloads, stops in order.

serve(config)      in a trio program; hands over a `Gateway` once it answers
run_gateway(path)  the process: signals, the ready line, exit codes
"""

from __future__ import annotations

import json
import secrets
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import structlog
import trio
from cryptography.hazmat.primitives.asymmetric import ec

import gateway.config as configuration
from audit.errors import AuditError
from audit.index import Index
from audit.log import Log
from audit.record import format_time
from certs.errors import CertificateError
from certs.files import read_private_key
from gateway.api.app import create_app
from gateway.api.desk import Desk
from gateway.api.https import Bounds, HttpsServer, TlsFiles, make_context
from gateway.bell import Bell
from gateway.break_glass.composition import make_break_glass, make_sealed_issuer
from gateway.clocks import machine_boot_id, system_clock
from gateway.committer import Committer
from gateway.config import GatewayConfig
from gateway.dispatch import Dispatch
from gateway.errors import ConfigRefused, GatewayError, StartRefused
from gateway.gate import Gate, PermitTerms
from gateway.inspections import Inspections
from gateway.inventories import InventoryNews, open_sources, read_at_start
from gateway.issuers import Issuers, IssuerTable, settings_of
from gateway.log_keeping import LogKeeping, open_log_keeping
from gateway.logging import configure_logging
from gateway.metrics import Metrics, of_authority, of_log, of_siem, of_witnesses
from gateway.migrations import Migrations
from gateway.observing import make_observation
from gateway.people import DirectoryGroups, KeySource, LocalIssuer, People, PinnedIssuer, Throttles
from gateway.placement import Placement
from gateway.placement_watching import ALARM_KINDS, ALARM_MEMORY, PlacementWatching
from gateway.reading import Reading
from gateway.recording import Clock, Event, Recorder, recovery_details
from gateway.refused_calls import RefusedCallsOnRecord
from gateway.relays import HostTrust
from gateway.reloading import Reloader, load_policy
from gateway.reporting import Reporting
from gateway.searching import Search
from gateway.services import Services
from gateway.siem.delivery import CommittedEntries, Delivery
from gateway.siem.oversight import Oversight
from gateway.siem.receivers import secret
from gateway.steady import SteadyTime
from gateway.tile_reading import TileReading
from gateway.watch import Watch, WatchSettings
from policy.engine import Engine
from policy.errors import DirectoryRefused, PolicyError
from policy.identity.active_directory import ActiveDirectory
from policy.identity.directory_settings import read_credentials
from policy.identity.jwks import IssuerKeys, https_client
from policy.identity.keys import JwkSet
from policy.identity.local import LocalDirectory, local_verifier
from policy.identity.oidc import TokenVerifier
from policy.jws import key_id_of
from policy.permit import Limits, Requirements
from policy.sources.keeper import Sources
from transport.relay import systemd

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2
STOP_SECONDS: Final = 5.0

log = structlog.get_logger("gateway.service")


@dataclass(slots=True)
class Gateway:
    """A running gateway; `listen` is HOST:PORT as bound."""

    listen: str
    reloader: Reloader
    keeping: LogKeeping
    placement: PlacementWatching
    delivery: Delivery
    desk: Desk
    _stopping: trio.Event = field(default_factory=trio.Event)

    @property
    def committer(self) -> Committer:
        return self.keeping.committer

    async def reload(self) -> None:
        """Read its files again (SIGHUP)."""
        await self.reloader.reload()

    def stop(self) -> None:
        """End in order (SIGTERM)."""
        self._stopping.set()

    async def wait_stopping(self) -> None:
        await self._stopping.wait()


async def serve(
    config: GatewayConfig,
    *,
    clock: Clock | None = None,
    open_log: Callable[[], Log] | None = None,
    task_status: trio.TaskStatus[Gateway] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run until `Gateway.stop` or cancellation. Errors at start: GatewayError, each naming what to correct.

    `clock` and `open_log` are for tests. Orderly stop: no new connection, answers under way finish, the stop is
    recorded, the log closed. Cancelled, it leaves out what takes time; nothing acknowledged is lost in any case.
    """
    clock = clock or system_clock()
    async with AsyncExitStack() as stack:
        keeping = await open_log_keeping(config, stack, clock, open_log)
        committer, recorder, origin = keeping.committer, keeping.recorder, keeping.signer.origin
        index = stack.enter_context(_index(config.path(config.gateway.state_dir) / "index.sqlite", origin))
        people = _people(config, recorder, await _issuers(config, stack), _directory(config, stack))
        sources = await open_sources(config, stack)
        await read_at_start(sources)
        gate, trust = _gate(config, people, sources, keeping, clock)
        sources.on_news = InventoryNews(recorder, gate.placement, gate.bell).tell
        search = Search(index, origin, committer, config.path(config.log.directory))
        stack.callback(search.close)
        reading = Reading(gate, committer, search)
        gate.break_glass = make_break_glass(config, gate, reading)
        if (observe := config.policy.observe) is not None:
            gate.observation = make_observation(observe.zones, observe.until, gate.time.now())
        reporting = Reporting(gate, reading, trust)
        if config.identity.services:
            people.services = Services(config.identity.services, lambda: reporting.trust)
        issuers = Issuers(config.identity.issuers, has_local_people=people.local is not None)
        health = partial(_health, config, keeping, gate)
        placement_watching = PlacementWatching(gate)
        entries = CommittedEntries(committer, origin, config.path(config.log.directory))
        siem_dir = config.path(config.gateway.state_dir) / "siem"
        delivery = Delivery(config.siem, config.path, siem_dir, entries, recorder, clock)
        oversight, metrics = Oversight(gate, delivery, keeping.signer.verifier), _metrics(config, keeping, delivery)
        desk = Desk(
            gate=gate,
            people=people,
            issuers=issuers,
            reading=reading,
            tile_reading=TileReading(reading, committer, recorder),
            published_checkpoint=keeping.witnessing.published_checkpoint,
            reporting=reporting,
            placement=placement_watching,
            refused_calls=RefusedCallsOnRecord(gate),
            oversight=oversight,
            metrics=metrics,
            health=health,
            poll_seconds=config.limits.poll_seconds,
        )
        server = _server(config, desk)
        reloader = Reloader(config, gate, people, reporting, server, partial(tls_files, config))
        watch = Watch(gate, people, reporting.seen, lambda: reporting.trust)
        metrics.add(
            of_authority(
                lambda: gate.break_glass.counts() if gate.break_glass is not None else {},
                lambda: gate.observation.would_deny if gate.observation is not None else 0,
                lambda: watch.revoked,
            )
        )
        reloader.reload_delivery = delivery.reload
        await _serve(config, server, reloader, desk, keeping, delivery, watch, gate, placement_watching, task_status)


async def _serve(  # noqa: PLR0913, PLR0917 - the last step of the composition
    config: GatewayConfig,
    server: HttpsServer,
    reloader: Reloader,
    desk: Desk,
    keeping: LogKeeping,
    delivery: Delivery,
    watch: Watch,
    gate: Gate,
    placement_watching: PlacementWatching,
    task_status: trio.TaskStatus[Gateway],
) -> None:
    recorder, reading = keeping.recorder, desk.reading
    async with trio.open_nursery() as writing:
        await keeping.start(writing)
        await reading.restore(int(time.time()))
        gate.time.not_before(await reading.newest_time())
        alarms_since = format_time(gate.clock.wall() - ALARM_MEMORY)
        placement_watching.restore(await reading.records_since(ALARM_KINDS, alarms_since))
        if gate.break_glass is not None:
            await gate.break_glass.restore()
        async with trio.open_nursery() as serving:
            address = config.listen
            listeners = await serving.start(server.serve, address.host, address.port)
            bound = listeners[0].socket.getsockname()
            listen = str(configuration.Address(bound[0], bound[1]))
            await recorder.append(
                Event("gateway.started", details=_start_details(config, listen, keeping.committer, reloader))
            )
            running = Gateway(listen, reloader, keeping, placement_watching, delivery, desk)
            serving.start_soon(keeping.witnessing.run)
            serving.start_soon(_heartbeat, recorder, config.log.heartbeat_seconds)
            revocation = config.revocation
            settings = WatchSettings(revocation.interval_seconds, revocation.unknown_grace_seconds)
            serving.start_soon(watch.run, settings)
            serving.start_soon(gate.sources.run)
            serving.start_soon(reading.search.follow)
            serving.start_soon(placement_watching.run)
            serving.start_soon(desk.refused_calls.run)
            serving.start_soon(delivery.run)
            serving.start_soon(desk.tile_reading.run)
            task_status.started(running)
            log.info("gateway serves", listen=listen, name=config.gateway.name)
            await running.wait_stopping()
            gate.dispatch.close()
            await server.stop_gracefully(STOP_SECONDS)
            serving.cancel_scope.cancel()
        with trio.move_on_after(STOP_SECONDS):
            await desk.tile_reading.finish()
            await _record_or_log(recorder, Event("gateway.stopped"))
            await keeping.finish()
        writing.cancel_scope.cancel()


async def _heartbeat(recorder: Recorder, seconds: int) -> None:
    """Silence in the log is provable only if there would have been something to read."""
    while True:
        await trio.sleep(seconds)
        await _record_or_log(recorder, Event("heartbeat"))


async def _record_or_log(recorder: Recorder, event: Event) -> None:
    """For events that nothing waits for."""
    try:
        await recorder.append(event)
    except GatewayError as error:
        log.warning("could not be recorded", kind=event.kind, error=error.detail)


def _index(path: Path, origin: str) -> Index:
    try:
        return Index(path, origin)
    except (AuditError, sqlite3.Error, OSError) as error:
        raise StartRefused(f"the query index {path} cannot be opened: {error}") from error


def _metrics(config: GatewayConfig, keeping: LogKeeping, delivery: Delivery) -> Metrics:
    table, committer = config.metrics, keeping.committer
    try:
        metrics = Metrics(None if table is None else secret(config.path(table.token_file)))
    except ValueError as error:
        raise StartRefused(f"metrics.token_file: {error}") from error
    metrics.add(of_log(lambda: committer.size, lambda: committer.failed_because is not None))
    metrics.add(of_witnesses(keeping.witnessing.ages))
    metrics.add(of_siem(lambda: map(delivery.status, delivery.names)))
    return metrics


def _gate(
    config: GatewayConfig, people: People, sources: Sources, keeping: LogKeeping, clock: Clock
) -> tuple[Gate, HostTrust]:
    engine = Engine(load_policy(config))
    people.named_groups = lambda: engine.bundle.named_groups
    trust = HostTrust.load(config.path(config.tls.client_trust_bundle), _crls(config))
    limits = config.limits
    dispatch = Dispatch()
    gate = Gate(
        people=people,
        engine=engine,
        sources=sources,
        placement=Placement(lambda: clock.wall().timestamp(), limits.placement_silence_seconds),
        migrations=Migrations(limits.migrations),
        dispatch=dispatch,
        recorder=keeping.recorder,
        prove=keeping.proving,
        terms=_terms(config),
        clock=clock,
        new_id=lambda: secrets.token_hex(16),
        relay_silence_seconds=limits.relay_silence_seconds,
        minimum_crl_number=trust.crl_number,
        inspections=Inspections(dispatch, lambda: secrets.token_hex(16)),
        preflight_first=config.permits.preflight,
        time=SteadyTime(clock),
        bell=Bell(),
    )
    return gate, trust


def _terms(config: GatewayConfig) -> PermitTerms:
    permits = config.permits
    key = _p256_key(config, permits.signing_key)
    return PermitTerms(
        issuer=config.gateway.name,
        private_key=key,
        key_id=key_id_of(key.public_key()),
        lifetime_seconds=permits.lifetime_seconds,
        session_seconds=permits.session_seconds,
        recover_seconds=permits.recover_seconds,
        downtime_limit_ms=permits.downtime_limit_ms,
        limits=Limits(permits.max_channels, permits.bandwidth_bytes_per_second),
        requirements=Requirements(content_digest=False, stream_inspection=False, vm_binding=permits.require_vm_binding),
    )


def _directory(config: GatewayConfig, stack: AsyncExitStack) -> DirectoryGroups | None:
    """Active Directory, if there is one; nothing is connected yet, so that it may be down when the gateway starts."""
    settings = config.identity.active_directory
    if settings is None:
        return None
    try:
        directory = ActiveDirectory(settings, read_credentials(settings, config.directory))
    except (DirectoryRefused, ValueError) as error:
        raise StartRefused(f"identity.active_directory: {error}") from error
    stack.callback(directory.close)
    tables = [table for table in config.identity.issuers if table.groups == "active-directory"]
    services = {table.issuer: frozenset(settings_of(table).service_groups) for table in tables}
    return DirectoryGroups(directory, {table.issuer: table.account_attribute for table in tables}, services)


def _people(
    config: GatewayConfig, recorder: Recorder, issuers: dict[str, KeySource], directory: DirectoryGroups | None
) -> People:
    table = config.identity.local_issuer
    local = None
    if table is not None and config.identity.local_directory is not None:
        key = _p256_key(config, table.signing_key)
        try:
            people = LocalDirectory.load(config.path(config.identity.local_directory))
            verifier = local_verifier(key.public_key(), table.issuer, table.audience, table.token_seconds)
        except (DirectoryRefused, ValueError) as error:
            raise StartRefused(str(error)) from error
        local = LocalIssuer(table.issuer, table.audience, key, table.token_seconds, people)
        issuers[table.issuer] = PinnedIssuer(verifier)
    sealed = None
    if config.break_glass is not None and config.break_glass.sealed is not None:
        table_of_sealed = config.break_glass.sealed
        key_of_sealed = _p256_key(config, table_of_sealed.signing_key)
        sealed, verifies = make_sealed_issuer(config, table_of_sealed, key_of_sealed)
        issuers[sealed.issuer] = verifies
    return People(issuers, local, recorder, Throttles(time.monotonic), directory, sealed)


async def _issuers(config: GatewayConfig, stack: AsyncExitStack) -> dict[str, KeySource]:
    """The outside issuers by name; a client each, because each is trusted by its own bundle and fails on its own."""
    return {table.issuer: await _issuer(config, table, stack) for table in config.identity.issuers}


async def _issuer(config: GatewayConfig, table: IssuerTable, stack: AsyncExitStack) -> KeySource:
    try:
        if table.jwks_file is not None:
            keys = JwkSet.parse(config.path(table.jwks_file).read_bytes())
            return PinnedIssuer(TokenVerifier(settings_of(table), keys))
        bundle = str(config.path(table.trust_bundle)) if table.trust_bundle else None
        client = await stack.enter_async_context(https_client(bundle))
        return IssuerKeys(settings_of(table), client)
    except (PolicyError, OSError, ValueError) as error:
        raise StartRefused(f"issuer {table.issuer}: {error}") from error


def _server(config: GatewayConfig, desk: Desk) -> HttpsServer:
    limits = config.limits
    bounds = Bounds(limits.connections, limits.connections_per_address, limits.handshake_seconds)
    return HttpsServer(create_app(desk, limits.request_seconds), make_context(tls_files(config)), bounds)


def tls_files(config: GatewayConfig) -> TlsFiles:
    tls = config.tls
    # Read by our own rule first: the `ssl` module would take a key file that everybody can read.
    _private_key(config, tls.private_key)
    return TlsFiles(
        config.path(tls.certificate), config.path(tls.private_key), config.path(tls.client_trust_bundle), _crls(config)
    )


def _crls(config: GatewayConfig) -> tuple[Path, ...]:
    return tuple(config.path(name) for name in config.tls.crls)


def _private_key(config: GatewayConfig, name: str) -> object:
    try:
        return read_private_key(config.path(name))
    except CertificateError as error:
        raise StartRefused(str(error)) from error


def _p256_key(config: GatewayConfig, name: str) -> ec.EllipticCurvePrivateKey:
    key = _private_key(config, name)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise StartRefused(f"{config.path(name)}: is not an EC key on P-256")
    return key


def _health(config: GatewayConfig, keeping: LogKeeping, gate: Gate) -> dict[str, Any]:
    return {"name": config.gateway.name, **keeping.health(), **_loud(gate)}


def _loud(gate: Gate) -> dict[str, Any]:
    """What departs from the ordinary, for anyone to see."""
    loud: dict[str, Any] = {}
    if gate.break_glass is not None:
        loud["break_glass"] = gate.break_glass.counts()
    if gate.observation is not None:
        loud["observe"] = gate.observation.document(gate.time.now())
    return loud


def _start_details(config: GatewayConfig, listen: str, committer: Committer, reloader: Reloader) -> dict[str, Any]:
    machine = {"machine_boot_id": machine_boot_id()}
    details: dict[str, Any] = {"listen": listen, "name": config.gateway.name, **machine, **reloader.in_force()}
    details["heartbeat_seconds"] = config.log.heartbeat_seconds  # from now on a longer silence is a finding
    if committer.recovery is not None:
        details["recovered"] = recovery_details(committer.recovery)
    return details


def run_gateway(config_path: Path) -> int:
    """The process: 0 after SIGTERM or SIGINT, 2 for what the operator must correct, 1 for anything else."""
    configure_logging(sys.stderr)
    try:
        config = configuration.load(config_path)
        trio.run(_main, config)
    except (ConfigRefused, StartRefused) as error:
        print(f"sealane gateway: {error.detail}; {error.next_step}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except GatewayError as error:
        log.error("gateway ended", error=error.detail)
        return EXIT_FAILED
    return EXIT_DONE


run = run_gateway


async def _main(config: GatewayConfig) -> None:
    refused: list[GatewayError] = []
    try:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:
                running: Gateway = await nursery.start(partial(serve, config))
                print(json.dumps({"ready": True, "listen": running.listen}), flush=True)
                systemd.notify("READY=1")
                nursery.start_soon(_obey, signals, running)
                async with trio.open_nursery() as alive:
                    alive.start_soon(systemd.keep_alive)
                    await running.wait_stopping()
                    alive.cancel_scope.cancel()
    except* GatewayError as errors:
        refused += [error for error in _leaves(errors) if isinstance(error, GatewayError)]
    if refused:
        raise refused[0]


async def _obey(signals: Any, running: Gateway) -> None:
    async for received in signals:
        if received == signal.SIGHUP:
            await running.reload()
        else:
            running.stop()
            return


def _leaves(errors: BaseExceptionGroup[Any]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in errors.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found
