"""How a host comes by its first certificate: what a one-time token says, and what is asked of a signing request.

    slt1.<host>.<SHA-256 of the gateway's root, base64url>.<32 random bytes, base64url>

The token tells the host which gateway to believe before the token is sent to it, and the gateway for which name it may
sign. The gateway keeps only the SHA-256 of the whole text: who reads its disk cannot enrol.
"""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certs.errors import UNREADABLE, CredentialError

MAX_REQUEST_BYTES: Final = 8 * 1024
SECRET_BYTES: Final = 32
_TOKEN = re.compile(r"slt1\.([a-z0-9-]{1,63})\.([A-Za-z0-9_-]{43})\.([A-Za-z0-9_-]{43})")


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """`root_sha256`: of the DER of the CA certificate that vouches for the gateway."""

    host: str
    root_sha256: bytes
    secret: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> EnrolmentToken:
        """Raises `CredentialError`, which never repeats the text."""
        found = _TOKEN.fullmatch(text)
        if found is None:
            raise CredentialError(None, "this is not an enrolment token", "ask for one: sealane certs token HOST")
        token = cls(found[1], _unbase64(found[2]), _unbase64(found[3]))
        if token.text() != text:  # 43 digits hold 258 bits: two texts would be one token
            raise CredentialError(None, "this is not an enrolment token", "ask for one: sealane certs token HOST")
        return token

    def text(self) -> str:
        return f"slt1.{self.host}.{_base64(self.root_sha256)}.{_base64(self.secret)}"

    def sha256(self) -> bytes:
        """By which the gateway knows it."""
        return hashlib.sha256(self.text().encode()).digest()

    def is_of_root(self, certificate: x509.Certificate) -> bool:
        return certificate.fingerprint(hashes.SHA256()) == self.root_sha256


def make_request(key: ec.EllipticCurvePrivateKey) -> bytes:
    """A certificate signing request (PEM) that says nothing but the key: the name is not the host's to say."""
    request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM)


def requested_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """The P-256 key of a request whose signature proves that the sender has it. Raises `CredentialError`.

    Names and extensions of the request are not looked at: nothing of them could ever get into a certificate.
    """
    problem = "the signing request is not one"
    try:
        if len(pem) > MAX_REQUEST_BYTES:
            raise ValueError("too long")
        request = x509.load_pem_x509_csr(pem)
        is_signed = request.is_signature_valid
        key = request.public_key()
    except UNREADABLE:
        raise CredentialError(None, problem, "send a PEM PKCS#10 request") from None
    if not is_signed:
        raise CredentialError(None, "the signing request is not signed by its own key", "make it anew")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise CredentialError(None, "the requested key is not EC P-256", "make one: it signs receipts too")
    return key


def public_key_sha256(key: CertificatePublicKeyTypes) -> bytes:
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=")
