"""The other sites of a gateway, from its configuration: what is pinned of each, and how its gateway is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import httpx
import msgspec
from cryptography import x509
from msgspec import Meta

from audit.checkpoint import LogVerifier
from audit.errors import AuditError
from certs.errors import CertificateError
from certs.federation import load_foreign
from certs.files import read_crls
from gateway.errors import ConfigRefused
from policy.facts import SPIFFE_ID
from policy.permit import PermitKey
from policy.sources.https import make_client
from transport.relay.permits import PORTS_OF_KIND, PermitDesk, SitePins
from transport.relay.pins import Pins, read_pins

Text = Annotated[str, Meta(min_length=1, max_length=255)]
SITE_NAME: Final = "1 to 32 of a-z, 0-9 and -, with no - at either end"
_ANY_CRL: Final = 2**53  # a gateway carries nothing: which CRL a host must have, its relay sees to


class SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Another site. `name`: as facts and records call it. `ca`: vouches for the certificate of its gateway at `url`.

    `bundle`, `crls`, `permit_keys`, `log_keys`: as `sealane sites trust` writes them; the one folder of `crls` is kept
    by what that gateway publishes, and relays get the CRLs from here.
    """

    name: Annotated[str, Meta(pattern=r"^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z", description=SITE_NAME)]
    trust_domain: Text
    url: Annotated[str, Meta(pattern=r"^https://[^\s/]+\Z", max_length=300, description="https://HOST[:PORT]")]
    ca: Text
    bundle: Text
    crls: Text
    permit_keys: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8)]
    log_keys: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=8)]


@dataclass(frozen=True, slots=True)
class OtherSite:
    """One of them."""

    name: str
    trust_domain: str
    url: str
    client: httpx.AsyncClient
    pins: Pins
    roots: tuple[x509.Certificate, ...]
    crls: Path

    @property
    def source_of_facts(self) -> str:
        """How policies see that a fact is this site's word."""
        return f"site/{self.name}"

    def crl_texts(self) -> list[str]:
        """PEM. Of files that cannot be read now nothing is told: relays keep what they have."""
        try:
            read_crls(self.crls)
        except CertificateError:
            return []
        return [file.read_text("ascii") for file in sorted(self.crls.glob("*.pem")) if not file.name.startswith(".")]


@dataclass(frozen=True, slots=True)
class Sites:
    """All of them. `own`: this site's trust domain. `desk`: verifies permits as relays of this site do."""

    own: str
    by_domain: Mapping[str, OtherSite]
    desk: PermitDesk

    def of_host(self, host: str) -> OtherSite | None:
        """The site of a host that is named by its SPIFFE id; None for one of ours, and for what is no SPIFFE id."""
        match = SPIFFE_ID.fullmatch(host)
        return self.by_domain.get(match["domain"]) if match is not None else None

    @property
    def keys(self) -> Mapping[str, tuple[PermitKey, ...]]:
        return {domain: site.pins.permit_keys for domain, site in self.by_domain.items()}


def open_site(table: SiteTable, folder: Path, own: str, config: Path) -> OtherSite:
    """Paths are relative to `folder`. ConfigRefused: whatever cannot do its part fails at the start."""
    try:
        trusted = load_foreign(table.trust_domain, folder / table.bundle, [folder / table.crls], own)
        if not (folder / table.crls).is_dir():
            raise ValueError(f"{table.crls} is no folder")
        pins = read_pins([folder / name for name in table.permit_keys], [folder / name for name in table.log_keys])
        return OtherSite(
            name=table.name,
            trust_domain=table.trust_domain,
            url=table.url,
            client=make_client(str(folder / table.ca), None),
            pins=pins,
            roots=trusted.trust.anchors,
            crls=folder / table.crls,
        )
    except (CertificateError, AuditError, OSError, ValueError) as error:
        raise ConfigRefused(config, "sites", f"{table.name}: {error}") from error


def make_sites(own: str, sites: tuple[OtherSite, ...], log: LogVerifier, clock: Callable[[], int]) -> Sites:
    """`log`: this site's own."""
    of_sites = {
        each.trust_domain: SitePins(each.pins.permit_keys, each.pins.log_verifiers, lambda: _ANY_CRL) for each in sites
    }
    desk = PermitDesk(
        trust_domain=own,
        permit_keys=(),  # the one that is in force when a permit is looked at: `leaving`
        log_verifiers=(log,),
        witness_keys=(),
        witnesses_required=0,
        can_bind_vm=True,
        crl_number=lambda: _ANY_CRL,
        clock=clock,
        supported_ports=frozenset[str]().union(*PORTS_OF_KIND.values()),
        seals=frozenset({"sealane", "tls"}),
        sites=of_sites,
    )
    return Sites(own, {each.trust_domain: each for each in sites}, desk)
