"""What the gateway tells of trust (CRLs, roots, what is retired), and how it is taken: whole, or not at all.

The gateway's word over TLS is enough for a newer CRL and for letting go; a new root needs its introduction. So who has
stolen the gateway's TLS key can withhold and deny, and make no relay believe a host.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from msgspec import Meta

from certs.crl_folder import put_away
from certs.errors import UNREADABLE, CredentialError
from certs.files import crl_files, read_certificates, read_crl, write_atomically
from certs.introduction import MAX_INTRODUCTIONS, authority_key_id, crl_id, introduced_roots, root_id
from certs.key_introduction import MAX_KEY_INTRODUCTIONS, Introduction
from transport.errors import UNDECODABLE
from transport.relay.identity import Identity
from transport.relay.pins import Pins

_Pem = Annotated[str, Meta(max_length=64 * 1024)]
_Name = Annotated[str, Meta(max_length=96)]
log = structlog.get_logger("sealane.relay")


class ToldTrust(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`leaving`: CAs whose hosts are to renew now. `retired`: roots and CAs that count no more. Names: `holds`."""

    version: Annotated[str, Meta(max_length=64)]
    roots: Annotated[str, Meta(max_length=256 * 1024)]
    crls: Annotated[list[str], Meta(max_length=16)]
    foreign_crls: Annotated[dict[str, list[str]], Meta(max_length=64)] = {}  # of other sites, by trust domain
    introductions: Annotated[list[_Pem], Meta(max_length=MAX_INTRODUCTIONS)] = []
    leaving: Annotated[list[_Name], Meta(max_length=16)] = []
    retired: Annotated[list[_Name], Meta(max_length=256)] = []
    key_introductions: Annotated[list[_Pem], Meta(max_length=MAX_KEY_INTRODUCTIONS)] = []

    def pins_after(self, pins: Pins) -> Pins:
        """The keys to believe from now on. Raises `CredentialError`."""
        try:
            introductions = [msgspec.json.decode(text, type=Introduction) for text in self.key_introductions]
        except UNDECODABLE as error:
            raise CredentialError(None, f"an introduction of a key is none: {error}", "look at the gateway") from None
        return pins.after(introductions, self.retired)


@dataclass(frozen=True, slots=True)
class Taken:
    """Whether any file changed, and whether that of the roots by which the gateway itself is known did.

    `refused`: why roots stay as they are.
    """

    any: bool
    gateway_roots: bool = False
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class TrustNews:
    """Something told, to be taken into the files of `identity`. `gateway_bundle`: by what the gateway is known."""

    identity: Identity
    gateway_bundle: Path
    told: ToldTrust
    now: datetime

    def take(self) -> Taken:
        """Blocking. Newer CRLs are taken whatever becomes of the rest. Raises `CredentialError`, OSError."""
        taken = self.identity.keep_crls(self.told.crls)
        for trust_domain, crls in self.told.foreign_crls.items():
            taken += self._take_foreign(trust_domain, crls)
        try:
            changed, is_gateways = self._take_roots()
        except CredentialError as error:
            return Taken(bool(taken), refused=str(error))
        return Taken(bool(taken) or changed, is_gateways)

    def _take_foreign(self, trust_domain: str, crls: list[str]) -> int:
        """What another site publishes stops nothing of ours: its hosts are refused once their CRL here has ended."""
        try:
            return self.identity.keep_foreign_crls(trust_domain, crls)
        except CredentialError as error:
            log.error("the CRLs of another site stay as they are", trust_domain=trust_domain, cause=str(error))
            return 0

    def _take_roots(self) -> tuple[bool, bool]:
        held = self.identity.credentials.trust_anchors
        roots = self._roots(held)
        going = self._crls_to_drop()
        if roots == held and not going:
            return False, False
        self._require_usable(roots)
        is_gateways = self._write_gateway_bundle(held, roots)
        write_atomically(Path(self.identity.section.trust_bundle), _pem(roots))
        put_away(going)
        log.info("roots changed", roots=[root.subject.rfc4514_string() for root in roots])
        return True, is_gateways

    def _roots(self, held: tuple[x509.Certificate, ...]) -> tuple[x509.Certificate, ...]:
        try:
            told = x509.load_pem_x509_certificates(self.told.roots.encode())
            introductions = [x509.load_pem_x509_certificate(each.encode()) for each in self.told.introductions]
        except UNREADABLE as error:
            raise CredentialError(None, f"the gateway's roots cannot be read: {error}", "look at its files") from None
        told = [root for root in told if root_id(root) not in self.told.retired]
        every = (*held, *introduced_roots(held, told, introductions, self.now))
        return tuple(root for root in every if root_id(root) not in self.told.retired)

    def _crls_to_drop(self) -> list[Path]:
        held = crl_files(Path(self.identity.section.crls[0]))
        return [file for file in held if crl_id(authority_key_id(read_crl(file))) in self.told.retired]

    def _require_usable(self, roots: tuple[x509.Certificate, ...]) -> None:
        """Else a gateway that retires too early would make a host that nobody believes."""
        held = self.identity.credentials
        crls = map(read_crl, crl_files(Path(self.identity.section.crls[0])))
        left = tuple(crl for crl in crls if crl_id(authority_key_id(crl)) not in self.told.retired)
        if not roots:
            raise CredentialError(None, "the gateway leaves no root to trust", "look at the gateway")
        replace(held, trust_anchors=roots, crls=left).require_usable(self.now)

    def _write_gateway_bundle(self, held: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]) -> bool:
        """The gateway's certificate follows the root of hosts if that vouches for it now; another CA's stays."""
        known = read_certificates(self.gateway_bundle)
        if not any(root in held for root in known):
            return False
        others = [root for root in known if root not in held and root not in roots]
        write_atomically(self.gateway_bundle, _pem((*others, *roots)))
        return True


def _pem(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)
