"""The gate: policy, facts, placement, permits and the log's hands."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack

from gateway.bell import Bell
from gateway.composition.key_files import host_trust, permit_key
from gateway.composition.people import make_directory, make_issuers, make_people
from gateway.config import GatewayConfig
from gateway.dispatch import Dispatch
from gateway.gate import Gate, PermitTerms
from gateway.inspections import Inspections
from gateway.inventories import InventoryNews, open_sources, read_at_start
from gateway.log_keeping import LogKeeping
from gateway.migrations import Migrations
from gateway.observing import make_observation
from gateway.people import People
from gateway.placement import Placement
from gateway.recording import Clock
from gateway.relays import HostTrust
from gateway.reloading import load_policy
from gateway.steady import SteadyTime
from policy.engine import Engine
from policy.jws import key_id_of
from policy.permit import Limits, Requirements
from policy.sources.keeper import Sources


async def open_gate(
    config: GatewayConfig, keeping: LogKeeping, stack: AsyncExitStack, clock: Clock
) -> tuple[Gate, HostTrust]:
    """Its people and its facts are read. Errors: GatewayError."""
    people = make_people(config, keeping.recorder, await make_issuers(config, stack), make_directory(config, stack))
    people.token_facts_seconds = config.revocation.token_facts_seconds
    sources = await open_sources(config, stack)
    await read_at_start(sources)
    gate, trust = _make_gate(config, people, sources, keeping, clock)
    sources.on_news = InventoryNews(keeping.recorder, gate.placement, gate.bell).tell
    if (observe := config.policy.observe) is not None:
        gate.observation = make_observation(observe.zones, observe.until, gate.time.now())
    return gate, trust


def _make_gate(
    config: GatewayConfig, people: People, sources: Sources, keeping: LogKeeping, clock: Clock
) -> tuple[Gate, HostTrust]:
    engine = Engine(load_policy(config))
    people.named_groups = lambda: engine.bundle.named_groups
    trust = host_trust(config)
    limits = config.limits
    steady = SteadyTime(clock)
    dispatch = Dispatch(fetch_seconds=limits.relay_fetch_seconds)
    gate = Gate(
        people=people,
        engine=engine,
        sources=sources,
        placement=Placement(steady.exact, limits.placement_silence_seconds, lambda: clock.monotonic_ns() / 1e9),
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
        time=steady,
        bell=Bell(),
    )
    return gate, trust


def _terms(config: GatewayConfig) -> PermitTerms:
    permits = config.permits
    key = permit_key(config)
    return PermitTerms(
        issuer=config.gateway.name,
        private_key=key,
        key_id=key_id_of(key.public_key()),
        lifetime_seconds=permits.lifetime_seconds,
        session_seconds=permits.session_seconds,
        recover_seconds=permits.recover_seconds,
        downtime_limit_ms=permits.downtime_limit_ms,
        how=config.moving,
        limits=Limits(permits.max_channels, permits.bandwidth_bytes_per_second),
        requirements=Requirements(
            content_digest=permits.require_content_digests,
            stream_inspection=False,
            vm_binding=permits.require_vm_binding,
        ),
        seal=permits.seal,
    )
