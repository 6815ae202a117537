"""Two whole sites beside each other, each trusting the other as `sealane sites trust` lays it down."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from audit.checkpoint import LogVerifier
from certs.authority import trust_domain_of
from certs.federation import bundle_document
from certs.files import read_certificates
from gateway.cli.sites import lay_down
from gateway.sites.publishing import SiteDocument
from gateway.starter import HostPlan, Site, VmPlan, lay_out_site
from tests.gateway.conftest import CHEAP, Running, running_gateway
from tests.gateway.test_watch import edit, own_bundle

WEST, EAST = "west.example", "east.example"

# What the east lets the west's operators bring; whatever it says of zones is the west's word, and so it may say.
ARRIVALS = """
@id("west-brings-test-vms")
@reason("Operators of the west bring VMs of its zone test here.")
@on_revocation("cancel")
permit (principal, action == Sealane::Action::"MigrateVm", resource)
when
{
  principal in Sealane::Group::"spiffe://west.example#sealane-local#operators" &&
  resource.zone == "test" && resource.provenance.zone.source == "site/west" &&
  context.source.provenance.source == "site/west"
};
"""


@dataclass
class TwoSites:
    """Two folders; run them with `running`."""

    west: Site
    east: Site

    @asynccontextmanager
    async def running(self) -> AsyncIterator[tuple[Running, Running]]:
        async with running_gateway(self.west) as west, running_gateway(self.east) as east:
            yield west, east


def lay_out(
    folder: Path,
    west_hosts: Sequence[HostPlan],
    east_hosts: Sequence[HostPlan],
    vms: Sequence[VmPlan],
    gateways: tuple[str, str],
) -> TwoSites:
    """`gateways`: where they listen."""
    now = datetime.now(UTC)
    made = []
    for domain, hosts, here, listen in (
        (WEST, west_hosts, vms, gateways[0]),
        (EAST, east_hosts, (), gateways[1]),
    ):
        made.append(
            lay_out_site(
                folder / domain.partition(".")[0],
                hosts=hosts,
                vms=here,
                gateway_listen=listen,
                trust_domain=domain,
                log_origin=f"log.{domain}/1",
                now=now,
                password_cost=CHEAP,
            )
        )
    west, east = made
    for site, other, name, listen in ((west, east, "east", gateways[1]), (east, west, "west", gateways[0])):
        trust(site, other, name, listen)
    policies = own_bundle(east)
    (policies / "arrivals.cedar").write_text(ARRIVALS, encoding="utf-8")
    return TwoSites(west, east)


def document_of(site: Site) -> SiteDocument:
    """What the gateway of `site` publishes."""
    gateway = site.certs / "gateway"
    return SiteDocument(
        trust_domain=trust_domain_of(site.ca),
        bundle=bundle_document(read_certificates(site.ca), 1),
        crls=[(site.certs / "crl.pem").read_text()],
        permit_keys=[(gateway / "permit.pub").read_text()],
        log_keys=[LogVerifier.parse(site.vkey).vkey],
    )


def trust(site: Site, other: Site, name: str, listen: str) -> None:
    """Write [[sites]] of `site`'s gateway and of all its relays."""
    folder = site.directory / "sites" / name
    lay_down(document_of(other), folder)
    shutil.copy(other.ca, folder / "ca.pem")
    pins = (
        f'\n[[sites]]\ntrust_domain = "{other.trust_domain}"\nbundle = "sites/{name}/bundle.json"\n'
        f'permit_keys = ["sites/{name}/permit-1.pub"]\nlog_keys = ["sites/{name}/log-1.vkey"]\n'
    )
    own = f'name = "{name}"\nurl = "https://{listen}"\nca = "sites/{name}/ca.pem"\ncrls = "sites/{name}/crls"\n'
    edit(site.gateway_config, lambda text: text + pins + own)
    for config in site.directory.glob("relay-*.toml"):
        edit(config, lambda text: text + pins + f"crls = {json.dumps([f'sites/{name}/crls'])}\n")
