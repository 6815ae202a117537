"""Of the offline verifier: what a host's receipt inside a record must be. Shares no code with the writer, on purpose.

The record holds the receipt as the host signed it: body, ECDSA signature (P-256, SHA-256), certificate chain. It must
say what the record says, and be signed by the host that had that part in the migration.
"""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

_SAME_AS_RECORD = ("migration_id", "source", "destination", "outcome")
_SAME_AS_DETAILS = ("role", "jti")
# What cryptography raises, at loading or at the first look, for a certificate that cannot be read.
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
_decode = json.JSONDecoder().decode  # as json.loads does, without asking for each text what it is


def is_unsigned(details: Mapping[str, Any]) -> bool:
    """Whether no chain came with it: nothing shows that a host said it."""
    return not details.get("chain")


def receipt_faults(record: Mapping[str, Any], authorities: Sequence[x509.Certificate]) -> Iterator[str]:
    """Everything that is wrong with the receipt in a `migration.receipt` record. No `authorities`: any will do."""
    details = record["details"]
    body_text = details.get("body")
    if not isinstance(body_text, str):
        yield "its receipt has no body"
        return
    if hashlib.sha256(body_text.encode("utf-8")).hexdigest() != details.get("body_sha256"):
        yield "its receipt's body does not have the digest that the record says"
    try:
        body = _decode(body_text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        yield "its receipt's body is not a JSON object"
        return
    for name in _SAME_AS_RECORD:
        if body.get(name) != record.get(name):
            yield f"its receipt speaks of another {name} than the record"
    vm = record.get("vm")
    if body.get("vm") != (vm.get("uuid") if isinstance(vm, dict) else None):
        yield "its receipt speaks of another vm than the record"
    for name in _SAME_AS_DETAILS:
        if body.get(name) != details.get(name):
            yield f"its receipt speaks of another {name} than the record"
    if str(body.get("role")) not in {"source", "destination"}:  # else any member may name the host that signed it
        yield "its receipt's role is neither source nor destination"
        return
    if not is_unsigned(details):
        yield from _signature_faults(details, body, body_text, authorities)


def read_authorities(pem: bytes) -> list[x509.Certificate]:
    """The certificates of authorities in `pem`. Raises ValueError."""
    return x509.load_pem_x509_certificates(pem)


def _signature_faults(
    details: Mapping[str, Any], body: Mapping[str, Any], body_text: str, authorities: Sequence[x509.Certificate]
) -> Iterator[str]:
    try:
        chain = _chain(tuple(details["chain"]))
        leaf = chain[0]
        key = leaf.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ValueError("its key is not on P-256")  # noqa: TRY004
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        hosts = names.get_values_for_type(x509.UniformResourceIdentifier)
        signature = base64.b64decode(details["signature"], validate=True)
        ended = datetime.fromisoformat(str(body.get("ended")))
    except (KeyError, *_UNREADABLE) as error:
        yield f"its receipt's certificate or signature cannot be read: {error}"
        return
    if hosts != [body.get(body["role"])]:
        yield "its receipt is signed by another host than the one that had this part"
    if ended.tzinfo is None or not leaf.not_valid_before_utc <= ended <= leaf.not_valid_after_utc:
        yield "its receipt's certificate was not valid when the session ended"
    try:
        key.verify(signature, body_text.encode("utf-8"), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        yield "its receipt's signature is wrong"
    if not _is_issued(tuple(details["chain"]), tuple(authorities)):
        yield "its receipt's certificate was not issued by a given authority"


@lru_cache(256)  # a host's chain stands in each of its receipts
def _chain(encoded: tuple[str, ...]) -> tuple[x509.Certificate, ...]:
    return tuple(x509.load_der_x509_certificate(base64.b64decode(one, validate=True)) for one in encoded[:8])


@lru_cache(256)
def _is_issued(encoded: tuple[str, ...], authorities: tuple[x509.Certificate, ...]) -> bool:
    chain = _chain(encoded)
    try:
        if _may_issue(chain[0]):
            return False
        for subject, issuer in pairwise(chain):
            subject.verify_directly_issued_by(issuer)
            if not _may_issue(issuer):
                return False  # a host's own certificate could else vouch for any other host
    except (InvalidSignature, *_UNREADABLE):
        return False
    return not authorities or any(_issued_by(chain[-1], one) for one in authorities)


def _may_issue(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except _UNREADABLE:
        return False
    return constraints.ca and usage.key_cert_sign


def _issued_by(subject: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        subject.verify_directly_issued_by(authority)
    except (InvalidSignature, *_UNREADABLE):
        return subject == authority
    return True
