"""This host's identity as it is now: read from its files, and replaced as a whole when they change.

A session keeps the certificate that it began with; what begins later has the newer one. Whoever judges a connection
takes `context` and `credentials` in one step, so that both ends derive their keys from the same certificate.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog
from OpenSSL import SSL

from certs.changes import Marks, marks_of
from certs.credentials import HostCredentials
from certs.crl_folder import MAX_FOREIGN_BYTES, keep_crls
from certs.crls import newest_crls
from certs.errors import Check, CredentialError, PeerRefused
from certs.federation import load_foreign
from certs.files import is_folder
from certs.identity import SpiffeId
from certs.introduction import authority_key_id, crl_id, root_id
from certs.tls import local_leaf_sha256, server_context
from transport.relay.config_sections import IdentitySection, SiteSection

_REMEMBERED: Final = 8  # certificates of sessions that may still run
log = structlog.get_logger("sealane.relay")


@dataclass(slots=True)
class Identity:
    """`credentials` and `context` belong together."""

    section: IdentitySection
    credentials: HostCredentials
    marks: Marks = ()
    sites: tuple[SiteSection, ...] = ()
    context: SSL.Context = field(init=False)
    _former: dict[bytes, HostCredentials] = field(init=False)

    def __post_init__(self) -> None:
        # Made once: filling one with a long CRL costs milliseconds and megabytes; strangers would choose how often.
        self.context = server_context(self.credentials)
        self._former = {local_leaf_sha256(self.credentials): self.credentials}

    @classmethod
    def open(cls, section: IdentitySection, now: datetime, sites: tuple[SiteSection, ...] = ()) -> Identity:
        """Raises `CertificateError`: a file that cannot do its part fails at the start."""
        marks = marks_of(_files(section, sites))  # before they are read: what changes in between must be noticed
        credentials = _load(section, sites)
        credentials.require_usable(now)
        return cls(section, credentials, marks, sites)

    @property
    def files(self) -> list[Path]:
        return _files(self.section, self.sites)

    def of_session(self, leaf_sha256: bytes) -> HostCredentials:
        """The credentials whose certificate a session began with; today's if that is too long ago."""
        return self._former.get(leaf_sha256, self.credentials)

    def of_lanes(self, leaf_sha256: bytes) -> HostCredentials:
        """By which lanes of TLS are opened on a connection that this certificate was shown on: with it, and today's
        trust and CRLs."""
        own = self.of_session(leaf_sha256)
        return replace(self.credentials, chain=own.chain, private_key=own.private_key)

    def context_of_lanes(self, leaf_sha256: bytes) -> SSL.Context:
        """To take lanes in with `of_lanes`; another than today's is made for each lane."""
        is_of_today = self.of_session(leaf_sha256) is self.credentials
        return self.context if is_of_today else server_context(self.of_lanes(leaf_sha256))

    def to_certify(self, leaf_sha256: bytes, ended: datetime) -> HostCredentials:
        """By which to certify to gateways what ended then: the session's, or if its certificate had ended, today's.
        What an ended one certifies they take at no time."""
        own = self.of_session(leaf_sha256)
        return own if ended <= own.chain[0].not_valid_after_utc else self.credentials

    def reload(self, now: datetime) -> None:
        """Take the files as they are. Raises `CertificateError`, and then nothing has changed.

        A certificate without its key, or one that no peer would accept, does not replace one that works. But new CRLs
        do, even if they revoke this very host: an identity is not kept alive by refusing to hear of its end.
        """
        marks = marks_of(self.files)
        fresh = _load(self.section, self.sites)
        try:
            fresh.require_usable(now)
        except CredentialError as error:
            if fresh.chain[0] != self.credentials.chain[0]:
                raise
            log.error("no peer accepts this host any more", cause=str(error))
        self.context, self.credentials, self.marks = server_context(fresh), fresh, marks
        self._former[local_leaf_sha256(fresh)] = fresh
        while len(self._former) > _REMEMBERED:
            del self._former[next(iter(self._former))]

    def holds(self) -> list[str]:
        """Names of the roots and of the CRLs in force, by which the gateway sees how far a rollover is."""
        held = self.credentials
        crls = (crl_id(authority_key_id(crl)) for crl in held.crls)
        return sorted({*(root_id(root) for root in held.trust_anchors), *crls})

    def days_left(self, now: datetime) -> dict[str, float]:
        """Of the certificate, the roots and the CRLs, by kind the one that ends first."""
        held = self.credentials
        ends = {
            "host": [held.chain[0].not_valid_after_utc],
            "root": [root.not_valid_after_utc for root in held.trust_anchors],
            "crl": [crl.next_update_utc for crl in newest_crls(held.crls) if crl.next_update_utc is not None],
        }
        return {what: (min(moments) - now) / timedelta(days=1) for what, moments in ends.items() if moments}

    def require_listed(self, peer: SpiffeId) -> None:
        """Raises `PeerRefused` for a host that `[identity] peers` does not name; without the list every host passes."""
        if self.section.peers and str(peer) not in self.section.peers:
            raise PeerRefused(Check.NOT_LISTED, f"{peer} is not among identity.peers")

    def foreign_crl_number(self, trust_domain: str) -> int:
        """Of the CRL of another site's hosts, as it is now; -1 for a site that is none."""
        found = (each for each in self.credentials.foreign if each.trust_domain == trust_domain)
        return next((each.crl_number for each in found), -1)

    def keep_foreign_crls(self, trust_domain: str, texts: list[str]) -> int:
        """As `keep_crls`, for another site that is configured; what is told of others is left."""
        site = next((each for each in self.sites if each.trust_domain == trust_domain), None)
        if site is None or len(site.crls) != 1 or not is_folder(Path(site.crls[0])):
            return 0
        roots = next((each.trust.anchors for each in self.credentials.foreign if each.trust_domain == trust_domain), ())
        return keep_crls(Path(site.crls[0]), texts, roots, MAX_FOREIGN_BYTES)

    def keep_crls(self, texts: list[str]) -> int:
        """See there; the folder is that of `crls`."""
        return keep_crls(Path(self.section.crls[0]), texts, self.credentials.authorities)


def _files(section: IdentitySection, sites: tuple[SiteSection, ...]) -> list[Path]:
    own = (section.certificate, section.private_key, section.trust_bundle, *section.crls)
    return [Path(name) for name in (*own, *(name for site in sites for name in (site.bundle, *site.crls)))]


def _load(section: IdentitySection, sites: tuple[SiteSection, ...]) -> HostCredentials:
    credentials = HostCredentials.load(
        Path(section.certificate),
        Path(section.private_key),
        Path(section.trust_bundle),
        [Path(crl) for crl in section.crls],
    )
    own = credentials.spiffe_id.trust_domain
    foreign = tuple(
        load_foreign(site.trust_domain, Path(site.bundle), [Path(crl) for crl in site.crls], own) for site in sites
    )
    return replace(credentials, foreign=foreign)
