"""What this site tells others of itself, and keeping what they tell: CRLs, which end within days, by themselves.

Roots and keys that are pinned change by an operator's hand only: `sealane sites trust`, run again and compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Final

import msgspec
import structlog
import trio
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from certs.crl_folder import MAX_CRLS, MAX_FOREIGN_BYTES, keep_crls
from certs.crls import newest_crls
from certs.errors import CertificateError
from certs.federation import bundle_document
from gateway.errors import GatewayError
from gateway.gate import Gate
from gateway.relays import HostTrust
from gateway.sites.peer import fetch
from gateway.sites.settings import OtherSite
from policy.strict_json import strictly

FETCH_SECONDS: Final = 20.0
MAX_SITE_BYTES: Final = 2 * MAX_FOREIGN_BYTES  # of CRLs no more is kept; looking at 16 MiB took eight seconds
log = structlog.get_logger("gateway.sites")


class SiteDocument(msgspec.Struct, frozen=True):
    """GET /v1/site. `bundle`: a SPIFFE bundle. `crls`, `permit_keys`: PEM. `log_keys`: C2SP verifier keys."""

    trust_domain: Annotated[str, Meta(max_length=255)]
    bundle: dict[str, Any]
    crls: Annotated[list[str], Meta(max_length=MAX_CRLS)]
    permit_keys: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(min_length=1, max_length=8)]
    log_keys: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(min_length=1, max_length=8)]


decode_site: Final = strictly(msgspec.json.Decoder(SiteDocument).decode)


def site_document(gate: Gate, trust: HostTrust, pinned: Mapping[str, list[str]]) -> dict[str, Any]:
    """`pinned`: the keys of permits and of the log; of both while they are rolled over."""
    roots = trust.trust.anchors
    return {
        "trust_domain": gate.own_trust_domain,
        # Seconds since the epoch of the youngest root: greater when a root has been added.
        "bundle": bundle_document(roots, max(int(root.not_valid_before_utc.timestamp()) for root in roots)),
        "crls": [crl.public_bytes(Encoding.PEM).decode() for crl in newest_crls(trust.trust.crls)],
        "permit_keys": pinned["permit_keys"],
        "log_keys": pinned["log_keys"],
    }


async def keep_crls_fresh(sites: tuple[OtherSite, ...], changed: Callable[[], None]) -> None:
    """For ever: fetch what the other sites publish; `changed` after something newer was kept."""
    away: set[str] = set()
    while True:
        news = False
        for site in sites:
            try:
                answer = await fetch(site, "/v1/site", MAX_SITE_BYTES)
                document = await trio.to_thread.run_sync(decode_site, answer)
                if document.trust_domain != site.trust_domain:
                    raise ValueError(f"it speaks for {document.trust_domain!a:.80}")
                if await trio.to_thread.run_sync(
                    partial(keep_crls, site.crls, document.crls, site.roots, MAX_FOREIGN_BYTES)
                ):
                    log.info("newer CRLs of another site", site=site.name)
                    news = True
                away.discard(site.name)
            except (GatewayError, CertificateError, OSError, ValueError, RecursionError) as error:
                if site.name not in away:
                    log.warning("the CRLs of another site could not be fetched", site=site.name, cause=str(error))
                away.add(site.name)
        if news:
            changed()
        await trio.sleep(FETCH_SECONDS)
