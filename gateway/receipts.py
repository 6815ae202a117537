"""Receipts of relays: what they must say and by whom they must be signed before they are recorded.

The gateway takes no relay's word about another one: the body must name the reporting host in its role, be signed by
the key of that host's own certificate chain, and agree with the migration that was permitted.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec import Meta

from audit.index_arrivals import ARRIVED
from certs.errors import UNREADABLE, CertificateError
from certs.identity import SpiffeId
from gateway.errors import ReceiptRefused
from gateway.migrations import Migration
from gateway.relays import HostTrust
from transport.errors import UNDECODABLE

CLOCK_SKEW: Final = timedelta(minutes=5)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")

Text = Annotated[str, Meta(max_length=512)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Hex = Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class TlsFacts(_Strict, frozen=True):
    version: Text
    group: Text
    cipher: Text


class ChannelCounts(_Strict, frozen=True):
    channel: Count
    port: Text
    sent_bytes: Count
    received_bytes: Count
    sent_frames: Count
    received_frames: Count


class ReceiptBody(_Strict, frozen=True):
    """What a relay certifies (docs/wire-protocol.md, section 8)."""

    version: Literal[1]
    role: Literal["source", "destination"]
    jti: Text
    migration_id: Text
    permit_sha256: Hex
    source: Text
    destination: Text
    vm: Text
    vm_binding: Literal["uuid", "none"]
    tls: TlsFacts | None
    lane_cipher: Text | None
    source_fingerprint: Hex | None
    destination_fingerprint: Hex | None
    channels: Annotated[tuple[ChannelCounts, ...], Meta(max_length=1024)]
    resumptions: Count
    outcome: Literal["running", "discarded", "handed-over", "completed", "failed", "cancelled"]
    started: Text
    ended: Text
    downtime_ms: Count | None
    checkpoint: Annotated[str, Meta(max_length=4096)]
    peer_receipt_sha256: Hex | None
    content_digests: dict[str, str] | None
    other_permit_sha256: Hex | msgspec.UnsetType = msgspec.UNSET  # of the other site's, where two sites took part
    recovery: Literal[True] | msgspec.UnsetType = msgspec.UNSET  # of a session that went on with interrupted post-copy
    lacks_memory: Literal[True] | msgspec.UnsetType = msgspec.UNSET  # of a destination where not all of it came
    lacks_counts: Literal[True] | msgspec.UnsetType = msgspec.UNSET  # of a relay that was restarted in the session


@dataclass(frozen=True, slots=True)
class SignedReceipt:
    """As it came: canonical JSON text, DER signature, chain of DER certificates, leaf first."""

    body: str
    signature: bytes
    chain: tuple[bytes, ...]

    @property
    def body_sha256(self) -> str:
        return hashlib.sha256(self.body.encode()).hexdigest()


def decode_base64(text: str, what: str) -> bytes:
    """Errors: ReceiptRefused("form")."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ReceiptRefused("form", f"{what} is not base64") from error


def read_body(receipt: SignedReceipt) -> ReceiptBody:
    """Strict: one spelling, no unknown member. Errors: ReceiptRefused("form")."""
    try:
        raw = receipt.body.encode()
        body = msgspec.json.decode(raw, type=ReceiptBody)
        canonical = msgspec.json.encode(msgspec.json.decode(raw), order="sorted")
    except (UnicodeEncodeError, *UNDECODABLE) as error:
        raise ReceiptRefused("form", f"the body is not a receipt: {error}") from error
    if canonical != raw:
        raise ReceiptRefused("form", "the body is not canonical JSON")
    if body.lacks_memory is not msgspec.UNSET and (body.role, body.outcome) != ("destination", "running"):
        raise ReceiptRefused("form", "only a destination where the guest runs lacks memory of it")
    if body.lacks_counts is not msgspec.UNSET and (body.channels or body.content_digests is not None):
        raise ReceiptRefused("form", "who lacks counts has none")
    return body


def verify_receipt(
    receipt: SignedReceipt, body: ReceiptBody, reporter: SpiffeId, migration: Migration, trust: HostTrust, now: datetime
) -> None:
    """Check that `reporter` had this part in `migration` and signed the body. Errors: ReceiptRefused."""
    _check_parties(body, reporter, migration)
    ended = _check_times(body, migration, now)
    _check_signature(receipt, reporter, trust, ended, now)


def _check_parties(body: ReceiptBody, reporter: SpiffeId, migration: Migration) -> None:
    expected = {
        "migration_id": migration.migration_id,
        "jti": migration.jti,
        "source": migration.source,
        "destination": migration.destination,
        "vm": migration.vm_uuid,
    }
    for what, value in expected.items():
        if getattr(body, what) != value:
            raise ReceiptRefused("migration", f"{what} is not that of the migration")
    if migration.permit_sha256 is not None and body.permit_sha256 != migration.permit_sha256:
        raise ReceiptRefused("migration", "permit_sha256 is not that of the permit that was issued")
    if str(reporter) != (body.source if body.role == "source" else body.destination):
        raise ReceiptRefused("role", "the reporting host does not have this role in the migration")


def _check_times(body: ReceiptBody, migration: Migration, now: datetime) -> datetime:
    """When the session ended: the moment at which the host's certificate must have been valid."""
    started, ended = _parse_time(body.started, "started"), _parse_time(body.ended, "ended")
    if started > ended or ended > now + CLOCK_SKEW:
        raise ReceiptRefused("times", "it did not end after it started and before now: compare the clocks")
    # A stolen key of an expired certificate could otherwise date receipts back to when it was valid.
    if ended < datetime.fromtimestamp(migration.decided, UTC) - CLOCK_SKEW:
        raise ReceiptRefused("times", "it ended before the migration was permitted: compare the clocks")
    return ended


def _parse_time(text: str, what: str) -> datetime:
    try:
        if _TIME.fullmatch(text):
            return datetime.fromisoformat(text)
    except ValueError:
        pass
    raise ReceiptRefused("times", f"{what} is not RFC 3339 UTC with microseconds")


def _check_signature(
    receipt: SignedReceipt, reporter: SpiffeId, trust: HostTrust, ended: datetime, now: datetime
) -> None:
    try:
        chain = tuple(x509.load_der_x509_certificate(der) for der in receipt.chain)
        # A receipt may have waited in the spool until its certificate was renewed.
        is_past = now > chain[0].not_valid_after_utc
        signer = trust.past_host_of(chain, ended, now) if is_past else trust.host_of(chain, now)
    except (CertificateError, *UNREADABLE) as error:
        raise ReceiptRefused("chain", f"the chain does not verify: {error}") from error
    if signer != reporter:
        raise ReceiptRefused("chain", "signed by another host than the one that reports it")
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ReceiptRefused("signature", "the signer's key is not on P-256")
    try:
        key.verify(receipt.signature, receipt.body.encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise ReceiptRefused("signature", "the signature does not verify") from error


def receipt_details(
    receipt: SignedReceipt, body: ReceiptBody, migration: Migration, *, places_vm: bool
) -> dict[str, Any]:
    """For the record: the receipt itself, complete, so that an auditor can verify it without us.

    `moves_guest` and `places_vm` are our words, not the host's: a receipt of a named port says nothing of where its VM
    is, and one that comes late, or again, nothing of where it is now.
    """
    is_arrival = migration.moves_guest and body.role == "destination" and body.outcome in ARRIVED
    return {
        "role": body.role,
        "jti": body.jti,
        "body": receipt.body,
        "body_sha256": receipt.body_sha256,
        "signature": base64.b64encode(receipt.signature).decode(),
        "chain": [base64.b64encode(der).decode() for der in receipt.chain],
        "vm_binding": body.vm_binding,
        **({} if body.recovery is msgspec.UNSET else {"recovery": True}),
        **({} if body.lacks_memory is msgspec.UNSET else {"lacks_memory": True}),
        **({} if migration.moves_guest else {"moves_guest": False}),
        **({"places_vm": False} if is_arrival and not places_vm else {}),
        "tls": msgspec.to_builtins(body.tls),
        "downtime_ms": body.downtime_ms,
        **(_carried(body) if body.lacks_counts is msgspec.UNSET else {"lacks_counts": True}),
    }


def _carried(body: ReceiptBody) -> dict[str, int]:
    return {
        "sent_bytes": sum(channel.sent_bytes for channel in body.channels),
        "received_bytes": sum(channel.received_bytes for channel in body.channels),
    }
