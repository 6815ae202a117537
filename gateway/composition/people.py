"""Who may ask: issuers, the directory, local and sealed people."""

from __future__ import annotations

import time
from contextlib import AsyncExitStack

from gateway.break_glass.composition import make_sealed_issuer
from gateway.composition.key_files import p256_key
from gateway.config import GatewayConfig
from gateway.errors import StartRefused
from gateway.issuers import IssuerTable, settings_of
from gateway.patience import Patience
from gateway.people import People, Throttles
from gateway.people_sources import DirectoryGroups, KeySource, LocalIssuer, PinnedIssuer
from gateway.recording import Recorder
from policy.errors import DirectoryRefused, PolicyError
from policy.identity.active_directory import ActiveDirectory
from policy.identity.directory_settings import read_credentials
from policy.identity.jwks import IssuerKeys, https_client
from policy.identity.keys import JwkSet
from policy.identity.local import LocalDirectory, local_verifier
from policy.identity.oidc import TokenVerifier


def make_directory(config: GatewayConfig, stack: AsyncExitStack) -> DirectoryGroups | None:
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


def make_people(
    config: GatewayConfig, recorder: Recorder, issuers: dict[str, KeySource], directory: DirectoryGroups | None
) -> People:
    table = config.identity.local_issuer
    local = None
    if table is not None and config.identity.local_directory is not None:
        key = p256_key(config, table.signing_key)
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
        key_of_sealed = p256_key(config, table_of_sealed.signing_key)
        sealed, verifies = make_sealed_issuer(config, table_of_sealed, key_of_sealed)
        issuers[sealed.issuer] = verifies
    everybody = People(issuers, local, recorder, Throttles(time.monotonic), directory, sealed)
    limits = config.limits
    everybody.patience = Patience(recorder, limits.refusals_per_person, limits.refusals_per_minute, time.monotonic)
    recorder.on_event = everybody.patience.note
    return everybody


async def make_issuers(config: GatewayConfig, stack: AsyncExitStack) -> dict[str, KeySource]:
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
