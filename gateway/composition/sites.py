"""The other sites, from [[sites]]."""

from __future__ import annotations

from contextlib import AsyncExitStack

from certs.authority import trust_domain_of
from certs.errors import CertificateError
from gateway.config import GatewayConfig
from gateway.errors import ConfigRefused
from gateway.gate import Gate
from gateway.log_keeping import LogKeeping
from gateway.sites.settings import OtherSite, make_sites, open_site


async def open_sites(
    config: GatewayConfig, gate: Gate, keeping: LogKeeping, stack: AsyncExitStack
) -> tuple[OtherSite, ...]:
    """Puts them into the gate. Errors: ConfigRefused."""
    where = config.directory / "gateway.toml"
    try:
        gate.own_trust_domain = own = trust_domain_of(config.path(config.tls.client_trust_bundle))
    except CertificateError as error:
        if config.sites:
            raise ConfigRefused(where, "tls.client_trust_bundle", f"[[sites]] need it to be known: {error}") from error
        return ()  # another CA's root, which need not say it
    sites = tuple(open_site(table, config.directory, own, where) for table in config.sites)
    for site in sites:
        stack.push_async_callback(site.client.aclose)
    if sites:
        clock = gate.clock
        gate.sites = make_sites(own, sites, keeping.signer.verifier, lambda: int(clock.wall().timestamp()))
    return sites
