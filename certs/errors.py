"""Errors of certificates, split by who must act.

CertificateError
├── KeyFileError       the operator: a private key file is missing, readable by others, of another kind
├── CredentialError    the operator: a certificate, CRL or CA folder cannot be used as it is
├── IdentityError      whoever issued the certificate: it does not say one canonical SPIFFE id
├── PeerRefused        the peer: one named check failed; for our log, never for the peer
└── NotAccepted        us: a secret was asked of a connection whose peer was not accepted
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm

# What msgspec raises for bytes that are not what was asked for: UnicodeDecodeError within a text, RecursionError for
# nesting within a member that it passes over.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

# What cryptography raises, at loading or at the first look, for a certificate or CRL that cannot be read: TypeError for
# a name that is a BIT STRING.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


class Check(StrEnum):
    """Every check that can refuse a peer, by the name that logs and metrics show."""

    HANDSHAKE = "handshake"  # TLS failed or is not finished; nothing more is known
    TLS_VERSION = "tls-version"
    KEY_EXCHANGE = "key-exchange"
    ALPN = "alpn"
    RESUMPTION = "resumption"  # no certificate was verified in this very handshake
    NO_CERTIFICATE = "no-certificate"
    MALFORMED = "malformed"  # a certificate, or the path, breaks RFC 5280
    UNTRUSTED = "untrusted"  # no path to one of our trust anchors
    VALIDITY = "validity"  # not yet valid, expired, or one of the two clocks is wrong
    REVOKED = "revoked"
    CRL_MISSING = "crl-missing"  # some CA of the path has no CRL here
    CRL_STALE = "crl-stale"  # not yet, or no longer, current; or without an end
    CRL_INVALID = "crl-invalid"  # signature, a partial or delta CRL, no number
    SECOND_VERIFIER = "second-verifier"  # OpenSSL said yes, cryptography's verifier no
    IDENTITY = "identity"  # not exactly one canonical SPIFFE id
    TRUST_DOMAIN = "trust-domain"
    NOT_LISTED = "not-listed"  # this relay's own list of peers does not name it
    USAGE = "usage"  # not for both client and server authentication


class CertificateError(Exception):
    """Root of this package's errors."""


class KeyFileError(CertificateError):
    """The operator must correct a private key file."""

    def __init__(self, path: Path, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}")
        self.path, self.problem, self.remedy = path, problem, remedy


class CredentialError(CertificateError):
    """The operator must correct a certificate, a CRL or a CA folder."""

    def __init__(self, path: Path | None, problem: str, remedy: str) -> None:
        super().__init__(f"{path}: {problem}; {remedy}" if path else f"{problem}; {remedy}")
        self.path, self.problem, self.remedy = path, problem, remedy


class IdentityError(CertificateError):
    """A text or a certificate that is not exactly one canonical SPIFFE id of a host."""


class PeerRefused(CertificateError):
    """`check` is a value of `Check`; `detail` is for our own log: the peer must learn neither."""

    def __init__(self, check: str, detail: str) -> None:
        super().__init__(f"peer refused by check {check}: {detail}")
        self.check = str(check)
        self.detail = detail


class NotAccepted(CertificateError):
    """A caller wanted a secret before `accept_peer`: pyOpenSSL would give it to a server too early."""
